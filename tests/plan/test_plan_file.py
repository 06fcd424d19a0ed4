"""The plan file: read, edited and applied again."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import yaml
from building import Net
from planning import DIGITS

import fusewright
from fusewright.errors import OutputError, PlanError
from fusewright.plan.file import apply_plan_file, plan_text, write_plan
from fusewright.plan.plan import FLOAT, INT8, Plan


@pytest.fixture
def plan() -> Plan:
    return fusewright.inspect(DIGITS)


@pytest.fixture
def file(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    write_plan(plan, path)
    return path


@pytest.fixture
def guarded(tmp_path: Path) -> Plan:
    """A depthwise convolution, an act with its Add in front of an output, and a float16 one."""
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, group=4, name="depthwise")
    y = net.op("Add", net.op("Relu", net.conv(x, 4, 4, name="conv")), x, name="add")
    path = tmp_path / "guarded.onnx"
    onnx.save(net.proto(net.op("GlobalAveragePool", y, name="pool")), path)
    return fusewright.inspect(path)


def _edit(path: Path, **decisions: object) -> None:
    """Sets decisions by group name, `slash` for what cannot be a keyword."""
    data = yaml.safe_load(path.read_text())
    for entry in data["groups"]:
        key = entry["name"].strip("/").replace("/", "_").replace(".", "_")
        if key in decisions:
            entry["decision"] = decisions.pop(key)
    assert not decisions, f"no such group: {decisions}"
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def test_round_trip_is_byte_identical(plan: Plan, file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    again = fusewright.inspect(DIGITS)
    apply_plan_file(again, file)
    write_plan(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == before
    assert plan_text(plan) == before.decode()


def test_round_trip_of_edits(file: Path, tmp_path: Path) -> None:
    _edit(file, fc_Gemm=FLOAT, layer1_conv1_Conv="off")
    first, second = fusewright.inspect(DIGITS, plan=file), fusewright.inspect(DIGITS)
    assert first.group("/fc/Gemm").decision == FLOAT
    assert first.group("/fc/Gemm").reason == "the plan file says float"
    assert first.group("/layer1/conv1/Conv").apply is False
    write_plan(first, tmp_path / "first.yaml")
    apply_plan_file(second, tmp_path / "first.yaml")
    assert plan_text(second) == (tmp_path / "first.yaml").read_text()


def test_file_is_for_people(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# Fusewright plan.")
    assert "\n- name: /conv1/Conv\n  kind: ConvBNActMaxPool\n  decision: int8\n" in text


def test_off_as_yaml_writes_it(file: Path) -> None:
    """A bare `off` is YAML's false."""
    text = file.read_text().replace("decision: int8", "decision: off", 1)
    file.write_text(text)
    assert yaml.safe_load(text)["groups"][0]["decision"] is False
    plan = fusewright.inspect(DIGITS, plan=file)
    assert plan.groups[0].apply is False
    assert plan.groups[0].to_dict()["decision"] == FLOAT
    assert "decision: 'off'" in plan_text(plan) or "decision: off" in plan_text(plan)


def test_off_and_on_again(plan: Plan, file: Path) -> None:
    plan.groups[0].apply = False
    apply_plan_file(plan, file)
    assert plan.groups[0].apply is True
    assert plan.groups[0].decision == INT8


def _rename(text: str) -> str:
    return text.replace("name: /fc/Gemm", "name: /fc/Gem")


def _drop_group(text: str) -> str:
    data = yaml.safe_load(text)
    del data["groups"][2]
    return yaml.safe_dump(data)


def _repeat_group(text: str) -> str:
    data = yaml.safe_load(text)
    data["groups"].append(data["groups"][0])
    return yaml.safe_dump(data)


