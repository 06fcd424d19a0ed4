"""What native code prints never shows: a build that fails says one line, on the real RTX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper


def _cycle() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["a"], ["b"], "first"),
        helper.make_node("Relu", ["b"], ["a"], "second"),
        helper.make_node("Add", ["x", "a"], ["y"], "last"),
    ]
    return _model(nodes, "x")


def _attention() -> onnx.ModelProto:
    return _model([helper.make_node("Attention", ["q", "k", "v"], ["y"], "core")], "qkv")


def _unwritten() -> onnx.ModelProto:
    return _model([helper.make_node("Add", ["x", "nowhere"], ["y"], "last")], "x")


def _text() -> onnx.ModelProto:
    return _model([helper.make_node("Identity", ["x"], ["y"], "last")], "x", TensorProto.STRING)


def _model(nodes: list[onnx.NodeProto], inputs: str, dtype: int = 1) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, dtype, [1, 2, 8, 64]) for n in (*inputs, "y")]
    graph = helper.make_graph(nodes, "g", values[:-1], values[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_cycle(), "its nodes form a cycle, or two of them write one tensor"),
        (_attention(), "no kernel for an Attention operator"),
        (_unwritten(), "node 'last' (Add) reads 'nowhere', which nothing writes"),
        (_text(), "a tensor has a type that TensorRT lacks"),
    ],
)
def test_a_build_that_fails_says_one_line(
    model: onnx.ModelProto, reason: str, tmp_path: Path
) -> None:
    """The descriptor itself is read: TensorRT's C++ code writes there, past `sys.stderr`."""
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    onnx.save(model, str(tmp_path / "m.onnx"))
    command = [sys.executable, "-m", "fusewright", "build", "m.onnx", "-o", "e"]
    done = subprocess.run(
        [*command, "--with", "tensorrt_rtx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.startswith("error: ")
        and "m.onnx: " in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert reason in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
