"""Layout operators: what is one, regions of them, and where each element goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from building import Net, run

from fusewright.graph.convert import to_proto
from fusewright.graph.layout import (
    Prober,
    Region,
    data_readers,
    moved_inputs,
    region_ahead,
    region_behind,
)
from fusewright.graph.model import Model

SHAPE = (2, 4, 6, 4)
OPSET = 18
Build = Callable[[Net, str], "str | tuple[str, ...]"]


def _model(build: Build, opset: int = OPSET) -> Model:
    """`build` over Relu(x), whose output is the source of all layout."""
    net = Net(opset)
    outputs = build(net, net.op("Relu", net.input("x", *SHAPE), name="source"))
    return net.model(*((outputs,) if isinstance(outputs, str) else outputs))


def _node(model: Model, name: str) -> gs.Node:
    return next(node for node in model.graph.nodes if node.name == name)


def _source(model: Model) -> gs.Tensor:
    tensor: gs.Tensor = _node(model, "source").outputs[0]
    return tensor


def _names(region: Region) -> list[str]:
    return [node.name for node in region.nodes]


MOVES: dict[str, Build] = {
    "Transpose": lambda n, x: n.op("Transpose", x, perm=[3, 1, 0, 2]),
    "Reshape": lambda n, x: n.op("Reshape", x, [0, -1, 2]),
    "Flatten": lambda n, x: n.op("Flatten", x, axis=2),
    "Squeeze and Unsqueeze": lambda n, x: n.op("Squeeze", n.op("Unsqueeze", x, [0]), [0]),
    "Identity": lambda n, x: n.op("Identity", x),
    "Slice": lambda n, x: n.op("Slice", x, [3], [0], [2], [-1]),
    "Split": lambda n, x: n.op("Split", x, [1, 5], outputs=2, axis=2),
    "Split into equal parts": lambda n, x: n.op("Split", x, outputs=3, axis=2, num_outputs=3),
    "Gather": lambda n, x: n.op("Gather", x, np.array([[2, 0], [1, 1]]), axis=2),
    "Gather one": lambda n, x: n.op("Gather", x, np.int64(-1), axis=1),
    "Concat": lambda n, x: n.op("Concat", x, n.op("Slice", x, [0], [1], [2]), axis=2),
    "Expand": lambda n, x: n.op("Expand", n.op("Unsqueeze", x, [2]), [1, 1, 3, 1, 1]),
    "Tile": lambda n, x: n.op("Tile", x, [1, 2, 1, 1]),
    "DepthToSpace": lambda n, x: n.op("DepthToSpace", x, blocksize=2, mode="CRD"),
    "SpaceToDepth": lambda n, x: n.op("SpaceToDepth", x, blocksize=2),
    "Pad": lambda n, x: n.op("Pad", x, [0, 0, 0, 0, 0, 0, 1, 2]),
    "Pad, its zero given": lambda n, x: n.op("Pad", x, [0, 1, 0, 0, 0, 0, 0, 0], 0.0),
    "Pad, its axes given": lambda n, x: n.op("Pad", x, [1, 1], None, [2]),
    "Pad that crops": lambda n, x: n.op("Pad", x, [0, 0, -1, 0, 0, 0, 2, 0]),
}


@pytest.mark.parametrize("name", MOVES)
def test_operator_that_moves(name: str) -> None:
    """Behind it lies the source alone, and the probe says where each element goes."""
    model = _model(MOVES[name])
    region = region_behind(model.graph.outputs, OPSET)
    assert [t.name for t in region.sources] == [_source(model).name]
    assert _names(region) == [n.name for n in model.graph.nodes if n.name != "source"]
    moved = Prober()(region, SHAPE, OPSET)
    assert moved is not None
    assert moved_by_onnxruntime(model, moved)


def moved_by_onnxruntime(model: Model, moved: list[np.ndarray]) -> bool:
    """Whether the model's outputs hold the elements of Relu(x) that the probe says."""
    x = np.random.default_rng(3).uniform(1, 2, SHAPE).astype(np.float32)
    results = run(to_proto(model.graph), {"x": x})
    flat = np.append(x.reshape(-1), np.float32(0))  # padding is read at -1
    return all(np.array_equal(flat[m], r) for m, r in zip(moved, results, strict=True))