BROKEN = {
    "a name that is not there": (_rename, "the model has no group '/fc/Gem'"),
    "a group left out": (_drop_group, "says nothing of group '/layer1/conv2/Conv'"),
    "a group twice": (_repeat_group, "/conv1/Conv"),
    "a decision that does not exist": (
        lambda t: t.replace("decision: int8", "decision: int7", 1),
        "no decision 'int7'; there are int8, fp8, int4, nvfp4, mxfp8, float, off",
    ),
    "a decision of another type": (
        lambda t: t.replace("decision: int8", "decision: [int8]", 1),
        "no decision",
    ),
    "int8 on a pool": (
        lambda t: t.replace("decision: float", "decision: int8", 1),
        "group '/avgpool/GlobalAveragePool' cannot be int8",
    ),
    "another model": (
        lambda t: t.replace("sha256: ", "sha256: 0", 1),
        "is the plan of another model ('digits_cnn.onnx'",
    ),
    "no model": (lambda t: t.replace("sha256", "sha1"), "another model"),
    "a model that is a word": (lambda t: "model: x\ngroups: []\n", "another model"),
    "no groups": (lambda t: t.replace("groups:", "grapes:", 1), "is not a Fusewright plan"),
    "groups that are a word": (lambda t: t[: t.index("groups:")] + "groups: x\n", "not a list"),
    "a group that is a word": (
        lambda t: t[: t.index("groups:")] + "groups:\n- x\n",
        "group 1 has no `name`",
    ),
    "a contract of no such inputs": (
        lambda t: t.replace("inputs_to_quantize:\n  - 0", "inputs_to_quantize:\n  - 1", 1),
        "group '/conv1/Conv' has inputs_to_quantize [1]; it can be [0]",
    ),
    "inputs that are a word": (
        lambda t: t.replace("inputs_to_quantize:\n  - 0", "inputs_to_quantize: all", 1),
        "inputs_to_quantize: all; it is a list of positions",
    ),
    "asked that is no yes or no": (
        lambda t: t.replace("decision: int8", "decision: int8\n  asked: 1", 1),
        "group '/conv1/Conv' has asked: 1; it is true or false",
    ),
    "prepared as what it cannot be": (
        lambda t: t.replace("decision: int8", "decision: int8\n  prepared_as: int7", 1),
        "prepared_as: group '/conv1/Conv': no decision 'int7'",
    ),
    "a residual stream that is a word": (
        lambda t: t.replace("groups:", "residual: all\ngroups:", 1),
        "`residual` is not a list of tensors",
    ),
    "a list": (lambda t: "- 1\n- 2\n", "is not a Fusewright plan"),
    "empty": (lambda t: "", "is not a Fusewright plan"),
    "an entry that is misspelt": (
        lambda t: t.replace("precision: ", "precisions: ", 1),
        "no entry 'precisions'; there are fusewright, groups, model, precision",
    ),
    "an entry of a group that is misspelt": (
        lambda t: t.replace("  kind: ", "  smoth: 0.5\n  kind: ", 1),
        "group '/conv1/Conv' no entry 'smoth'; there are asked, decision, ",
    ),
    "an entry twice": (
        lambda t: t.replace("  decision: int8\n", "  decision: float\n  decision: int8\n", 1),
        "has 'decision' twice (line ",
    ),
    "no precision": (lambda t: t.replace("precision: ", "precision: x", 1), "precision 'xint8"),
    "too deep": (lambda t: "[" * 20_000, "is not YAML"),
    "not YAML": (lambda t: t + "\n  x: [", "is not YAML"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=list(BROKEN))
def test_broken_file(change, message: str, file: Path) -> None:
    file.write_text(change(file.read_text()))
    with pytest.raises(PlanError) as caught:
        fusewright.inspect(DIGITS, plan=file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        fusewright.inspect(DIGITS, plan=tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00groups")
    with pytest.raises(PlanError, match="is not YAML"):
        fusewright.inspect(DIGITS, plan=tmp_path / "binary.yaml")


def test_folder_that_is_not_there(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_plan(plan, tmp_path / "missing" / "plan.yaml")


@pytest.mark.parametrize(
    ("group", "words"),
    [("depthwise", "multiples of 4"), ("pool", "asks for no Q/DQ"), ("add", "both sides")],
)
def test_impossible_decision(guarded: Plan, tmp_path: Path, group: str, words: str) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(guarded, path)
    _edit(path, **{group: INT8})
    with pytest.raises(PlanError, match=f"group '{group}' cannot be int8: .*{words}"):
        apply_plan_file(guarded, path)


def test_float_reader_takes_its_act_add_along(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, name="stem")
    y = net.op("Add", net.op("Relu", net.conv(x, 4, 4, name="conv")), x, name="add")
    model = tmp_path / "net.onnx"
    onnx.save(net.proto(net.conv(y, 4, 4, name="next")), model)
    path = tmp_path / "plan.yaml"
    write_plan(fusewright.inspect(model), path)
    _edit(path, next=FLOAT)
    said = "group 'add' cannot be int8: .*; behind it 'next' is not: set 'add' to float"
    with pytest.raises(PlanError, match=said):
        fusewright.inspect(model, plan=path)
    _edit(path, next=FLOAT, add=FLOAT)
    assert {g.name for g in fusewright.inspect(model, plan=path).groups if g.is_quantized} == {
        "stem",
        "conv",
    }


def _attention(net: Net) -> str:
    """Two heads of 16 elements, for which TensorRT has INT8 attention."""
    x = net.input("x", 2, 5, 32)
    q, k, v = (
        net.op("Reshape", net.op("MatMul", x, net.draw(32, 32)), [0, 0, 2, 16]) for _ in range(3)
    )
    q, v = (net.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1]))
    y = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, 0.25), axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, 32])
    return net.op("MatMul", y, net.draw(32, 32), name="out")


