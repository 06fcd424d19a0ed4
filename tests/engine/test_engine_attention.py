"""Attention in INT8 as TensorRT-RTX plans it: one fused kernel each, and every product Int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright.engine.build import BuildOptions, build
from fusewright.engine.report import EngineReport
from fusewright.graph.convert import to_proto
from fusewright.normalize import normalize
from fusewright.plan.collapse import collapse
from fusewright.plan.decide import decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.placement import place

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
RTX = BuildOptions(backend="tensorrt_rtx")
BATCH, TOKENS, HEADS, SIZE = 2, 64, 3, 32
WIDTH = HEADS * SIZE
Step = Callable[[Net, str], str]


def _same(net: Net, y: str) -> str:
    return y


def _heads(net: Net, x: str) -> str:
    y = net.op("Add", net.op("MatMul", x, net.draw(WIDTH, WIDTH)), net.draw(WIDTH))
    y = net.op("Reshape", y, [0, 0, HEADS, SIZE])
    return net.op("Transpose", y, perm=[0, 2, 1, 3])


def _attention(
    net: Net, *, of_q: Step = _same, of_k: Step = _same, between: Step = _same, memory: int = 0
) -> str:
    x = net.input("x", BATCH, TOKENS, WIDTH)
    other = net.input("memory", BATCH, memory, WIDTH) if memory else x
    q, k = of_q(net, _heads(net, x)), of_k(net, _heads(net, other))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("Softmax", between(net, scores), axis=-1)
    y = net.op("Transpose", net.op("MatMul", y, _heads(net, other)), perm=[0, 2, 1, 3])
    return net.op("MatMul", net.op("Reshape", y, [0, 0, WIDTH]), net.draw(WIDTH, WIDTH))


def _scaled(net: Net, y: str) -> str:
    return net.op("Mul", y, SIZE**-0.5)


def _unit(net: Net, y: str) -> str:
    length = net.op("Clip", net.op("ReduceL2", y, axes=[-1], keepdims=1), 1e-12)
    return net.op("Div", y, length)


def _norm(net: Net, y: str) -> str:
    return _scaled(net, net.op("LayerNormalization", y, net.positive(SIZE), net.draw(SIZE)))


def _masked(net: Net, y: str) -> str:
    """Swin's: a position bias, then the mask of each window."""
    y = net.op("Add", _scaled(net, y), net.draw(1, HEADS, TOKENS, TOKENS))
    y = net.op("Reshape", y, [1, BATCH, HEADS, TOKENS, TOKENS])
    y = net.op("Add", y, net.draw(1, BATCH, 1, TOKENS, TOKENS))
    return net.op("Reshape", y, [BATCH, HEADS, TOKENS, TOKENS])


def _causal(net: Net, y: str) -> str:
    mask = np.triu(np.full((TOKENS, TOKENS), -1e9, np.float32), 1)
    return net.op("Add", _scaled(net, y), mask)


NETS: dict[str, Callable[[Net], str]] = {
    "scaled scores": lambda n: _attention(n, between=_scaled),
    "bias and mask of windows": lambda n: _attention(n, between=_masked),
    "causal mask": lambda n: _attention(n, between=_causal),
    "cross attention": lambda n: _attention(n, between=_scaled, memory=48),
    "cosine attention": lambda n: _attention(
        n, of_q=_unit, of_k=_unit, between=lambda m, y: m.op("Mul", y, m.positive(HEADS, 1, 1))
    ),
    "q behind a norm and a scale": lambda n: _attention(n, of_q=_norm),
}


def _built(build_net: Callable[[Net], str], folder: Path) -> tuple[Plan, EngineReport]:
    net = Net()
    model = net.model(build_net(net))
    normalize(model)
    plan, _ = recognise(model)
    decide(plan)
    placement = place(plan)
    insert_qdq(model.graph, placement, dict.fromkeys(placement.observe, 4.0) | placement.fixed)
    path = folder / "model.onnx"
    onnx.save(to_proto(collapse(model.graph, plan)), path)
    return plan, build(path, None, RTX)


@pytest.mark.parametrize("name", NETS)
def test_attention_is_one_int8_kernel(name: str, tmp_path: Path) -> None:
    plan, report = _built(NETS[name], tmp_path)
    assert plan.counts()["ScaledDotProductAttention"] == 1
    assert report.operations["attention"] == {"Int8": 1}
    assert set(report.operations["gemm"]) == {"Int8"}


def test_one_projection_and_one_pair_take_six_kernels(tmp_path: Path) -> None:
    """Quantize x; project; split, scale and turn; attend; project; bias."""
    _, report = _built(NETS["scaled scores"], tmp_path)
    assert report.operations["gemm"] == {"Int8": 2}
    assert len(report.kernels) <= 6
