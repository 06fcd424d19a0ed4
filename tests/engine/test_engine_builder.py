"""The builder's switches, on a stand-in for the TensorRT of each version, and on the real RTX."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_models
import onnx
import pytest

from fusewright.engine.backend import Backend, BuildLog
from fusewright.engine.build import BuildOptions, build
from fusewright.engine.builder import Builder, BuildRequest
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
        self.inputs: list[SimpleNamespace] = []
        self.profile: list[tuple[object, ...]] = []

    class ILogger:
        pass

    def Builder(self, _: Any) -> Any:
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: self._config(),
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda *given: self.profile.append(("shape", *given)),
                set_shape_input=lambda *given: self.profile.append(("values", *given)),
            ),
            build_serialized_network=lambda network, config: b"engine",
        )

    def OnnxParser(self, *_: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)

    def _network(self, flags: int) -> object:
        self.network_flags = flags
        return SimpleNamespace(num_inputs=len(self.inputs), get_input=lambda i: self.inputs[i])

    def _config(self) -> Any:
        return SimpleNamespace(
            set_flag=lambda flag: self.told.append(flag.name),
            create_timing_cache=self._cache,
            set_timing_cache=lambda cache, ignore: self.cache_fits,
            add_optimization_profile=lambda profile: None,
        )

    def _cache(self, contents: bytes) -> Any:
        self.cache = contents
        return SimpleNamespace(serialize=lambda: b"new times")


def _run(trt: StandIn, name: str = "tensorrt", **fields: Any) -> Any:
    backend = Backend(name, "X", trt)  # type: ignore[arg-type]
    request = BuildRequest(Path("m.onnx"), "m.onnx", **{"profiles": {}, **fields})
    builder = Builder(backend, BuildLog(trt))  # type: ignore[arg-type]
    builder.check(request)
    return builder.run(request, lambda *told: None)


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


def _input(name: str, *shape: int, sizes: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, is_shape_tensor=sizes)


def test_an_input_that_holds_sizes_gets_values() -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    trt.inputs = [_input("x", -1, 3), _input("size", 2, sizes=True), _input("y", 4)]
    shapes, values = ((1, 3), (2, 3), (4, 3)), ((8, 8), (16, 16), (64, 64))
    _run(trt, profiles={"x": shapes, "size": values})
    assert trt.profile == [("shape", "x", *shapes), ("values", "size", *values)]


@pytest.mark.parametrize(("shape", "example"), [((2,), "1x1:64x64:256x256"), ((), "1:64:256")])
def test_sizes_that_are_not_declared(shape: tuple[int, ...], example: str) -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    trt.inputs = [_input("size", *shape, sizes=True)]
    with pytest.raises(EngineError, match=rf"'size' .* holds sizes .*{example}"):
        _run(trt)


def test_sizes_that_the_samples_hold() -> None:
    """They are taken where shapes depend on the input alone, and where nothing is declared."""
    trt = StandIn(NETWORK_10, FLAGS_10)
    trt.inputs = [_input("size", 2, sizes=True), _input("other", 1, sizes=True), _input("ids", 2)]
    seen = dict.fromkeys(("size", "other", "ids"), ((4,), (5,), (6,)))
    built = _run(trt, profiles={"other": ((1,), (2,), (3,))}, sizes=seen)
    assert built.sizes == ("size",)
    assert trt.profile == [("values", "size", *seen["size"]), ("values", "other", (1,), (2,), (3,))]


def test_sizes_of_an_input_that_holds_none() -> None:
    trt = StandIn(NETWORK_10, FLAGS_10)
    trt.inputs = [_input("ids", 2)]
    with pytest.raises(UsageError, match=r"'ids' \(5x6\), and no shape depends"):
        _run(trt, profiles={"ids": ((5, 6),) * 3})
    _run(trt, profiles={"ids": ((2,),) * 3})  # its shape


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
