"""`build` and `report`: engines, trtexec, shapes in both spellings, two engines side by side."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fusewright.cli import edge
from fusewright.cli.shapes import all_shapes
from fusewright.errors import EngineError, UsageError

needs_rtx = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import tensorrt_rtx"], capture_output=True).returncode
    != 0,
    reason="TensorRT-RTX is not installed",
)


@pytest.fixture
def engine(cli, quantized, tmp_path) -> Path:
    out = tmp_path / "e.engine"
    assert cli("build", quantized, "-o", out, "--with", "tensorrt_rtx", "-q").code == 0
    return out


@needs_rtx
def test_an_engine_and_its_report(cli, quantized, engine, tmp_path):
    layers = Path(f"{engine}.layers.json")
    assert sorted(tmp_path.iterdir()) == [engine, layers]
    outcome = cli("report", layers)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("kernels", "ConvBN", "What could be better", "mend: "):
        assert text in outcome.out
    assert "#1 " not in outcome.out
    content = json.loads(layers.read_text())
    full = cli("report", layers, "-v").out
    for kernel in content["kernels"]:
        assert kernel["name"] in full.replace("\n", "")
        assert kernel["groups"] or kernel["nodes"]
    for group in content["groups"]:
        assert group["kernels"] and group["name"] in full
    assert json.loads(cli("report", layers, "--json").out) == content


@needs_rtx
def test_two_engines_side_by_side(cli, digits, engine, tmp_path):
    plain = tmp_path / "plain.engine"
    assert cli("build", digits, "-o", plain, "--with", "tensorrt_rtx", "-q").code == 0
    files = [f"{path}.layers.json" for path in (plain, engine)]
    outcome = cli("report", *files)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("plain.engine", "difference", "outside groups", "Float → Int8"):
        assert text in outcome.out
    compared = json.loads(cli("report", *files, "--json").out)
    assert compared["total"]["first"]["dtypes"] == ["Float"]
    same = cli("report", files[0], files[0])
    assert same.code == 0 and "difference" in same.out and "→" not in same.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.json"], "no.json: cannot be read"),
        (["{model}"], "not a JSON file"),
        (["{other}"], "not a layer file"),
        (["{other}", "{other}", "{other}"], "3 layer files"),
        (["{other}", "--model", "{model}", "--model", "{model}"], "one for each"),
        (["{layers}", "--profile", "{other}"], "not a profile of trtexec"),
        (["{layers}", "--model", "no.onnx"], "no.onnx: no such file"),
    ],
)
def test_report_refuses_in_one_line(arguments, said, cli, quantized, tmp_path):
    other, layers = tmp_path / "other.json", tmp_path / "layers.json"
    other.write_text('{"a": 1}')
    layers.write_text('{"Layers": [{"Name": "a", "Inputs": [], "Outputs": []}]}')
    names = {"model": quantized, "other": other, "layers": layers}
    outcome = cli("report", *(argument.format(**names) for argument in arguments))
    assert outcome.code in (1, 2) and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert said in outcome.err


def test_shapes_in_trtexec_s_spelling(cli, quantized, tmp_path):
    shapes = ["--minShapes", "input:1x1x8x8", "--optShapes", "input:4x1x8x8",
              "--maxShapes", "input:8x1x8x8"]  # fmt: skip
    three = cli("build", quantized, "--print-trtexec", *shapes)
    one = cli("build", quantized, "--print-trtexec", "--shapes", "input:1x1x8x8:4x1x8x8:8x1x8x8")
    assert three.code == 0 and three.out == one.out
    for text in ("--minShapes=input:1x1x8x8", "--maxShapes=input:8x1x8x8"):
        assert text in three.out


def test_a_shape_that_is_left_out_is_its_neighbour_s():
    assert all_shapes(None, (None, "a:2x3,b:4", None))[0] == {
        "a": ((2, 3),) * 3,
        "b": ((4,),) * 3,
    }
    assert all_shapes(None, ("a:1", None, "a:8"))[0] == {"a": ((1,), (8,), (8,))}
    assert all_shapes(None, (None, "'x:0':1x3, y:2", None))[0]["x:0"][1] == (1, 3)
    assert all_shapes(["c:5"], (None, "a:2", None))[0]["c"] == ((5,),) * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minShapes", "input:1x3x8x8"], "--minShapes input:1x3x8x8 does not fit"),
        (["--optShapes", "input:1x1x8x8", "--maxShapes", "input:4x1x8"], "--maxShapes input:4x1x8"),
        (["--optShapes", "img:1x1x8x8"], "--optShapes names 'img'"),
        (["--maxShapes", "input:0x1x8x8"], "--maxShapes input:0x1x8x8 holds no elements"),
        (
            ["--minShapes", "input:4x1x8x8", "--maxShapes", "input:2x1x8x8"],
            "--minShapes input:4x1x8x8, --maxShapes input:2x1x8x8 must be MIN <= OPT <= MAX",
        ),
        (["--shapes", "input:1x1x8x8", "--maxShapes", "input:2x1x8x8"], "--shapes and --maxShapes"),
        (["--optShapes", ""], "--optShapes : is not NAME:1x3x224x224"),
        (["--optShapes", f"input:{10**20}x1x8x8"], "8x8: a dimension is above 2147483647"),
        (["--shapes", f"input:1x1x8x8:1x1x8x8:{2**31}x1x8x8"], "a dimension is above 2147483647"),
    ],
)
def test_the_option_that_was_typed_is_blamed(arguments, said, cli, quantized, tmp_path):
    for more in (["--print-trtexec"], ["-o", tmp_path / "e", "--with", "tensorrt_rtx"]):
        outcome = cli("build", quantized, *more, *arguments)
        assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
        assert said in outcome.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ranges", "best", "said"),
    [
        (None, "a", "--optShapes a: is not NAME:1x3"),
        (None, "a:1x", "is not NAME"),
        (None, "a:1,", None),
        (None, "a:1,a:2", "names 'a' twice"),
        (["a:1"], "a:2", "both name 'a'"),
    ],
)
def test_shapes_that_cannot_be_read(ranges, best, said):
    if said is None:
        assert all_shapes(ranges, (None, best, None))
        return
    with pytest.raises(UsageError, match=said):
        all_shapes(ranges, (None, best, None))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trtexec-version", "9"], "choose 8.6, 10, 11"),
        (["--trtexec-version", ""], "choose 8.6, 10, 11"),
        (["--times"], "--times cannot be added"),
        (["--json", "never.json"], "--json cannot be added"),
        (["--with", "tensorrt_rtx"], "--with cannot be added"),
        (["--trtexec-version", "8.6"], "--flat"),
    ],
)
def test_print_trtexec_refuses_in_one_line(arguments, said, cli, quantized):
    outcome = cli("build", quantized, "--print-trtexec", *arguments)
    assert outcome.code in (1, 2) and outcome.out == "" and outcome.err.count("\n") == 1
    assert said in outcome.err


def test_print_trtexec_10(cli, quantized):
    assert (
        "--stronglyTyped"
        in cli("build", quantized, "--print-trtexec", "--trtexec-version", "10").out
    )


def test_trtexec_that_is_not_there(cli, quantized, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--with", "trtexec")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "not on the PATH" in outcome.err and not list(tmp_path.iterdir())


def test_times_need_trtexec(cli, quantized, tmp_path):
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--times")
    assert outcome.code == 2 and "--with trtexec" in outcome.err


def test_a_trtexec_version_without_its_line_is_refused(cli, quantized, tmp_path):
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--trtexec-version", "10")
    assert outcome.code == 2 and "--print-trtexec" in outcome.err and not list(tmp_path.iterdir())


@needs_rtx
def test_a_timing_cache_is_not_for_rtx(cli, quantized, tmp_path):
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--with", "tensorrt_rtx",
                  "--timing-cache", tmp_path / "t.cache")  # fmt: skip
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--timing-cache: tensorrt_rtx" in outcome.err and not list(tmp_path.iterdir())


@needs_rtx
@pytest.mark.parametrize("sm", ["0", "-5", "90", "890"])
def test_an_sm_that_is_none(sm, cli, quantized, tmp_path):
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--with", "tensorrt_rtx", "--sm", sm)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: --sm {sm}: tensorrt_rtx ")
    assert "builds for SM 75, 80, 86, 89" in outcome.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [("--print-trtexec",), ("--with", "trtexec")])
def test_trtexec_takes_no_sm(how, cli, quantized, tmp_path):
    outcome = cli("build", quantized, "-o", tmp_path / "e", "--sm", "89", *how)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: --sm: trtexec builds for the GPU it runs on\n"


@needs_rtx
def test_every_refused_node_is_named(cli, tmp_path):
    nodes = [helper.make_node("Mystery", ["x"], ["a"], "first", domain="odd"),
             helper.make_node("Riddle", ["a"], ["y"], "second", domain="odd")]  # fmt: skip
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("odd", 1)]
    model = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), model)
    outcome = cli("build", model, "-o", tmp_path / "e", "--with", "tensorrt_rtx")
    lines = outcome.err.splitlines()
    assert outcome.code == 1 and "(and 1 more)" in lines[0]
    assert re.match(r"  node 'first' \(Mystery\): it has no such operator", lines[1])
    assert re.match(r"  node 'second' \(Riddle\)", lines[2]) and len(lines) == 3
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_builds(number, quantized, tmp_path):
    """Ctrl-C in a terminal reaches the builder's process too; both end, and leave nothing."""
    package = tmp_path / "packages" / "tensorrt_rtx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import os, pathlib, time\n__version__ = '9.9'\nclass ILogger: pass\n"
        "def Builder(logger):\n"
        "    if os.environ.get('MARK'):\n"
        "        pathlib.Path(os.environ['MARK']).write_text(str(os.getpid()))\n"
        "        time.sleep(60)\n"
    )
    out, mark = tmp_path / "out", tmp_path / "mark"
    out.mkdir()
    command = [sys.executable, "-m", "fusewright", "build", quantized, "-o", out / "e"]
    paths = os.pathsep.join([str(package.parent), *sys.path])
    process = subprocess.Popen([*map(str, command), "--with", "tensorrt_rtx"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": paths, "MARK": str(mark)},
                               start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 30
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.decode().splitlines() == [
        "interrupted" if number == signal.SIGINT else "terminated"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert not list(out.iterdir())


def test_a_signal_while_a_module_loads_is_an_interruption(cli, monkeypatch):
    """C++ modules turn what is raised while they load into an ImportError."""

    def broken(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except edge.Stopped:
            raise EngineError("tensorrt_rtx does not load") from None

    monkeypatch.setattr(edge, "_invoke", broken)
    outcome = cli("build", "m.onnx")
    assert (outcome.code, outcome.err) == (143, "terminated\n")