def test_a_float_projection_names_its_attention(tmp_path: Path) -> None:
    """Attention in INT8 needs a reader in INT8; the line says which group to set too."""
    net = Net()
    model, path = tmp_path / "net.onnx", tmp_path / "plan.yaml"
    onnx.save(net.proto(_attention(net)), model)
    plan = fusewright.inspect(model)
    write_plan(plan, path)
    into, core, out = (group.name for group in plan.groups)
    assert {group.decision for group in plan.groups} == {INT8}
    _edit(path, **{out: FLOAT})
    with pytest.raises(PlanError) as caught:
        fusewright.inspect(model, plan=path)
    assert str(caught.value).startswith(f"{path}: group '{core}' cannot be int8: without weights")
    assert str(caught.value).endswith(f"; behind it '{out}' is not: set '{core}' to float")
    _edit(path, **{out: FLOAT, core: FLOAT})
    decisions = {
        group.name: group.decision for group in fusewright.inspect(model, plan=path).groups
    }
    assert decisions == {into: INT8, core: FLOAT, out: FLOAT}


def test_what_the_model_gives_out_is_no_group(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, name="stem")
    y = net.op("Add", net.op("Relu", net.conv(x, 4, 4, name="conv")), x, name="add")
    model, path = tmp_path / "net.onnx", tmp_path / "plan.yaml"
    onnx.save(net.proto(net.op("Sigmoid", y, name="end")), model)
    write_plan(fusewright.inspect(model), path)
    _edit(path, add=INT8)
    said = r"group 'add' cannot be int8: .* or neither: set 'add' to float$"
    with pytest.raises(PlanError, match=said):
        fusewright.inspect(model, plan=path)


def test_groups_that_follow_each_other_are_all_named(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, name="stem")
    for name in ("first", "second"):
        x = net.op("Add", net.op("Relu", net.conv(x, 4, 4, name=f"{name}_conv")), x, name=name)
    model, path = tmp_path / "net.onnx", tmp_path / "plan.yaml"
    onnx.save(net.proto(net.conv(x, 4, 4, name="next")), model)
    write_plan(fusewright.inspect(model), path)
    _edit(path, next=FLOAT)
    said = r"'second' cannot be int8: .*; behind it 'next' is not: set 'first', 'second' to float$"
    with pytest.raises(PlanError, match=said):
        fusewright.inspect(model, plan=path)
