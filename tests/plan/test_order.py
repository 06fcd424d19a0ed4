"""Norms put behind window partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from attending import WIDTH
from building import Net, as_model, assert_equal
from windows import Block, attend_in_windows, block_of, norm, partition, reverse, swin

from fusewright import RandomSamples, inspect, optimize
from fusewright.engine.build import BuildOptions, build
from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import collapse
from fusewright.plan.decide import decide
from fusewright.plan.order import apply_swaps, find_swaps
from fusewright.plan.plan import Plan, node_index
from fusewright.plan.recognise import recognise

SHIFTED = Block(map=(6, 9), shift=(1, 1))


def _plan(proto: onnx.ModelProto) -> Plan:
    plan, _ = recognise(as_model(proto, clean=True))
    decide(plan)
    return plan


def _proto(block: Block, make: Callable[[Net, Block], object] = swin) -> onnx.ModelProto:
    net = Net()
    found = make(net, block)
    return net.proto(*(found if isinstance(found, tuple) else (found,)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "block",
    [Block(), SHIFTED, Block(flat=True), Block(batch="batch"), SHIFTED.but(flat=True)],
    ids=["plain", "shifted", "flat", "dynamic", "shifted-flat"],
)
def test_moves_and_keeps_every_result(block: Block) -> None:
    proto = _proto(block)
    plan = _plan(proto)
    swaps = find_swaps(plan)
    assert [swap.norm.kind for swap in swaps] == ["LayerNorm"]
    apply_swaps(plan, swaps)
    (swap,) = swaps
    nodes = node_index(plan.model.graph)
    assert swap.node.inputs[0].inputs[0] is nodes[swap.partition.members[-1]]
    assert swap.norm.inputs == swap.partition.outputs
    assert not find_swaps(plan), "once is enough"
    assert_equal(proto, plan.model)
    assert_equal(proto, to_proto(collapse(plan.model.graph, plan)))


def test_is_taken_back() -> None:
    proto = _proto(SHIFTED)
    plan = _plan(proto)
    before = to_proto(plan.model.graph)
    swaps = find_swaps(plan)
    apply_swaps(plan, swaps)()
    assert_equal(proto, plan.model)
    after = to_proto(plan.model.graph)
    assert list(after.graph.node) == list(before.graph.node), "names too"
    assert len(find_swaps(plan)) == 1


def _read_twice(net: Net, block: Block) -> tuple[str, str]:
    """The norm's output is read beside the partition."""
    x = norm(net, block.feed(net))
    y = attend_in_windows(net, partition(net, x, block), block)
    return net.op("Add", x, reverse(net, y, block)), x


def _over_two_axes(net: Net, block: Block) -> str:
    """The norm is over columns and channels."""
    x = block.feed(net)
    shape = block.map[1], WIDTH
    y = net.op("LayerNormalization", x, net.positive(*shape), net.draw(*shape), axis=-2)
    y = attend_in_windows(net, partition(net, y, block), block)
    return net.op("Add", x, reverse(net, y, block))


def _behind_an_op(net: Net, block: Block) -> str:
    x = block.feed(net)
    y = net.op("Relu", norm(net, x))
    y = attend_in_windows(net, partition(net, y, block), block)
    return net.op("Add", x, reverse(net, y, block))


@pytest.mark.parametrize(
    ("block", "make"),
    [
        (Block(map=(5, 8)), swin),  # padded: the norm of a row of zeros is its bias
        (Block(), _read_twice),
        (Block(), _over_two_axes),
        (Block(), _behind_an_op),
        (Block(), lambda net, block: block_of(net, block, more="windows")),
    ],
    ids=["padded", "read-twice", "two-axes", "op-between", "windows-are-an-output"],
)
def test_stays_in_front(block: Block, make: Callable[[Net, Block], object]) -> None:
    plan = _plan(_proto(block, make))
    assert {"LayerNorm", "SwinWindowPartition"} <= plan.counts().keys()
    assert not find_swaps(plan)


def test_a_group_that_is_off_stays() -> None:
    plan = _plan(_proto(Block()))
    next(g for g in plan.groups if g.kind == "SwinWindowPartition").apply = False
    assert not find_swaps(plan)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8+fp16", "fp16"])
def test_in_the_pipeline(tmp_path: Path, precision: str) -> None:
    onnx.save(_proto(SHIFTED), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", None, RandomSamples(4), precision=precision)
    found = [e for e in result.trace if e.stage == "order" and e.what == "match"]
    assert len(found) == 1
    assert result.proofs["order"].is_within(1e-5)
    assert not result.trace.undone()


@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
def test_is_read_back(tmp_path: Path, flat: bool) -> None:
    """With the norm behind the partition, the windows are still found."""
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(_proto(SHIFTED), source)
    result = optimize(source, out, RandomSamples(2), precision="fp16", flat=flat)
    assert [e.name for e in result.trace if e.stage == "order" and e.what == "match"]
    assert result.plan.counts()["SwinWindowPartition"] == 1
    assert inspect(out).counts() == result.plan.counts()


def test_one_kernel_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's reason for it: the norm in front of a partition is two kernels."""
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    onnx.save(_sum_in_front(), tmp_path / "m.onnx")
    counts, moved = [], []
    for find in (find_swaps, lambda plan: []):
        monkeypatch.setattr("fusewright.pipeline.ordering.find_swaps", find)
        out = tmp_path / f"out{len(counts)}.onnx"
        optimize(tmp_path / "m.onnx", out, RandomSamples(4), precision="int8+fp16")
        report = build(out, None, BuildOptions(backend="tensorrt_rtx"))
        counts.append(len(report.kernels))
        moved.append(report.activation_bytes or 0)
    assert counts[0] < counts[1]
    assert moved[0] < moved[1]


def _sum_in_front() -> onnx.ModelProto:
    net = Net()
    block = Block(map=(16, 16), window=(4, 4), batch=1)
    x = block.feed(net)
    x = net.op("Add", x, net.op("MatMul", x, net.draw(WIDTH, WIDTH)))
    y = attend_in_windows(net, partition(net, norm(net, x), block), block)
    y = net.op("Add", x, reverse(net, y, block))
    return net.proto(net.op("MatMul", y, net.draw(WIDTH, np.int64(8))))
