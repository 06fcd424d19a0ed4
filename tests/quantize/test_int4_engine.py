"""INT4 weights as TensorRT-RTX plans them: in the GEMM, four bits each."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net
from quantizing import planned

from fusewright.engine.build import BuildOptions, build
from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import collapse
from fusewright.quantize.int4.sites import Int4Site, int4_sites
from fusewright.quantize.int4.weights import Int4Settings, round_weights

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")

RTX = BuildOptions(backend="tensorrt_rtx")
SIZES = (96, 384, 128, 64)


def _rounded(collapsed: bool) -> onnx.ModelProto:
    """A stack of Linears with ReLU between; K of 96, 384 and 128, blocks of 32, 128 and 64."""
    net = Net(opset=21)
    x = net.input("x", 2, 16, SIZES[0])
    for into, out in itertools.pairwise(SIZES):
        x = net.op("Relu", net.op("Add", net.op("MatMul", x, net.draw(into, out)), net.draw(out)))
    plan = planned(net, x)
    found = int4_sites(plan, 128, lambda group: group.is_quantized)
    sites = [site for site in found if isinstance(site, Int4Site)]
    assert [site.block for site in sites] == [32, 128, 64]
    round_weights(plan.model.graph, sites, Int4Settings("rtn"))
    return to_proto(collapse(plan.model.graph, plan) if collapsed else plan.model.graph)


def _half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything that is float becomes half; the INT4 values stay."""
    graph = gs.import_onnx(proto)
    for tensor in graph.tensors().values():
        if tensor.dtype == np.float32 and isinstance(tensor, gs.Constant):
            tensor.values = tensor.values.astype(np.float16)
        elif tensor.dtype == np.float32:
            tensor.dtype = np.float16
    return to_proto(graph)


@pytest.mark.parametrize("collapsed", [False, True], ids=["flat", "collapsed"])
@pytest.mark.parametrize("rest", ["Float", "Half"])
def test_every_gemm_reads_four_bits(tmp_path: Path, rest: str, collapsed: bool) -> None:
    proto = _rounded(collapsed)
    onnx.save(_half(proto) if rest == "Half" else proto, tmp_path / "model.onnx")
    kernels = [report.kernel for report in build(tmp_path / "model.onnx", options=RTX).kernels]
    stored = [(constant.dtype, constant.shape[-2:]) for k in kernels for constant in k.constants]
    four_bits = {shape for dtype, shape in stored if dtype == "Int4"}
    assert four_bits == set(itertools.pairwise(SIZES))
    for kernel in kernels:
        types = {constant.dtype for constant in kernel.constants}
        if "Int4" in types:  # with its scales, and with activations to multiply
            assert rest in types and kernel.inputs
            assert kernel.type in ("gemm", "runtime_fusion")
    sizes = [t.nbytes for k in kernels for t in k.constants if t.dtype == "Int4"]
    assert sum(sizes) == sum(a * b for a, b in itertools.pairwise(SIZES)) // 2
