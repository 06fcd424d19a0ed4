"""The builder's switches, on a stand-in for the TensorRT of each version, and on the real RTX."""

from __future__ import annotations

import enum
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_models
import onnx
import pytest

from fusewright.engine.backend import Backend, BuildLog
from fusewright.engine.build import BuildOptions, build
from fusewright.engine.builder import Builder, BuildRequest
from fusewright.engine.interrupt import run_stoppable
from fusewright.engine.parse_errors import explained
from fusewright.errors import EngineError, UsageError

NETWORK_8 = ("EXPLICIT_BATCH",)
NETWORK_10 = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
FLAGS_8 = ("FP16", "INT8", "REFIT")
FLAGS_10 = ("FP16", "INT8", "REFIT", "STRIP_PLAN")


class StandIn:
    """As much of TensorRT's Python module as the builder uses; records what it is told."""

    def __init__(self, network: tuple[str, ...], flags: tuple[str, ...]) -> None:
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", network, start=0)
        self.BuilderFlag = enum.IntEnum("BuilderFlag", flags, start=0)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.network_flags = 0
        self.told: list[str] = []
        self.cache: bytes | None = None
        self.cache_fits = True

    class ILogger:
        pass

    def Builder(self, _: Any) -> Any:
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: self._config(),
            build_serialized_network=lambda network, config: b"engine",
        )

    def OnnxParser(self, *_: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)

    def _network(self, flags: int) -> object:
        self.network_flags = flags
        return object()

    def _config(self) -> Any:
        return SimpleNamespace(
            set_flag=lambda flag: self.told.append(flag.name),
            create_timing_cache=self._cache,
            set_timing_cache=lambda cache, ignore: self.cache_fits,
        )

    def _cache(self, contents: bytes) -> Any:
        self.cache = contents
        return SimpleNamespace(serialize=lambda: b"new times")


def _run(trt: StandIn, name: str = "tensorrt", **fields: Any) -> Any:
    backend = Backend(name, "X", trt)  # type: ignore[arg-type]
    request = BuildRequest(Path("m.onnx"), {}, **fields)
    builder = Builder(backend, BuildLog(trt))  # type: ignore[arg-type]
    builder.check(request)
    return builder.run(request, threading.Event(), None)


def test_8_6_has_no_strong_typing_and_gets_the_formats_of_the_file() -> None:
    trt = StandIn(NETWORK_8, FLAGS_8)
    assert _run(trt, formats=frozenset({"int8", "fp16"})).engine == b"engine"
    assert trt.network_flags == 1 << 0 and trt.told == ["FP16", "INT8"]
    with pytest.raises(EngineError, match="FP8 in the file: tensorrt X has no such thing"):
        _run(trt, formats=frozenset({"fp8"}))


def test_10_is_strongly_typed_and_gets_no_formats() -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    _run(trt, formats=frozenset({"int8", "fp8"}))
    assert trt.network_flags == 1 << 1 and trt.told == []


def test_refit_and_strip() -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    _run(trt, refit=True, strip_weights=True)
    assert trt.told == ["REFIT", "STRIP_PLAN"]
    with pytest.raises(EngineError, match="--strip-weights: tensorrt X has no such thing"):
        _run(StandIn(NETWORK_8, FLAGS_8), strip_weights=True)


def test_a_timing_cache_comes_and_goes() -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    assert _run(trt, timing_cache=b"old times").timing_cache == b"new times"
    assert trt.cache == b"old times"
    assert _run(StandIn(NETWORK_10, FLAGS_10)).timing_cache is None
    trt.cache_fits = False
    with pytest.raises(EngineError, match="cannot use this timing cache"):
        _run(trt, timing_cache=b"another's")


def test_rtx_has_no_timing_cache() -> None:
    with pytest.raises(UsageError, match="--timing-cache: tensorrt_rtx X has none"):
        _run(StandIn(NETWORK_10, FLAGS_10), "tensorrt_rtx", timing_cache=b"")


@pytest.fixture
def rtx_model(tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    onnx.save(engine_models.one_conv(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_progress_of_a_real_build(rtx_model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build(rtx_model, None, BuildOptions("tensorrt_rtx"), lambda *step: seen.append(step))
    assert seen and all(0 <= done <= steps for _, done, steps in seen)
    ended = {phase for phase, done, steps in seen if done == steps}
    assert ended == {phase for phase, _, _ in seen}


@pytest.mark.parametrize("option", ["refit", "strip_weights"])
def test_refitting_with_rtx_needs_a_gpu(option: str, rtx_model: Path, tmp_path: Path) -> None:
    """It compiles such an engine for the GPU at once, so the CPU alone cannot."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="needs an NVIDIA GPU and driver") as caught:
        build(rtx_model, tmp_path / "e", BuildOptions("tensorrt_rtx", **{option: True}))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Interrupted(BaseException):
    """What a signal raises, as Ctrl-C does."""


@contextmanager
def raising(number: int) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Interrupted

    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_build_that_is_stopped_leaves_nothing(rtx_model: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def begun(phase: str, *_: int) -> None:
        told.append(phase)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGALRM)

    with raising(signal.SIGALRM), pytest.raises(Interrupted):
        build(rtx_model, tmp_path / "e", BuildOptions("tensorrt_rtx"), begun)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_work_is_asked_to_stop_and_waited_for() -> None:
    ended = threading.Event()

    def work(stop: threading.Event) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert stop.wait(10)
        time.sleep(0.2)
        ended.set()

    with raising(signal.SIGALRM), pytest.raises(Interrupted):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        run_stoppable(work)
    assert ended.is_set()


def test_work_returns_and_raises() -> None:
    assert run_stoppable(lambda stop: stop.is_set()) is False

    def fail(stop: threading.Event) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stoppable(fail)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Assertion failed: false", "no such operator"),
        (
            "creator && x: NonZero plugin creator version 1 was not found in plugin registry.",
            "oper",
        ),
        (
            "(scaleAllPositive || allowNegativeScale): Scale coefficients must all be positive",
            "6e-8",
        ),
        ("Error Code 4: (b: input has type Int32 but must have type FP8, Int8)", "without biases"),
        ("(Quantized constant (w_q) is only allowed before DQ or PLUGIN_V2", "'w_q' is stored"),
        (
            "conv: `input` and `bias` must be of same type. `input` is of type Half but `bias` is"
            " of type Float. In validateTypes at /_src/x.cpp:110)",
            "types, Half and Float; strong typing",
        ),
        ("A new\n  message", "A new message"),
        ("Bad thing. In check at /_src/a.cpp:1", "Bad thing."),
    ],
)
def test_known_messages_are_explained(said: str, meaning: str) -> None:
    assert meaning in explained(said)
