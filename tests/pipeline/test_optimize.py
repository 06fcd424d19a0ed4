"""The whole job on small nets: the same bytes twice, honest metadata, a plan that is obeyed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import onnx
import pytest
from building import Net, assert_equal
from small_net import small_net

import fusewright
from fusewright import RandomSamples, compare, inspect, optimize, strip_qdq
from fusewright.plan.file import plan_text, write_plan
from fusewright.quantize.existing import count_qdq

STAGES = [
    "load",
    "clean",
    "normalize",
    "recognise",
    "plan",
    "collapse",
    "calibrate",
    "quantize",
    "precision",
    "verify",
]


DATA = RandomSamples(6)


def test_two_runs_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    optimize(model, one, DATA)
    optimize(model, other, DATA)
    assert one.read_bytes() == other.read_bytes()


def test_the_plan_file_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    plain, planned, again = (tmp_path / f"{n}.onnx" for n in ("plain", "planned", "again"))
    plan = tmp_path / "plan.yaml"
    write_plan(inspect(model), plan)
    optimize(model, plain, DATA)
    for out in (planned, again):
        optimize(model, out, DATA, plan=plan)
    assert planned.read_bytes() == again.read_bytes() == plain.read_bytes()


def test_an_edited_plan_is_obeyed(model: Path, tmp_path: Path) -> None:
    plan = inspect(model)
    text = plan_text(plan)
    mixed, head = (next(g for g in plan.groups if n in g.nodes) for n in ("mixed", "head"))
    text = _with_decision(_with_decision(text, mixed.name, "float"), head.name, "off")
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    result = optimize(model, None, DATA, plan=path)
    found = {g.name: g for g in result.plan.groups}
    assert found[mixed.name].decision == "float"
    assert not found[head.name].apply
    calls = [n.name for n in result.model.graph.node if n.domain == "fusewright"]
    assert mixed.name in calls
    assert head.name not in calls
    again = optimize(model, None, DATA, plan=path)
    assert again.model == result.model


def _with_decision(text: str, group: str, decision: str) -> str:
    head, found, tail = text.partition(f"name: {group}\n")
    assert found
    return head + found + tail.replace("decision: int8", f"decision: {decision}", 1)


def test_where_the_files_lie_leaves_no_trace(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "somewhere" / "else"
    elsewhere.mkdir(parents=True)
    shutil.copy(model, elsewhere / "renamed.onnx")
    here, there = tmp_path / "out.onnx", elsewhere / "other.onnx"
    optimize(model, here, DATA)
    optimize(elsewhere / "renamed.onnx", there, DATA)
    assert here.read_bytes() == there.read_bytes()
    assert str(tmp_path).encode() not in here.read_bytes()


def test_provenance(model: Path) -> None:
    result = optimize(model, None, DATA, method="minmax")
    found = {p.key: p.value for p in result.model.metadata_props}
    assert set(found) == {
        f"fusewright.{key}"
        for key in ("version", "source", "plan", "precision", "method", "samples", "smooth")
    }
    assert found["fusewright.smooth"] == "auto"
    assert found["fusewright.version"] == fusewright.__version__
    assert found["fusewright.method"] == "minmax"
    assert found["fusewright.samples"] == "6"
    assert found["fusewright.source"] == result.plan.model.fingerprint
    other = optimize(model, None, DATA, exclude=("mixed",))
    assert {p.key: p.value for p in other.model.metadata_props}["fusewright.plan"] != found[
        "fusewright.plan"
    ]


def test_a_float_file_says_nothing_of_calibration(model: Path) -> None:
    made = optimize(model, None, DATA, precision="fp32").model
    keys = {p.key for p in made.metadata_props}
    assert "fusewright.precision" in keys
    assert not {"fusewright.method", "fusewright.samples"} & keys
    assert count_qdq(made) == 0


def test_trace_has_everything_in_order(model: Path) -> None:
    result = optimize(model, None, DATA)
    passes = [e.stage for e in result.trace if e.what == "pass" and e.name == ""]
    assert passes == STAGES
    assert [*result.trace.seconds] == STAGES
    # Why the head is not smoothed is said, though the stage has nothing to do.
    stages = [*STAGES[:5], "smooth", *STAGES[5:]]
    order = [stages.index(e.stage) for e in result.trace]
    assert order == sorted(order)
    matches = [
        (e.name, e.where) for e in result.trace if e.stage == "recognise" and e.what == "match"
    ]
    assert matches == [(g.kind, g.name) for g in result.plan.groups]
    rules = [e.name for e in result.trace if e.stage == "normalize" and e.what == "match"]
    assert rules == ["GemmToMatMul", "FoldBatchNorm"]
    misses = [e for e in result.trace if e.what == "miss"]
    assert misses
    assert all(e.name and e.where and e.detail for e in misses)
    proofs = [(e.stage, e.name) for e in result.trace if e.what == "proof"]
    assert proofs == [
        ("clean", ""),
        ("clean", "opset"),
        ("normalize", ""),
        ("collapse", ""),
        ("verify", ""),
    ]
    assert [*result.proofs] == ["clean", "clean opset", "normalize", "collapse", "verify"]


def test_write_is_a_stage(model: Path, tmp_path: Path) -> None:
    result = optimize(model, tmp_path / "out.onnx", DATA)
    assert [*result.trace.seconds] == [*STAGES, "write"]


def test_figures_of_the_report(model: Path) -> None:
    result = optimize(model, None, DATA)
    report = json.loads(json.dumps(result.to_dict()))
    assert report["peak_bytes"] == result.peak_bytes > 10_000_000
    assert set(report["seconds"]) == set(STAGES)
    assert all(0 <= s < 60 for s in report["seconds"].values())
    assert report["samples"] == 6
    assert report["proofs"]["collapse"]["head_y"]["relative_error"] <= 1e-5
    assert 10 < report["proofs"]["verify"]["head_y"]["sqnr_db"] < 80
    heavy = {(row["op"], row["decision"]) for row in report["heavy_ops"]}
    assert heavy == {("Conv", "int8"), ("Conv", "float"), ("MatMul", "int8")}
    assert report["trace"][0]["stage"] == "load"
    assert len(report["placement"]) == count_qdq(result.model) // 2


def test_watcher_sees_stages_and_samples(model: Path) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.seen: list[tuple[int, int | None]] = []

        def stage(self, name: str, detail: str, seconds: float) -> None:
            assert detail or name == "write"
            assert seconds >= 0
            self.stages.append(name)

        def samples(self, done: int, total: int | None) -> None:
            self.seen.append((done, total))

    watcher = Watcher()
    optimize(model, None, DATA, watcher)
    assert watcher.stages == STAGES
    assert watcher.seen[-1] == (6, 6)
    assert [done for done, _ in watcher.seen] == sorted(done for done, _ in watcher.seen)


def test_result_equals_the_file(model: Path, tmp_path: Path) -> None:
    result = optimize(model, tmp_path / "out.onnx", DATA)
    assert onnx.load(tmp_path / "out.onnx") == result.model
    assert result.path == tmp_path / "out.onnx"
    onnx.checker.check_model(result.model, full_check=True)


def test_dynamic_batch_stays_dynamic(model: Path) -> None:
    made = optimize(model, None, DATA, precision="int8").model
    assert made.graph.input == small_net().graph.input
    assert [d.dim_param for d in made.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "",
        "",
    ]
    assert_equal(small_net(), strip_qdq(made))  # run with a batch of two


@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
def test_strip_qdq_gives_the_float_model_back(model: Path, tmp_path: Path, flat: bool) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(model, out, DATA, flat=flat, precision="int8")
    for quantized in (result.model, out, str(out)):
        stripped = strip_qdq(quantized)
        assert count_qdq(stripped) == 0
        assert_equal(small_net(), stripped)
    reference = optimize(model, None, DATA, flat=flat, precision="fp32").model
    assert sorted(n.name for n in stripped.graph.node) == sorted(
        n.name for n in reference.graph.node
    )
    assert {p.key for p in stripped.metadata_props} == {p.key for p in result.model.metadata_props}


def test_groups_and_nodes_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 4, 8, 8)
    branches = [net.op("Relu", net.conv(x, 4, 4, name=f"c{i}"), name=f"r{i}") for i in range(4)]
    head = net.op("Gemm", net.op("Flatten", branches[0]), net.draw(256, 3), name="head")
    tail = net.conv(net.op("HardSwish", branches[1]), 4, 4, name="tail")
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(net.proto(head, tail, *branches[2:]), path)
    expected = ["c0", "c1", "c2", "c3", "head", "tail"]
    assert [group.name for group in inspect(path).groups] == expected
    for flat in (False, True):
        made = optimize(path, out, DATA, flat=flat).model
        assert [group.name for group in inspect(out).groups] == expected
        assert [n.name for n in made.graph.node if n.name in expected] == expected


def test_compare_of_the_result(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    optimize(model, out, DATA)
    found = compare(model, out, DATA, samples=3)
    assert [o.name for o in found.outputs] == ["head_y"]
    assert 1e-4 < found.outputs[0].relative < 0.3
    assert compare(model, model, DATA).outputs[0].relative == 0


def test_a_model_without_groups_comes_out_as_it_was(tmp_path: Path) -> None:
    net = Net()
    proto = net.proto(net.op("Exp", net.input("x", 1, 4)))
    onnx.save(proto, tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", RandomSamples(2))
    assert result.plan.groups == []
    assert result.placement is None
    assert_equal(proto, result.model)


def test_detections_of_another_number_do_not_fail_the_run(tmp_path: Path) -> None:
    net = Net()
    y = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    onnx.save(net.proto(net.op("NonZero", net.op("Relu", y))), tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", RandomSamples(3))
    assert result.accuracy is not None
    assert result.accuracy.outputs[0].relative == math.inf  # another shape


def test_compare_of_files_whose_every_tensor_is_external(tmp_path: Path) -> None:
    """onnxruntime infers no shapes from a stored shape that lies elsewhere."""
    net, path = Net(), tmp_path / "net.onnx"
    y = net.op("MatMul", net.op("Reshape", net.input("x", 4, 8, 8), [4, 64]), net.draw(64, 8))
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(net.proto(y), path, **options)
    assert compare(path, path, DATA).worst.relative == 0
