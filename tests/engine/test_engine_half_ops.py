"""Operators that TensorRT does not take in half stay FP32, and the file builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.engine.build import BuildOptions, build
from fusewright.errors import EngineError
from fusewright.target.table import WITHOUT_HALF

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")

RTX = BuildOptions(backend="tensorrt_rtx")
OPS: dict[str, Callable[[Net, str], str]] = {
    "ConvTranspose": lambda net, x: net.op("ConvTranspose", x, net.draw(4, 8, 2, 2)),
    "HardSwish": lambda net, x: net.op("HardSwish", x),
    "LpNormalization": lambda net, x: net.op("LpNormalization", x, axis=1),
    "LpPool": lambda net, x: net.op("LpPool", x, kernel_shape=[2, 2]),
    "MeanVarianceNormalization": lambda net, x: net.op("MeanVarianceNormalization", x),
    "Mish": lambda net, x: net.op("Mish", x),
}


def _net(op: str) -> onnx.ModelProto:
    net = Net(22)
    return net.proto(OPS[op](net, net.conv(net.input("x", 1, 3, 8, 8), 4, 3)))


@pytest.mark.parametrize("rest", ["bf16", "fp16"])
@pytest.mark.parametrize("op", OPS)
def test_it_stays_float32(tmp_path: Path, rest: str, op: str) -> None:
    source, written = tmp_path / "net.onnx", tmp_path / "half.onnx"
    onnx.save(_net(op), source)
    result = optimize(source, written, RandomSamples(2), precision=rest)
    reasons = set(result.half.float_nodes.values())
    kept = op in WITHOUT_HALF[rest] and op in {node.op for node in result.plan.model.graph.nodes}
    assert (f"TensorRT has no {rest.upper()} {op}" in reasons) == kept
    assert len(result.half.half_nodes) > 0, "the convolution"
    assert build(written, options=RTX).kernels


@pytest.mark.parametrize("op", OPS)
def test_the_table_is_right(tmp_path: Path, op: str) -> None:
    """In BF16 as it would be written without the table, it is refused."""
    assert op in WITHOUT_HALF["bf16"]
    graph = gs.import_onnx(_net(op))
    bfloat16 = onnx.TensorProto.BFLOAT16
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable):
            tensor.dtype = bfloat16
    for tensor in (t for t in graph.tensors().values() if isinstance(t, gs.Constant)):
        narrow = gs.Variable(f"{tensor.name}_narrow", bfloat16, tensor.shape)
        graph.nodes.append(
            gs.Node("Cast", inputs=[tensor], outputs=[narrow], attrs={"to": bfloat16})
        )
        for node in [n for n in tensor.outputs if n.op != "Cast"]:
            node.inputs = [narrow if t is tensor else t for t in node.inputs]
    onnx.save(gs.export_onnx(graph.toposort()), tmp_path / "raw.onnx")
    with pytest.raises(EngineError):
        build(tmp_path / "raw.onnx", options=RTX)
