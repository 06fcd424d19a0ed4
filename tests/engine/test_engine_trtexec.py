"""The trtexec line."""

from __future__ import annotations

import shlex
from pathlib import Path

from fusewright.engine.trtexec import TrtexecOptions, shell_line, trtexec_command

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
