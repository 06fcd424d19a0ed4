"""The trtexec line."""

from __future__ import annotations

import shlex
from pathlib import Path

import engine_models
import pytest

from fusewright.engine.trtexec import (
    TrtexecOptions,
    check_version,
    shell_line,
    trtexec_command,
)
from fusewright.errors import EngineError, UsageError

MODEL = Path("my models/net.onnx")


def test_static_model() -> None:
    assert trtexec_command(MODEL) == [
        "trtexec",
        "--onnx=my models/net.onnx",
        "--saveEngine=my models/net.engine",
    ]


def test_version_10_needs_strong_typing_said() -> None:
    assert "--stronglyTyped" in trtexec_command(MODEL, options=TrtexecOptions(version="10"))
    assert "--stronglyTyped" not in trtexec_command(MODEL, options=TrtexecOptions(version="11"))


def test_version_8_6_is_allowed_the_formats_of_the_file() -> None:
    formats = frozenset({"int8", "fp16"})
    command = trtexec_command(MODEL, options=TrtexecOptions(version="8.6", formats=formats))
    assert command[-2:] == ["--fp16", "--int8"]
    for version in ("10", "11"):
        options = TrtexecOptions(version=version, formats=formats)
        assert not {"--fp16", "--int8"} & set(trtexec_command(MODEL, options=options))
    with pytest.raises(EngineError, match=r"8\.6 has no FP8"):
        options = TrtexecOptions(version="8.6", formats=frozenset({"int8", "fp8"}))
        trtexec_command(MODEL, options=options)


def test_versions_and_options_there_are_not() -> None:
    with pytest.raises(UsageError, match=r"'9': choose 8\.6, 10, 11"):
        trtexec_command(MODEL, options=TrtexecOptions(version="9"))
    with pytest.raises(UsageError, match="--strip-weights"):
        trtexec_command(MODEL, options=TrtexecOptions(version="8.6", strip_weights=True))


def test_what_version_8_6_does_not_read() -> None:
    calls = engine_models.parallel_convs(collapsed=True)
    flat = engine_models.one_conv()
    for version in ("10", "11"):
        check_version(calls, version)
    with pytest.raises(EngineError, match="--flat"):
        check_version(calls, "8.6")
    with pytest.raises(EngineError, match="up to opset 17; the file has 19"):
        check_version(flat, "8.6")
    flat.opset_import[0].version = 17
    check_version(flat, "8.6")


def test_cache_times_and_weights() -> None:
    options = TrtexecOptions(
        timing_cache=Path("t.cache"),
        refit=True,
        strip_weights=True,
        layers=Path("l.json"),
        times=Path("p.json"),
    )
    command = trtexec_command(MODEL, options=options)
    assert command[3:] == [
        "--timingCacheFile=t.cache",
        "--refit",
        "--stripWeights",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=l.json",
        "--separateProfileRun",
        "--dumpProfile",
        "--exportProfile=p.json",
    ]


def test_shapes_of_several_inputs() -> None:
    shapes = {
        "a": ((1, 3), (2, 3), (4, 3)),
        "b:0": ((1,), (1,), (8,)),
    }
    command = trtexec_command(MODEL, shapes, TrtexecOptions(engine=Path("e")))
    assert command[2:] == [
        "--saveEngine=e",
        "--minShapes=a:1x3,'b:0':1",
        "--optShapes=a:2x3,'b:0':1",
        "--maxShapes=a:4x3,'b:0':8",
    ]


def test_layer_information() -> None:
    command = trtexec_command(MODEL, options=TrtexecOptions(layers=Path("l.json")))
    assert command[-3:] == [
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=l.json",
        "--skipInference",
    ]


def test_the_printed_line_is_the_command_again() -> None:
    command = trtexec_command(MODEL, {"b:0": ((1,), (1,), (8,))})
    assert shlex.split(shell_line(command)) == command
