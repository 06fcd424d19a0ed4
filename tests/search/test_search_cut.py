"""Parts as models: they compute what the whole does there, and blocks alike have one structure."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net
from searching import planned

from fusewright.graph.convert import to_proto
from fusewright.graph.session import open_session, run_session
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.placement import place
from fusewright.search.cut import Flat, Part, known_shapes

_NAMES = ("up", "act", "down", "layout", "turn", "back")


def _blocks(*widths: int, batch: int | str = 8, shape: tuple[int, ...] | None = (2, 4, 8)) -> Flat:
    """Linears one behind the other in INT8, with layout behind each second."""
    net = Net()
    x = net.input("x", batch, 8)
    for i, width in enumerate(widths):
        x = net.op("Tanh", net.op("MatMul", x, net.draw(8, width), name=f"up{i}"), name=f"act{i}")
        x = net.op("MatMul", x, net.draw(width, 8), name=f"down{i}")
        if shape is not None:
            x = net.op("Reshape", x, list(shape), name=f"layout{i}")
            x = net.op("Transpose", x, perm=[1, 0, 2], name=f"turn{i}")
            x = net.op("Reshape", x, [8, 8], name=f"back{i}")
    plan = planned(net, x)
    placement = place(plan)
    insert_qdq(plan.model.graph, placement, dict.fromkeys(placement.observe, 1.0))
    proto = to_proto(plan.model.graph)
    return Flat(proto, known_shapes(proto))


def _part(flat: Flat, i: int) -> Part:
    part = flat.part({f"{name}{i}" for name in _NAMES})
    assert part is not None
    return part


def test_it_computes_what_the_whole_does() -> None:
    flat = _blocks(16, 16, 16)
    model = _part(flat, 1).model
    onnx.checker.check_model(model)
    read, written = [v.name for v in model.graph.input], [v.name for v in model.graph.output]
    whole = onnx.ModelProto()
    whole.CopyFrom(flat.proto)
    names = [*read, *written]
    known = {v.name for v in whole.graph.output}
    whole.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    feed = {"x": np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32)}
    values = run_session(open_session(whole.SerializeToString()), feed, names)
    part = run_session(
        open_session(model.SerializeToString()),
        dict(zip(read, values[: len(read)], strict=True)),
        written,
    )
    for mine, theirs in zip(part, values[len(read) :], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_pairs_in_front_and_the_q_behind_are_inside() -> None:
    model = _part(_blocks(16, 16, 16, shape=None), 1).model
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("DequantizeLinear") == 4, "of two inputs and two weights"
    assert ops.count("QuantizeLinear") == 5, "and the next input's Q"
    assert [v.type.tensor_type.elem_type for v in model.graph.input] == [onnx.TensorProto.FLOAT]


def test_blocks_alike_have_one_structure() -> None:
    flat = _blocks(16, 16, 16, 24)
    assert _part(flat, 1).structure == _part(flat, 2).structure
    assert _part(flat, 2).structure != _part(flat, 3).structure


def test_what_a_layout_does_is_structure() -> None:
    one, other = _blocks(16, 16, 16), _blocks(16, 16, 16, shape=(4, 2, 8))
    assert _part(one, 1).structure != _part(other, 1).structure


def test_what_is_shared_is_structure() -> None:
    """A scale that two pairs share is one tensor."""
    one, other = _blocks(16, 16), _blocks(16, 16)
    stored = {t.name for t in other.proto.graph.initializer}
    nodes = (n for n in other.proto.graph.node if n.op_type == "QuantizeLinear")
    first, second, *_ = (n for n in nodes if n.input[0] not in stored)
    second.input[1] = first.input[1]
    assert _part(one, 0).structure != _part(Flat(other.proto, other.shapes), 0).structure


@pytest.mark.parametrize("i", [0, 1])
def test_sizes_that_are_not_known(i: int) -> None:
    flat = _blocks(16, 16, batch="b", shape=None)
    assert flat.part({f"up{i}", f"act{i}", f"down{i}"}) is None
