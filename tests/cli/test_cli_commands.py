"""What each command prints and writes."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

KINDS = {"ConvBNActMaxPool": 1, "ConvBNAct": 3, "ConvBNAddAct": 3, "ConvBN": 1, "Linear": 1}


def test_optimize_writes_and_reports(cli, digits, calib, tmp_path):
    out, report = tmp_path / "o.onnx", tmp_path / "o.json"
    outcome = cli("optimize", digits, "--calib", calib, "-o", out, "--json", report)
    assert outcome.code == 0
    onnx.checker.check_model(str(out))
    stages = [line.split()[0] for line in outcome.err.splitlines()]
    assert stages == ["load", "clean", "normalize", "recognise", "plan", "collapse", "calibrate",
                      "quantize", "precision", "verify", "write"]  # fmt: skip
    for text in (*KINDS, "8 of 8 Conv", "1 of 1 MatMul", "logits", "dB", "peak memory", "Undone"):
        assert text in outcome.out
    data = json.loads(report.read_text())
    assert data["samples"] == 256 and data["output"] == str(out)
    assert data["proofs"]["verify"]["logits"]["sqnr_db"] > 30
    assert len(data["heavy_ops"]) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.json", "o.onnx"]


def test_optimize_quiet_says_nothing_and_verbose_the_trace(cli, digits, tmp_path):
    arguments = ("optimize", digits, "--random-data", "-o", tmp_path / "o.onnx", "--samples", 4)
    quiet = cli(*arguments, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    verbose = cli(*arguments, "-v").err
    assert "match   FoldBatchNorm  /bn1/BatchNormalization" in verbose
    assert "miss    ActAdd  /layer2/relu_1/Relu" in verbose


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ((), "int8+fp16 by mse"),
        (("--precision", "int8", "--method", "minmax"), "int8 by minmax"),
        (("--precision", "int4+fp16"), "int4+fp16 by gptq"),
        (("--precision", "int4+fp16", "--int4-method", "rtn"), "int4+fp16 by rtn"),
    ],
)
def test_the_headline_says_how(cli, digits, tmp_path, options, how):
    common = ("optimize", digits, "--random-data", "-o", tmp_path / "o.onnx", "--samples", 4)
    assert how in " ".join(cli(*common, *options).out.split())


def test_options_reach_the_pipeline(cli, digits, calib, tmp_path):
    report = tmp_path / "o.json"
    common = ("optimize", digits, "--calib", calib, "-o", tmp_path / "o.onnx", "--json", report)
    outcome = cli(*common, "--exclude", "/conv1/*", "--exclude", "op:MatMul", "--samples", 8,
                  "--method", "percentile", "--percentile", 99.5, "--flat")  # fmt: skip
    assert outcome.code == 0
    data = json.loads(report.read_text())
    kept = {row["name"]: row["reason"] for row in data["heavy_ops"] if row["decision"] == "float"}
    assert kept == {"/conv1/Conv": "excluded by '/conv1/*'", "/fc/Gemm": "excluded by 'op:MatMul'"}
    assert "excluded by '/conv1/*'" in outcome.out and "7 of 8 Conv" in outcome.out
    assert data["samples"] == 8 and data["ranges"]["method"] == "percentile"
    model = onnx.load(str(tmp_path / "o.onnx"))
    assert not model.functions
    assert cli(*common, "--precision", "fp32", "-q").code == 0
    ops = {node.op_type for node in onnx.load(str(tmp_path / "o.onnx")).graph.node}
    assert "QuantizeLinear" not in ops and "ConvBNAddAct" in ops


def test_images_are_prepared(cli, digits, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    report = tmp_path / "o.json"
    common = ("optimize", digits, "--calib", folder, "-o", tmp_path / "o.onnx", "--json", report)
    largest = []
    for scale in ("1/255", "2"):
        assert cli(*common, "--scale", scale, "--method", "minmax", "-q").code == 0
        largest.append(json.loads(report.read_text())["ranges"]["sites"]["input"]["maximum"])
    assert largest[0] <= 1.0 < 100.0 < largest[1]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_inspect_fits_the_terminal(width, cli, digits, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = cli("inspect", digits, "-v")
    assert outcome.code == 0
    assert max(len(line) for line in outcome.out.splitlines()[1:]) <= width
    for text in (*KINDS, "/layer1/relu/Relu", "inputs input", "does not commute", "Near misses"):
        assert text in " ".join(outcome.out.split())


def test_no_columns_are_as_many_as_a_log_has(cli, digits, monkeypatch):
    """A shell without a terminal may say so; Rich would print nothing."""
    shown = []
    for width in ("0", "100"):
        monkeypatch.setenv("COLUMNS", width)
        shown.append(cli("inspect", digits).out)
    assert shown[0] == shown[1] and "/fc/Gemm" in shown[0]


def test_inspect_hints_in_one_line_and_all_of_them_when_verbose(cli, digits):
    short, long = (" ".join(cli("inspect", digits, *v).out.split()) for v in ((), ("-v",)))
    line, why = "quantizing seldom pays in 2 groups (-v: which)", "below 16 it seldom pays /conv1"
    assert line in short and why not in short
    assert line not in long and why in long and "32 and 10 input and output features" in long
    groups = json.loads(cli("inspect", digits, "--json").out)["groups"]
    assert [g["name"] for g in groups if "hint" in g] == ["/conv1/Conv", "/fc/Gemm"]
    every = cli("inspect", digits, "--precision", "fp16").out
    assert "seldom" not in every


@pytest.mark.parametrize(("io_types", "stored"), [("keep", 1), ("half", 10)])
def test_the_types_of_the_interface(io_types, stored, cli, digits, calib, tmp_path):
    out = tmp_path / "o.onnx"
    outcome = cli(
        "optimize", digits, "--calib", calib, "--samples", 8, "-o", out, "--io-types", io_types
    )
    assert outcome.code == 0
    graph = onnx.load(out).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {stored}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--io-types", "double"), "io types 'double' are not one of keep, half"),
        (("--io-types", "half", "--precision", "int8"), "precision int8 has nothing in half"),
    ],
)
def test_wrong_types_of_the_interface(arguments, said, cli, digits, calib, tmp_path):
    out = tmp_path / "o.onnx"
    outcome = cli("optimize", digits, "--calib", calib, "-o", out, *arguments)
    assert outcome.code == 2 and said in outcome.err and not out.exists()
    assert len(outcome.err.strip().splitlines()) == 1


def test_optimize_reports_the_half_rest(cli, digits, calib, tmp_path):
    common = ("optimize", digits, "--calib", calib, "--samples", 8, "-o", tmp_path / "o.onnx")
    text = " ".join(cli(*common).out.split())
    assert "nodes in FP16 kept FP32: 1 spares a Cast" in text
    assert "measured on an FP32 twin that rounds to FP16 after each op: onnxruntime's CPU" in text
    trace = cli(*common, "-v").err
    assert "precision  note    fp32  input_QuantizeLinear  spares a Cast" in trace
    assert f"Accuracy against {digits} over 4 samples" in text
    plain = cli(*common, "--precision", "int8").out
    assert "Accuracy" in plain and "twin" not in plain and "FP16" not in plain


def test_inspect_json_is_only_json(cli, digits):
    outcome = cli("inspect", digits, "--json")
    data = json.loads(outcome.out)
    assert outcome.err == "" and data["model"] == str(digits) and data["unclaimed"] == []
    kinds = [group["kind"] for group in data["groups"]]
    assert {kind: kinds.count(kind) for kind in KINDS} == KINDS
    wanted = {"kind", "name", "nodes", "inputs_to_quantize", "decision", "reason"}
    assert all(wanted <= set(group) for group in data["groups"])


def test_case_does_not_matter(cli, digits, tmp_path):
    def options(spell):
        return ["--precision", spell("int8+fp16"), "--target", spell("tensorrt-10:l4"),
                "--group-precision", f"op:Conv={spell('fp8')}"]  # fmt: skip

    lower, upper = (cli("inspect", digits, "--json", *options(f)) for f in (str.lower, str.upper))
    assert (upper.code, upper.err, upper.out) == (0, "", lower.out)
    plan = tmp_path / "plan.yaml"
    assert cli("plan", digits, "-o", plan, *options(str.upper)).code == 0
    plan.write_text(plan.read_text().replace("decision: int8", "decision: INT8"))
    outcome = cli("optimize", digits, "--random-data", "-o", tmp_path / "o.onnx", "--plan", plan)
    assert outcome.code == 0 and "INT8+FP16" in outcome.out.upper()


def test_inspect_reads_the_decisions_of_a_quantized_file(cli, quantized):
    data = json.loads(cli("inspect", quantized, "--json").out)
    assert sum(group["decision"] == "int8" for group in data["groups"]) == 9


def test_plan_and_back(cli, digits, calib, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("older")
    outcome = cli("plan", digits, "-o", plan)
    assert outcome.code == 0 and "10 groups, 9 quantized" in outcome.out
    text = plan.read_text()
    plan.write_text(text.replace("decision: int8", "decision: float", 1))
    report = tmp_path / "o.json"
    outcome = cli("optimize", digits, "--calib", calib, "-o", tmp_path / "o.onnx", "--plan", plan,
                  "--json", report, "--samples", 8)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "the plan file says float" in outcome.out
    decisions = [group["decision"] for group in json.loads(report.read_text())["groups"]]
    assert decisions.count("int8") == 8
    assert cli("plan", digits, "-o", digits).code == 1
    assert cli("plan", digits, "-o", plan, "--exclude", "nope").code == 2


def test_compare(cli, digits, quantized, calib):
    common = ("compare", digits, quantized, "--data", calib)
    outcome = cli(*common, "--min-sqnr", 20)
    assert outcome.code == 0 and "logits" in outcome.out and "dB" in outcome.out
    outcome = cli(*common, "--min-sqnr", 90, "--json")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "'logits'" in outcome.err and "90" in outcome.err
    assert 20 < json.loads(outcome.out)["outputs"]["logits"]["sqnr_db"] < 90
    same = cli("compare", digits, digits, "--random-data", "--samples", 2, "--min-sqnr", 90)
    assert same.code == 0 and "identical" in same.out
    assert cli("compare", digits, "nowhere.onnx", "--random-data").code == 1


@pytest.mark.parametrize(
    ("precision", "io_types"), [("int8+bf16", "keep"), ("bf16", "half"), ("fp16", "half")]
)
def test_compare_judges_what_onnxruntime_cannot_run(
    precision, io_types, cli, digits, calib, tmp_path
):
    out = tmp_path / "half.onnx"
    options = ("--precision", precision, "--io-types", io_types, "--samples", 8)
    assert cli("optimize", digits, "--calib", calib, "-o", out, "-q", *options).code == 0
    outcome = cli("compare", digits, out, "--data", calib, "--samples", 8, "--min-sqnr", 25)
    assert outcome.code == 0, outcome.err
    assert "FP32 twin" in outcome.out


@pytest.mark.parametrize("what", ["input", "output"])
def test_compare_refuses_models_of_other_interfaces(what, cli, digits, tmp_path):
    other = onnx.load(str(digits))
    if what == "output":
        other.graph.node[-1].output[0] = other.graph.output[0].name = "scores"
    else:
        other.graph.input[0].name = "scores"
        for node in other.graph.node:
            node.input[:] = ["scores" if name == "input" else name for name in node.input]
    onnx.save(other, str(tmp_path / "other.onnx"))
    outcome = cli("compare", digits, tmp_path / "other.onnx", "--random-data")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "other.onnx" in outcome.err and f"{what}s are scores" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "{calib}", "--shapes", "input:1x1x8x8"], "--shapes is for --random-data"),
        (["--data", "{calib}", "--min-sqnr", "nan"], "--min-sqnr nan: is not a number"),
        (["--random-data", "--samples", str(10**21)], "--samples"),
    ],
)
def test_compare_refuses_options_before_the_work(arguments, said, cli, digits, calib):
    filled = [argument.format(calib=calib) for argument in arguments]
    outcome = cli("compare", digits, digits, *filled)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1 and said in outcome.err


def test_compare_refuses_inputs_of_another_shape(cli, digits):
    other = digits.with_name("digits_vit.onnx")
    outcome = cli("compare", digits, other, "--random-data")
    assert outcome.code == 1 and outcome.err == (
        f"error: {other}: its input 'input' [batch,1,32,32] does not fit that of {digits}, 'input'"
        " [batch,1,8,8]\n"
    )


@pytest.mark.parametrize("command", ["inspect", "plan"])
@pytest.mark.parametrize(
    "option", [("--exclude", "*"), ("--precision", "fp8"), ("--group-precision", "*=float")]
)
def test_decisions_in_a_quantized_file_are_only_read(command, option, cli, quantized, tmp_path):
    output = ["-o", tmp_path / "p.yaml"] if command == "plan" else []
    outcome = cli(command, quantized, *output, *option)
    assert (outcome.code, outcome.out) == (2, "") and not list(tmp_path.iterdir())
    said = f"error: {option[0]}: {quantized} is quantized already, its decisions are only read\n"
    assert outcome.err == said


def _without_tensorrt(monkeypatch, folder):
    """Neither here nor in the builder's process, which gets the same paths."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('no library')")
    monkeypatch.syspath_prepend(str(folder))


