"""Bad input through the real command line: exit code, one line, culprit, nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

Arguments = list[object]
Case = Callable[[Path, Path, Path], Arguments]
OUT = "out.onnx"


def _digits_on(name: str, array: np.ndarray, key: str = "input") -> Case:
    def case(folder: Path, digits: Path, calib: Path) -> Arguments:
        np.savez(folder / name, **{key: array})
        return [digits, "--calib", folder / name]

    return case


def _file(name: str, content: bytes) -> Case:
    def case(folder: Path, digits: Path, calib: Path) -> Arguments:
        (folder / name).write_bytes(content)
        return [folder / name, "--calib", calib]

    return case


def _truncated(folder: Path, digits: Path, calib: Path) -> Arguments:
    (folder / "cut.onnx").write_bytes(digits.read_bytes()[:-5000])
    return [folder / "cut.onnx", "--calib", calib]


def _without_external(folder: Path, digits: Path, calib: Path) -> Arguments:
    model = onnx.load(str(digits))
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, str(folder / "ext.onnx"))
    (folder / "weights.bin").unlink()
    return [folder / "ext.onnx", "--calib", calib]


def _short_external(folder: Path, digits: Path, calib: Path) -> Arguments:
    arguments = _without_external(folder, digits, calib)
    (folder / "weights.bin").write_bytes(b"\0" * 100)
    return arguments


def _with_nan(folder: Path, digits: Path, calib: Path) -> Arguments:
    array = np.zeros((8, 1, 8, 8), np.float32)
    array[6, 0, 3, 3] = np.nan
    return _digits_on("nan.npz", array)(folder, digits, calib)


def _plain(*more: object) -> Case:
    return lambda folder, digits, calib: [digits, "--calib", calib, *more]


def _dynamic(folder: Path, digits: Path) -> Path:
    model = onnx.load(str(digits))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    onnx.save(model, str(folder / "dynamic.onnx"))
    return folder / "dynamic.onnx"


def _data(text: str) -> Case:
    return lambda folder, digits, calib: [digits, "--calib", text]


def _empty_folder(folder: Path, digits: Path, calib: Path) -> Arguments:
    (folder / "empty").mkdir()
    return [digits, "--calib", folder / "empty"]


GOOD = np.zeros((8, 1, 8, 8), np.float32)
BAD_CASES: dict[str, tuple[Case, int, tuple[str, ...]]] = {
    "a text file": (_file("notes.onnx", b"hello, not a model\n"), 1, ("notes.onnx", "not an ONNX")),
    "an empty file": (_file("empty.onnx", b""), 1, ("empty.onnx", "not an ONNX")),
    "a zip file": (_file("zip.onnx", b"PK\3\4" + bytes(200)), 1, ("zip.onnx", "not an ONNX")),
    "a truncated model": (_truncated, 1, ("cut.onnx", "truncated")),
    "external data missing": (_without_external, 1, ("ext.onnx", "weights.bin", "missing")),
    "external data short": (_short_external, 1, ("ext.onnx", "weights.bin", "too short")),
    "no such model": (lambda f, d, c: [f / "no.onnx", "--calib", c], 1, ("no.onnx", "no such")),
    "a folder as model": (lambda f, d, c: [f, "--calib", c], 1, ("is a folder",)),
    "a device as model": (lambda f, d, c: ["/dev/null", "--calib", c], 1, ("is no plain file",)),
    "no data": (lambda f, d, c: [d], 2, ("--calib", "--random-data")),
    "both data": (_plain("--random-data"), 2, ("--calib", "--random-data")),
    "no such data": (_data("nowhere.npz"), 1, ("nowhere.npz", "no such")),
    "empty data path": (_data(""), 1, ("--calib", "empty")),
    "an empty folder": (_empty_folder, 1, ("empty", "no .npz")),
    "no such reader": (_data("no_such_module:feeds"), 1, ("no_such_module",)),
    "wrong name": (_digits_on("d.npz", GOOD, "image"), 1, ("d.npz", "'image'", "'input'")),
    "wrong shape": (_digits_on("d.npz", GOOD[:, :, :7]), 1, ("d.npz", "axis 2 is 7, not 8")),
    "wrong rank": (_digits_on("d.npz", GOOD[:, 0]), 1, ("d.npz", "rank 3")),
    "wrong dtype": (_digits_on("d.npz", GOOD.astype(np.int64)), 1, ("d.npz", "int64", "float32")),
    "objects": (_digits_on("d.npz", np.array([None])), 1, ("d.npz", "object")),
    "no rows": (_digits_on("d.npz", GOOD[:0]), 1, ("d.npz", "no samples")),
    "NaN late in the data": (_with_nan, 1, ("nan.npz", "sample 6", "NaN")),
    "a pattern for nothing": (_plain("--exclude", "nope*"), 2, ("--exclude", "nope*")),
    "a type for nothing": (_plain("--include", "op:Einsum"), 2, ("--include", "op:Einsum")),
    "method": (_plain("--method", "magic"), 2, ("magic", "entropy")),
    "precision": (_plain("--precision", "int3"), 2, ("int3",)),
    "target": (_plain("--target", "t5"), 2, ("t5", "tensorrt-8.6", "rtx4090")),
    "gpu of another engine": (_plain("--target", "rtx:h100"), 2, ("rtx:h100", "89")),
    "precision of another target": (
        _plain("--target", "t4", "--precision", "fp8"),
        2,
        ("fp8", "SM 75", "INT8"),
    ),
    "group precision for nothing": (
        _plain("--group-precision", "nope*=fp8"),
        2,
        ("--group-precision", "nope*=fp8"),
    ),
    "group precision of no format": (
        _plain("--group-precision", "op:Conv=FP9"),
        2,
        ("op:Conv=FP9", "int8, fp8, int4, nvfp4, mxfp8, float"),
    ),
    "group precision that no group can have": (
        _plain("--group-precision", "op:Conv=int4"),
        2,
        ("op:Conv=int4", "INT4"),
    ),
    "group precision that the target lacks": (
        _plain("--target", "orin", "--group-precision", "op:Conv=fp8"),
        2,
        ("SM 87", "FP8"),
    ),
    "plan and group precision": (
        _plain("--plan", "p.yaml", "--group-precision", "*=fp8"),
        2,
        ("--plan", "--group-precision"),
    ),
    "int4 method": (_plain("--precision", "int4", "--int4-method", "x"), 2, ("'x'", "rtn, awq")),
    "int4 method of int8": (_plain("--int4-method", "awq"), 2, ("--int4-method", "int4+fp16")),
    "block size": (_plain("--precision", "int4", "--block-size", "48"), 2, ("48", "32, 64, 128")),
    "block size of int8": (_plain("--block-size", "64"), 2, ("--block-size", "int4+fp16")),
    "block size of nvfp4": (
        _plain("--precision", "nvfp4", "--block-size", "32"),
        2,
        ("--block-size is for INT4",),
    ),
    "smooth of fp8": (
        _plain("--precision", "fp8", "--smooth", "0.5"),
        2,
        ("--smooth is for INT8", "int8+fp16"),
    ),
    "channels of nvfp4": (
        _plain("--precision", "nvfp4", "--per-tensor-weights"),
        2,
        ("--per-tensor-weights is for INT8, FP8",),
    ),
    "residual of mxfp8": (
        _plain("--precision", "mxfp8+fp16", "--int8-residual"),
        2,
        ("--int8-residual is for INT8",),
    ),
    "percentile of mxfp8": (
        _plain("--precision", "mxfp8", "--method", "percentile", "--percentile", "99"),
        2,
        ("--percentile is for INT8, FP8, NVFP4",),
    ),
    "smooth": (_plain("--smooth", "1.5"), 2, ("1.5", "off, auto")),
    "search": (_plain("--search", "all"), 2, ("all", "off, plan, latency")),
    "search without pairs": (_plain("--search", "plan", "--precision", "fp32"), 2, ("fp32",)),
    "search budget alone": (_plain("--search-budget", "9"), 2, ("--search-budget", "--search")),
    "search budget": (_plain("--search", "plan", "--search-budget", "x"), 2, ("--search-budget",)),
    "a precision in capitals": (_plain("--precision", "INT3"), 2, ("INT3", "int8+fp16")),
    "a half rest that the target cannot read": (
        _plain("--target", "tensorrt-8.6", "--precision", "int8+fp16"),
        2,
        ("TensorRT 8.6", "opset 17", "take int8"),
    ),
    "a rest of another target": (_plain("--target", "t4", "--precision", "bf16"), 2, ("BF16",)),
    "a GPU newer than the engine": (_plain("--target", "tensorrt-8.6:b200"), 2, ("SM 100",)),
    "an empty batch": (_plain("--shapes", "input:0x1x8x8"), 2, ("input:0x1x8x8", "no elements")),
    "shapes out of order": (
        _plain("--shapes", "input:4x1x8x8:2x1x8x8:8x1x8x8"),
        2,
        ("MIN <= OPT <= MAX",),
    ),
    "samples": (_plain("--samples", "0"), 2, ("--samples",)),
    "more samples than can be": (_plain("--samples", str(10**21)), 2, ("--samples",)),
    "samples not a number": (_plain("--samples", "few"), 2, ("--samples", "integer")),
    "verify samples": (_plain("--verify-samples", "0"), 2, ("0",)),
    "percentile alone": (_plain("--percentile", "99"), 2, ("--percentile",)),
    "percentile": (_plain("--method", "percentile", "--percentile", "101"), 2, ("101",)),
    "shapes": (_plain("--shapes", "input=1x1x8x8"), 2, ("--shapes", "input=1x1x8x8")),
    "shapes twice": (
        _plain("--shapes", "input:1x1x8x8", "--shapes", "input:2x1x8x8"),
        2,
        ("--shapes", "'input'", "twice"),
    ),
    "shapes of no input": (_plain("--shapes", "img:1x1x8x8"), 2, ("img", "input")),
    "shapes that do not fit": (_plain("--shapes", "input:1x3x8x8"), 2, ("input:1x3x8x8",)),
    "random shapes of no input": (
        lambda f, d, c: [d, "--random-data", "--shapes", "img:1x1x8x8"],
        2,
        ("img", "input"),
    ),
    "random data without a shape": (
        lambda f, d, c: [_dynamic(f, d), "--random-data"],
        1,
        ("'input'", "axis 2", "--shapes input:"),
    ),
    "no random samples": (lambda f, d, c: [d, "--random-data", "--samples", 0], 2, ("--samples",)),
    "images in an npz": (_plain("--mean", "0.5"), 2, ("--mean", "calib.npz")),
    "verbose and quiet": (_plain("-v", "-q"), 2, ("--verbose", "--quiet")),
    "an unknown option": (_plain("--fast"), 2, ("--fast", "--help")),
    "plan and exclude": (_plain("--plan", "p.yaml", "--exclude", "*"), 2, ("--plan", "--exclude")),
    "no such plan": (_plain("--plan", "p.yaml"), 1, ("p.yaml", "No such file")),
}


@pytest.mark.parametrize("case", BAD_CASES)
def test_optimize_refuses_in_one_line(case, cli, digits, calib, tmp_path):
    make, code, culprits = BAD_CASES[case]
    arguments = make(tmp_path, digits, calib)
    before = sorted(tmp_path.iterdir())
    outcome = cli("optimize", "-o", tmp_path / OUT, "-q", *arguments)
    assert_refused(outcome, code, *culprits)
    assert sorted(tmp_path.iterdir()) == before


def assert_refused(outcome, code, *culprits):
    assert outcome.code == code, outcome
    lines = [line for line in outcome.err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    assert "a bug in Fusewright" not in outcome.err and "Traceback" not in outcome.err
    assert outcome.out == ""
    for culprit in culprits:
        assert culprit in lines[0]


def test_a_quantized_model_is_refused(cli, quantized, calib, tmp_path):
    outcome = cli("optimize", quantized, "--calib", calib, "-o", tmp_path / OUT, "-q")
    assert_refused(outcome, 1, str(quantized), "quantized already")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["same", "symlink", "hard link", "detour"])
def test_the_input_is_never_the_output(how, cli, digits, calib, tmp_path):
    model = tmp_path / "model.onnx"
    shutil.copy(digits, model)
    out = tmp_path / "other.onnx"
    if how == "symlink":
        out.symlink_to(model)
    elif how == "hard link":
        out.hardlink_to(model)
    else:
        (tmp_path / "sub").mkdir()
        out = model if how == "same" else tmp_path / "sub" / ".." / "model.onnx"
    outcome = cli("optimize", model, "--calib", calib, "-o", out, "-q")
    assert_refused(outcome, 1, str(out), "input")
    assert model.read_bytes() == digits.read_bytes()


OUTPUT_CASES = {
    "folder missing": (["-o", "{0}/no/out.onnx"], "no folder"),
    "a folder": (["-o", "{0}"], "is a folder"),
    "a device": (["-o", "/dev/null"], "not a plain file"),
    "the data": (["-o", "{0}/calib.npz"], "calibration data"),
    "json in a missing folder": (["-o", "{0}/out.onnx", "--json", "{0}/no/r.json"], "--json"),
    "json over the input": (["-o", "{0}/out.onnx", "--json", "{0}/model.onnx"], "input file"),
    "json over the output": (["-o", "{0}/out.onnx", "--json", "{0}/out.onnx"], "--output"),
    "engine over the output": (["-o", "{0}/out.onnx", "--build", "{0}/out.onnx"], "--output"),
    "json over the engine's report": (
        ["-o", "{0}/out.onnx", "--build", "{0}/e", "--json", "{0}/e.layers.json"],
        "--json",
    ),
    "engine in a missing folder": (["-o", "{0}/out.onnx", "--build", "{0}/no/e"], "--build"),
}


@pytest.mark.parametrize("case", OUTPUT_CASES)
def test_an_output_that_cannot_be_is_found_before_the_work(case, cli, digits, calib, tmp_path):
    options, culprit = OUTPUT_CASES[case]
    model, data = tmp_path / "model.onnx", tmp_path / "calib.npz"
    shutil.copy(digits, model)
    shutil.copy(calib, data)
    filled = [option.format(tmp_path) for option in options]
    # Not quiet: a stage line would show that work had begun.
    assert_refused(cli("optimize", model, "--calib", data, *filled), 1, culprit)
    assert sorted(tmp_path.iterdir()) == [data, model]
    assert model.read_bytes() == digits.read_bytes()


def test_a_failure_leaves_an_older_output_as_it_was(cli, digits, tmp_path):
    out = tmp_path / OUT
    out.write_bytes(b"older")
    array = np.full((8, 1, 8, 8), np.inf, np.float32)
    np.save(tmp_path / "d.npy", array)
    outcome = cli("optimize", digits, "--calib", tmp_path / "d.npy", "-o", out, "-q")
    assert_refused(outcome, 1, "d.npy", "Inf")
    assert out.read_bytes() == b"older"


def test_a_precision_without_pairs_and_a_plan_with_some(cli, digits, calib, tmp_path):
    plan = tmp_path / "plan.yaml"
    assert cli("plan", digits, "-o", plan, "-q").code == 0
    outcome = cli("optimize", digits, "--calib", calib, "-o", tmp_path / OUT, "-q",
                  "--plan", plan, "--precision", "fp16")  # fmt: skip
    assert_refused(outcome, 2, str(plan), "/conv1/Conv", "int8", "fp16")
    assert list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize("command", ["inspect", "plan"])
@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        (("--precision", "int3"), ("int3",)),
        (("--target", "t5"), ("t5", "rtx4090")),
        (("--target", "t4", "--precision", "fp8"), ("SM 75", "FP8")),
        (("--group-precision", "op:Conv"), ("op:Conv", "PATTERN=FORMAT")),
        (("--group-precision", "nope=fp8"), ("nope=fp8", "matches no group")),
        (("--exclude", "nope"), ("--exclude", "nope")),
        (("--include", "nope"), ("--include", "nope")),
    ],
)
def test_looking_refuses_what_optimize_refuses(command, options, culprits, cli, digits, tmp_path):
    output = ["-o", tmp_path / "plan.yaml"] if command == "plan" else []
    assert_refused(cli(command, digits, *output, *options), 2, *culprits)
    assert not list(tmp_path.iterdir())


PLAN_EDITS = {
    "another model": (("sha256: ", "sha256: 00"), "another model"),
    "an unknown group": (("name: /conv1/Conv", "name: /conv9/Conv"), "/conv9/Conv"),
    "an unknown decision": (("decision: int8", "decision: int7"), "int7"),
    "an impossible decision": (("decision: float", "decision: int8"), "/avgpool/GlobalAveragePool"),
    "not YAML": (("groups:", "groups: [}"), "not YAML"),
    "no groups": (("groups:", "clusters:"), "not a Fusewright plan"),
}


@pytest.mark.parametrize("case", PLAN_EDITS)
def test_a_plan_that_does_not_fit_is_refused(case, cli, digits, calib, tmp_path):
    (old, new), culprit = PLAN_EDITS[case]
    plan = tmp_path / "plan.yaml"
    assert cli("plan", digits, "-o", plan, "-q").code == 0
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new, 1))
    outcome = cli("optimize", digits, "--calib", calib, "-o", tmp_path / OUT, "--plan", plan, "-q")
    assert_refused(outcome, 1, str(plan), culprit)
    assert list(tmp_path.iterdir()) == [plan]