# What is none, and which of its inputs might look like moved ones.
OTHERS: dict[str, Build] = {
    "another function": lambda n, x: n.op("Neg", x),
    "Concat with a stored tensor": lambda n, x: n.op("Concat", x, n.draw(2, 4, 6, 1), axis=3),
    "Pad with ones": lambda n, x: n.op("Pad", x, [0] * 7 + [1], 1.0),
    "Pad with a computed value": lambda n, x: n.op("Pad", x, [0] * 7 + [1], n.input("c")),
    "Pad with its own edge": lambda n, x: n.op("Pad", x, [0] * 7 + [1], mode="edge"),
    "Gather at computed places": lambda n, x: n.op(
        "Gather", x, n.input("i", 2, dtype=np.int64), axis=1
    ),
    "Gather from a stored table": lambda n, x: n.op("Gather", n.draw(9, 3), n.op("Cast", x, to=7)),
    "Resize": lambda n, x: n.op("Resize", x, None, [1.0, 1.0, 2.0, 2.0], mode="nearest"),
    "MaxPool": lambda n, x: n.op("MaxPool", x, kernel_shape=[2, 2]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_operator_that_does_not(name: str) -> None:
    model = _model(OTHERS[name])
    assert moved_inputs(model.graph.nodes[-1], OPSET) == ()
    region = region_behind(model.graph.outputs, OPSET)
    assert region.nodes == ()
    assert region.sources == region.results == tuple(model.graph.outputs)
    assert all(n.op not in ("Concat", "Pad", "Gather") for n in _ahead(model).nodes)


def _ahead(model: Model) -> Region:
    return region_ahead(_source(model), OPSET)


def test_operator_of_another_domain_moves_nothing() -> None:
    node = gs.Node("Transpose", "n", {}, [gs.Variable("x")], [gs.Variable("y")], domain="custom")
    assert moved_inputs(node, OPSET) == ()
    node.domain = None
    assert [t.name for t in moved_inputs(node, OPSET)] == ["x"]


def _diamond(net: Net, x: str) -> str:
    first = net.op("Transpose", x, perm=[0, 2, 1, 3], name="up")
    one = net.op("Slice", first, [0], [1], [1], name="left")
    two = net.op("Slice", first, [1], [3], [1], name="right")
    return net.op("Neg", net.op("Concat", one, two, axis=1, name="both"), name="end")


def test_region_behind_a_diamond_and_ahead_of_it_is_one() -> None:
    model = _model(_diamond)
    result = _node(model, "end").inputs[0]
    behind, ahead = region_behind([result], OPSET), _ahead(model)
    for region in (behind, ahead):
        first, *middle, last = _names(region)
        assert (first, set(middle), last) == ("up", {"left", "right"}, "both")
    assert [t.name for t in ahead.results] == [result.name]
    assert [t.name for t in behind.sources] == [_source(model).name]
    moved = Prober()(behind, SHAPE, OPSET)
    assert moved is not None
    index = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(moved[0], index.transpose(0, 2, 1, 3)[:, :3])


def test_region_behind_stops_where_it_is_told() -> None:
    model = _model(_diamond)
    (stop,) = _node(model, "left").outputs
    region = region_behind([_node(model, "end").inputs[0]], OPSET, [stop])
    assert set(_names(region)) == {"up", "right", "both"}
    assert {t.name for t in region.sources} == {stop.name, _source(model).name}
    assert Prober()(region, SHAPE, OPSET) is None, "there are two sources"


def test_region_ahead_ends_at_what_is_not_moved_wholly_from_the_source() -> None:
    """A Concat with something else is read, not entered; so is every other reader."""

    def build(net: Net, x: str) -> tuple[str, ...]:
        y = net.op("Transpose", x, perm=[0, 2, 1, 3], name="inside")
        other = net.op("Exp", x)
        z = net.op("Reshape", net.op("Concat", y, net.input("z", 2, 6, 4, 4), axis=1), [-1])
        return z, net.op("Flatten", y, name="too"), other

    model = _model(build)
    region = _ahead(model)
    assert _names(region) == ["inside", "too"]
    inside, too = (_node(model, n).outputs[0].name for n in ("inside", "too"))
    assert [t.name for t in region.results] == [_source(model).name, inside, too]


def test_region_ahead_of_a_tensor_that_nobody_moves_is_empty() -> None:
    model = _model(lambda n, x: n.op("Neg", x))
    region = _ahead(model)
    assert region.nodes == ()
    assert region.results == region.sources


def test_who_asks_for_the_shape_reads_no_elements() -> None:
    def build(net: Net, x: str) -> tuple[str, ...]:
        y = net.op("Transpose", x, perm=[0, 2, 1, 3], name="inside")
        return net.op("Flatten", y, name="end"), net.op("Shape", y), net.op("Size", y)

    model = _model(build)
    (inner,) = _node(model, "inside").outputs
    assert [n.name for n in data_readers(inner)] == ["end"]
    region = region_behind([_node(model, "end").outputs[0]], OPSET)
    assert region.leaks((), ()) is None
    assert [t.name for t in _ahead(model).results] == [_node(model, "end").outputs[0].name]


@pytest.mark.parametrize("output", [False, True], ids=["read elsewhere", "output"])
def test_leak(output: bool) -> None:
    def build(net: Net, x: str) -> tuple[str, ...]:
        y = net.op("Transpose", x, perm=[0, 2, 1, 3], name="inside")
        end = net.op("Flatten", y, name="end")
        return net.op("Neg", end), y if output else net.op("Exp", y, name="other")

    model = _model(build)
    (end,) = _node(model, "end").outputs
    region, outputs = region_behind([end], OPSET), model.graph.outputs
    leak = region.leaks((), outputs)
    assert leak is _node(model, "inside").outputs[0]
    if not output:
        assert region.leaks([_node(model, "other")], outputs) is None
    # A result is not interior: whoever reads it, or takes it for an output.
    assert region_behind([leak, end], OPSET).leaks((), [*outputs, end]) is None


def _computed(net: Net, x: str) -> str:
    return net.op("Reshape", x, net.op("Shape", net.input("like", 4, 48)))


UNKNOWN: dict[str, tuple[Build, tuple[int, ...]]] = {
    "an amount that is computed": (_computed, SHAPE),
    "an amount that does not fit": (lambda n, x: n.op("Reshape", x, [0, 0, 24]), (2, 4, 5, 4)),
    "a rank that does not fit": (
        lambda n, x: n.op("Transpose", x, perm=[3, 1, 0, 2]),
        (2, 4, 24),
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_probed(name: str) -> None:
    build, shape = UNKNOWN[name]
    model = _model(build)
    region = region_behind(model.graph.outputs, OPSET)
    assert len(region.nodes) == 1
    assert Prober()(region, shape, OPSET) is None


def test_a_result_asked_for_twice_and_the_source_itself() -> None:
    model = _model(lambda n, x: n.op("Flatten", x, name="end"))
    (end,) = _node(model, "end").outputs
    region = region_behind([end, _source(model), end], OPSET)
    moved = Prober()(region, SHAPE, OPSET)
    assert moved is not None
    assert [m.shape for m in moved] == [(2, 96), SHAPE, (2, 96)]
    assert all(np.array_equal(m.reshape(-1), np.arange(192)) for m in moved)


def test_equal_structures_are_run_once_and_others_are_told_apart() -> None:
    def build(net: Net, x: str) -> tuple[str, ...]:
        perms = [0, 2, 1, 3], [0, 2, 1, 3], [0, 1, 3, 2]
        turned = tuple(net.op("Transpose", x, perm=perm) for perm in perms)
        cut = tuple(net.op("Slice", x, [0], [end], [1]) for end in (1, 1, 2))
        return *turned, *cut

    model, prober = _model(build), Prober()
    moved = [prober(region_behind([t], OPSET), SHAPE, OPSET) for t in model.graph.outputs]
    assert all(m is not None for m in moved)
    assert moved[0] is moved[1]
    assert moved[3] is moved[4]
    results = [m[0] for m in moved if m is not None]
    for one, other in ((0, 2), (0, 3), (3, 5)):
        assert not np.array_equal(results[one], results[other])
    smaller = prober(region_behind([model.graph.outputs[0]], OPSET), (2, 4, 2, 2), OPSET)
    assert smaller is not None
    assert smaller[0].shape == (2, 2, 4, 2)