def test_without_tensorrt_build_prints_the_line_and_fails(
    cli, quantized, tmp_path, monkeypatch, tmp_path_factory
):
    _without_tensorrt(monkeypatch, tmp_path_factory.mktemp("none"))
    engine = tmp_path / "e.engine"
    outcome = cli("build", quantized, "-o", engine, "--shapes", "input:1x1x8x8:4x1x8x8:8x1x8x8")
    assert outcome.code == 1 and outcome.err.startswith("error: nothing to build an engine with")
    assert outcome.err.count("\n") == 1
    assert outcome.out.startswith("trtexec ") and "--maxShapes=input:8x1x8x8" in outcome.out
    assert not engine.exists()


def test_print_trtexec_is_no_build(cli, quantized, tmp_path):
    outcome = cli("build", quantized, "--print-trtexec", "-o", tmp_path / "e.engine")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("trtexec ") and str(tmp_path / "e.engine") in outcome.out
    assert not list(tmp_path.iterdir())


def test_optimize_build_without_tensorrt_says_so_before_the_work(
    cli, digits, calib, tmp_path, monkeypatch, tmp_path_factory
):
    _without_tensorrt(monkeypatch, tmp_path_factory.mktemp("none"))
    out, report = tmp_path / "o.onnx", tmp_path / "o.json"
    outcome = cli("optimize", digits, "--calib", calib, "-o", out, "--samples", 4,
                  "--build", tmp_path / "e.engine", "--json", report)  # fmt: skip
    assert (outcome.code, outcome.out) == (1, "")
    assert "e.engine: nothing to build" in outcome.err and outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_build_reports_kernels_by_kind(cli, quantized, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    engine, report = tmp_path / "e.engine", tmp_path / "e.json"
    outcome = cli("build", quantized, "-o", engine, "--with", "tensorrt_rtx", "-v",
                  "--json", report)  # fmt: skip
    assert outcome.code == 0 and engine.stat().st_size > 0
    for text in (*KINDS, "8 Int8", "gemm", "built for batch 1", "/layer1/conv2/Conv"):
        assert text in outcome.out
    assert json.loads(report.read_text())["operations"]["conv"] == {"Int8": 8}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--with", "tvm"], 2, "tvm"),
        (["--shapes", "img:1x1x8x8"], 2, "img"),
        (["--sm", "1"], 2, "--sm 1: "),
    ],
)
def test_build_refuses_in_one_line(arguments, code, said, cli, quantized, tmp_path):
    if "--sm" in arguments:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        arguments = [*arguments, "--with", "tensorrt_rtx"]
    outcome = cli("build", quantized, "-o", tmp_path / "e", *arguments)
    assert outcome.code == code and outcome.err.count("\n") == 1 and said in outcome.err
    assert outcome.out == "" and not list(tmp_path.iterdir())
