"""The builder's process: crashes are a line, it is used again, and ends with who started it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import engine_models
import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_standin import write_tensorrt

from fusewright.engine.build import BuildOptions, BuildPlace, build
from fusewright.engine.process import BuilderProcess
from fusewright.errors import EngineError

RTX = BuildOptions("tensorrt_rtx")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "packages").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    (tmp_path / "work").mkdir()
    onnx.save(engine_models.one_conv(), tmp_path / "work" / "m.onnx")
    return tmp_path / "work" / "m.onnx"


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(
    ("where", "body", "said"),
    [
        ("parse", SEGFAULT, r"m\.onnx: tensorrt_rtx 9\.9 crashed \(SIGSEGV\) while it parsed"),
        ("build", SEGFAULT, r"crashed \(SIGSEGV\) while it built the engine$"),
        ("build", "os.abort()", r"crashed \(SIGABRT\)"),
        ("build", "os._exit(3)", r"crashed \(exit code 3\)"),
        ("build", "raise ValueError('odd')", r"crashed \(ValueError: odd\)"),
        ("build", "return None", r"tensorrt_rtx 9\.9 cannot build .*m\.onnx: no reason given"),
    ],
)
def test_a_crash_is_one_line_and_leaves_nothing(
    where: str, body: str, said: str, model: Path, tmp_path: Path
) -> None:
    write_tensorrt(tmp_path / "packages", **{where: body})
    with pytest.raises(EngineError, match=said) as error:
        build(model, model.parent / "e", RTX)
    assert "\n" not in str(error.value)
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def test_one_process_builds_again_and_after_a_crash(model: Path, tmp_path: Path) -> None:
    package = write_tensorrt(
        tmp_path / "packages",
        "crash = HERE / 'crash'\n        if crash.exists():\n            os.abort()\n"
        "        return b'engine'",
    )
    process = BuilderProcess()
    place, pids = BuildPlace(process), []
    for crashes in (False, False, True, False):
        (package / "crash").write_text("") if crashes else (package / "crash").unlink(True)
        if crashes:
            with pytest.raises(EngineError, match="SIGABRT"):
                build(model, None, RTX, place=place)
        else:
            report = build(model, None, RTX, place=place)
            assert report.engine_bytes == 6 and len(report.kernels) == 1
        pids.append(int((package / "pid").read_text()))
    assert pids[0] == pids[1] == pids[2] != pids[3]
    process.close()
    assert not _is_there(pids[3])


def test_the_process_goes_with_who_holds_it(model: Path, tmp_path: Path) -> None:
    package = write_tensorrt(tmp_path / "packages")
    place = BuildPlace(BuilderProcess())
    build(model, None, RTX, place=place)
    pid = int((package / "pid").read_text())
    assert _is_there(pid)
    del place
    assert not _is_there(pid)


class Interrupted(BaseException):
    """What a signal raises, as Ctrl-C does."""


def test_an_interruption_ends_the_process_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    package = write_tensorrt(tmp_path / "packages", "time.sleep(60)")

    def interrupted(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)  # until it has begun to build
        with pytest.raises(Interrupted):
            while True:
                try:
                    build(model, model.parent / "e", RTX)
                except Interrupted:
                    if (package / "pid").exists():
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        raise
                    signal.setitimer(signal.ITIMER_REAL, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 10
    while _is_there(int((package / "pid").read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_there(int((package / "pid").read_text()))
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def test_an_attention_that_crashes_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, 4, 32, 64]) for n in "xy"]
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], "core")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match=r"crashed .*'core' \(Attention\) reads one tensor"):
        build(tmp_path / "m.onnx", tmp_path / "e", RTX)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
