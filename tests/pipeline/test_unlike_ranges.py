"""Parts of unlike range in front of one layer: depth beside colours, coordinates, a louder branch.

Every model's weights make its parts count alike, as training does; with one step for all of them
these come out at -0.2 to 16 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, run

from fusewright import inspect, optimize
from fusewright.pipeline import Result
from fusewright.plan.file import write_plan

SIDE = 16
LOUD, SOFT = 200.0, 0.5
Build = Callable[[Net], str]
# Range of each input, per channel where they differ; the others are standard normal.
RANGES: dict[str, Sequence[float]] = {
    "depth": [80],
    "rgbd": [1, 1, 1, 80],
    "box": [640],
    "score": [1],
    "table": [1, 1000, 0.01, 5, 300, 1],
}


def _drawn(net: Net, shape: Sequence[int], sizes: Sequence[float], axis: int) -> str:
    """Weights that make every channel count alike, however large it is."""
    shaped = np.reshape(sizes, [-1 if i == axis else 1 for i in range(len(shape))])
    fan_in = np.prod(shape) / shape[0 if axis == 1 else -1]
    return net.store(net.random.standard_normal(shape) / np.sqrt(fan_in) / shaped)


def _conv(net: Net, x: str, sizes: Sequence[float], out: int = 8, groups: int = 1) -> str:
    if groups == 1:
        w = _drawn(net, (out, len(sizes), 3, 3), sizes, 1)
    else:
        parts = np.split(np.asarray(sizes), groups)
        shape = (out // groups, len(sizes) // groups, 3, 3)
        w = net.store(np.concatenate([net.stored[_drawn(net, shape, p, 1)] for p in parts]))
    return net.op("Relu", net.op("Conv", x, w, net.draw(out), pads=[1] * 4, group=groups))


def _image(net: Net, name: str = "x", channels: int = 3) -> str:
    return net.input(name, 1, channels, SIDE, SIDE)


def _branches(net: Net, *sizes: float) -> tuple[list[str], list[float]]:
    x = _image(net)
    parts = [net.op("Mul", _conv(net, x, [1.0] * 3), size) for size in sizes]
    return parts, [size for size in sizes for _ in range(8)]


def _joined(net: Net) -> tuple[str, list[float]]:
    parts, sizes = _branches(net, LOUD, SOFT)
    return net.op("Concat", *parts, axis=1), sizes


def _rgb_and_depth(net: Net) -> str:
    joined = net.op("Concat", _image(net, "rgb"), _image(net, "depth", 1), axis=1)
    return _conv(net, _conv(net, joined, [0.5, 0.5, 0.5, 40]), [1.0] * 8)


def _rgbd(net: Net) -> str:
    return _conv(net, _conv(net, _image(net, "rgbd", 4), [0.5, 0.5, 0.5, 40]), [1.0] * 8)


def _transposed_input(net: Net) -> str:
    x = net.op("Transpose", net.input("rgbd_last", 1, SIDE, SIDE, 4), perm=[0, 3, 1, 2])
    return _conv(net, _conv(net, x, [0.5, 0.5, 0.5, 40]), [1.0] * 8)


def _coordinates(net: Net) -> str:
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)))[None] * 20
    joined = net.op("Concat", _conv(net, _image(net), [1.0] * 3), net.store(grid), axis=1)
    return _conv(net, _conv(net, joined, [1.0] * 8 + [200.0] * 2), [1.0] * 8)


def _plain(net: Net) -> str:
    return _conv(net, _conv(net, *_joined(net)), [1.0] * 8)


def _pooled(net: Net) -> str:
    joined, sizes = _joined(net)
    pooled = net.op("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2])
    return _conv(net, _conv(net, pooled, sizes), [1.0] * 8)


def _resized(net: Net) -> str:
    joined, sizes = _joined(net)
    larger = net.op("Resize", joined, "", net.store([1, 1, 2, 2]), mode="nearest")
    return _conv(net, _conv(net, larger, sizes), [1.0] * 8)


def _nested(net: Net) -> str:
    (a, b, c), sizes = _branches(net, LOUD, SOFT, 1.0)
    joined = net.op("Concat", net.op("Concat", a, b, axis=1), c, axis=1)
    return _conv(net, _conv(net, joined, sizes), [1.0] * 8)


def _also_float(net: Net) -> str:
    joined, sizes = _joined(net)
    y = _conv(net, _conv(net, joined, sizes, 16), [1.0] * 16, 16)
    return net.op("Add", y, net.op("Sigmoid", joined))


def _grouped(net: Net) -> str:
    joined, sizes = _joined(net)
    return _conv(net, _conv(net, joined, sizes, groups=2), [1.0] * 8)


def _transposed(net: Net) -> str:
    joined, sizes = _joined(net)
    w = _drawn(net, (16, 8, 2, 2), sizes, 0)
    y = net.op("Relu", net.op("ConvTranspose", joined, w, strides=[2, 2]))
    return _conv(net, y, [1.0] * 8)


def _linear(net: Net) -> str:
    joined = net.op("Concat", net.input("box", 1, 50, 4), net.input("score", 1, 50, 20), axis=2)
    w = _drawn(net, (24, 16), [300.0] * 4 + [0.5] * 20, 0)
    return net.op("MatMul", net.op("Relu", net.op("MatMul", joined, w)), net.draw(16, 8))


def _table(net: Net) -> str:
    w = _drawn(net, (6, 16), RANGES["table"], 0)
    y = net.op("Relu", net.op("MatMul", net.input("table", 4, 6), w))
    return net.op("MatMul", y, net.draw(16, 8))


def _flattened(net: Net) -> str:
    joined, sizes = _joined(net)
    flat = net.op("Flatten", net.op("GlobalAveragePool", joined))
    y = net.op("MatMul", flat, _drawn(net, (16, 32), sizes, 0))
    return net.op("MatMul", net.op("Relu", y), net.draw(32, 8))


def _soft_one_elsewhere(net: Net) -> str:
    """The layer behind the Concat does not need the soft branch; another layer does."""
    (loud, soft), _ = _branches(net, LOUD, SOFT)
    y = _conv(net, net.op("Concat", loud, soft, axis=1), [LOUD] * 16)
    return _conv(net, net.op("Add", y, _conv(net, soft, [SOFT] * 8)), [1.0] * 8)


def _soft_ones_elsewhere(net: Net) -> str:
    """So with two soft branches, joined for the other layer: its pair moves to both of them."""
    (loud, *soft), _ = _branches(net, LOUD, SOFT, SOFT)
    joined = net.op("Concat", *soft, axis=1)
    y = _conv(net, net.op("Concat", loud, joined, axis=1), [LOUD] * 24)
    return _conv(net, net.op("Add", y, _conv(net, joined, [SOFT] * 16)), [1.0] * 8)


def _with_an_empty_part(net: Net) -> str:
    (loud, soft), sizes = _branches(net, LOUD, SOFT)
    none = net.op("Slice", soft, [0], [0], [1])
    joined = net.op("Concat", loud, none, soft, axis=1)
    return _conv(net, _conv(net, joined, sizes), [1.0] * 8)


BUILDS: list[Build] = [
    *(_rgb_and_depth, _rgbd, _transposed_input, _coordinates, _plain, _pooled, _resized, _nested),
    *(_also_float, _grouped, _transposed, _linear, _table, _flattened, _soft_one_elsewhere),
    *(_soft_ones_elsewhere, _with_an_empty_part),
]


def _samples(proto: onnx.ModelProto, seed: int, count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        {i.name: _values(i, random) for i in proto.graph.input}  # a sample of each input
        for _ in range(count)
    ]


def _values(value: onnx.ValueInfoProto, random: np.random.Generator) -> np.ndarray:
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    if value.name == "rgbd_last":
        return np.asarray(random.random(shape) * RANGES["rgbd"], np.float32)
    sizes = RANGES.get(value.name)
    if sizes is None:
        return random.standard_normal(shape).astype(np.float32)
    shaped = np.reshape(sizes, [-1, 1, 1] if len(shape) == 4 else [-1])
    return np.asarray(random.random(shape) * shaped, np.float32)


def _optimized(build: Build, folder: Path, **settings: object) -> tuple[Result, float]:
    """The result, and its SQNR on samples that calibration did not see, the worst of them."""
    net = Net(opset=17)
    proto = net.proto(build(net))
    path = folder / "model.onnx"
    onnx.save(proto, path)
    result = optimize(path, None, calibration=_samples(proto, 1, 8), **settings)
    worst = np.inf
    for feed in _samples(proto, 2, 4):
        (exact,), (got,) = run(proto, feed), run(result.model, feed)
        worst = min(worst, np.square(exact).sum() / np.square(exact - got).sum())
    return result, 10.0 * float(np.log10(worst))


def _events(result: Result, what: str) -> list[str]:
    return [e.detail for e in result.trace if e.name == "UnlikeRanges" and e.what == what]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_each_part_keeps_its_own_step(build: Build, tmp_path: Path) -> None:
    result, decibels = _optimized(build, tmp_path, precision="int8")
    assert decibels > 30
    assert all(g.is_quantized for g in result.plan.groups if g.spec.weights)
    (detail,) = _events(result, "match")
    assert "one step for all leaves" in detail


def test_with_a_half_rest_too(tmp_path: Path) -> None:
    assert _optimized(_rgb_and_depth, tmp_path)[1] > 30


def test_the_part_that_is_lost_is_named(tmp_path: Path) -> None:
    (detail,) = _events(_optimized(_rgb_and_depth, tmp_path)[0], "match")
    assert "'rgb[" in detail


def test_the_pairs_go_on_moving_through_the_concat(tmp_path: Path) -> None:
    result, _ = _optimized(_pooled, tmp_path, flat=True)
    ops = {name: node.op_type for node in result.model.graph.node for name in node.output}
    (concat,) = [node for node in result.model.graph.node if node.op_type == "Concat"]
    assert {ops[name] for name in concat.input} == {"DequantizeLinear"}


def _one_weight_for_two(net: Net) -> str:
    w = _drawn(net, (8, 4, 3, 3), [0.5, 0.5, 0.5, 40], 1)
    first, second = (
        net.op("Relu", net.op("Conv", _image(net, name, 4), w, pads=[1] * 4))
        for name in ("rgbd", "other")
    )
    return _conv(net, net.op("Add", first, second), [1.0] * 8)


def test_a_layer_whose_weight_cannot_take_it_stays_float(tmp_path: Path) -> None:
    result, decibels = _optimized(_one_weight_for_two, tmp_path)
    assert decibels > 30
    (group,) = [g for g in result.plan.groups if g.spec.weights and not g.is_quantized]
    assert "'rgbd[" in group.reason
    assert "is read elsewhere too" in group.reason


def test_one_that_is_asked_for_stays_int8(tmp_path: Path) -> None:
    result, decibels = _optimized(_one_weight_for_two, tmp_path, include=("*",))
    assert all(g.is_quantized for g in result.plan.groups if g.spec.weights)
    assert decibels < 20
    assert _events(result, "miss"), "and it is said"


def _tokens(net: Net, loud: float = 100.0) -> str:
    """Tokens of two sources; a norm makes those of both count alike."""
    parts = [net.op("MatMul", net.input(name, 1, 16, 32), net.draw(32, 32)) for name in "ab"]
    x = net.op("Concat", net.op("Mul", parts[0], loud), parts[1], axis=1)
    y = net.op("LayerNormalization", net.op("MatMul", x, net.draw(32, 32)), net.positive(32))
    return net.op("MatMul", net.op("Relu", y), net.draw(32, 8))


def _lines(net: Net, loud: float = 100.0) -> str:
    """A map of two halves."""
    parts = [net.conv(net.input(name, 1, 4, 8, 8), 4, 4) for name in "ab"]
    x = net.conv(net.op("Concat", net.op("Mul", parts[0], loud), parts[1], axis=2), 8, 4)
    power = net.op("Add", net.op("ReduceMean", net.op("Mul", x, x), axes=[1]), 1e-3)
    return net.conv(net.op("Div", x, net.op("Sqrt", power)), 4, 8)


def test_parts_of_an_open_size(tmp_path: Path) -> None:
    """Positions that are last before the Transpose, as many as a sample has."""
    net = Net(17)
    parts = [net.op("Relu", net.input(name, 1, 8, "n")) for name in "ab"]
    x = net.op("Transpose", net.op("Concat", *parts, axis=2), perm=[0, 2, 1])
    y = net.op("Relu", net.op("MatMul", x, net.draw(8, 8)))
    onnx.save(net.proto(net.op("MatMul", y, net.draw(8, 8))), tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    feeds = [
        {n: random.standard_normal((1, 8, size)).astype(np.float32) for n in "ab"}
        for size in (4, 6, 5)
    ]
    result = optimize(tmp_path / "m.onnx", None, feeds)
    assert all(g.is_quantized for g in result.plan.groups if g.spec.weights)


@pytest.mark.parametrize("build", [_tokens, _lines], ids=lambda build: build.__name__)
def test_parts_joined_along_no_channels_stay_float(build: Build, tmp_path: Path) -> None:
    result, decibels = _optimized(build, tmp_path)
    assert decibels > 30
    (group,) = [g for g in result.plan.groups if g.spec.weights and not g.is_quantized]
    assert "one step for all leaves" in group.reason
    assert "joined along no channels" in group.reason
    alike, _ = _optimized(lambda net: build(net, 2.0), tmp_path)
    assert all(g.is_quantized for g in alike.plan.groups if g.spec.weights)


@pytest.mark.parametrize(
    ("change", "is_float"),
    [("", True), ("asked: true", False)],
    ids=["as the plan has it", "asked for"],
)
def test_a_plan_file_that_nobody_changed_changes_nothing(
    change: str, is_float: bool, tmp_path: Path
) -> None:
    _optimized(_one_weight_for_two, tmp_path)
    file = tmp_path / "plan.yaml"
    write_plan(inspect(tmp_path / "model.onnx"), file)
    text = file.read_text()
    if change:
        file.write_text(text.replace("  decision: int8\n", f"  decision: int8\n  {change}\n"))
    result, _ = _optimized(_one_weight_for_two, tmp_path, plan=file)
    layers = [group for group in result.plan.groups if group.spec.weights]
    assert any(not group.is_quantized for group in layers) == is_float


def _alike(net: Net) -> str:
    parts, sizes = _branches(net, 1.0, 3.0)
    return _conv(net, net.op("Concat", *parts, axis=1), sizes)


def _unimportant(net: Net) -> str:
    """The soft branch has no say in the layer that reads it, and no other reader."""
    return _conv(net, _joined(net)[0], [1.0] * 16)


def _bright_points_elsewhere(net: Net) -> str:
    """A few elements are as large as the other branch: no factor gives the rest finer steps."""
    (plain, other), sizes = _branches(net, 1.0, 1.0)
    points = net.op("Mul", net.op("Pow", other, np.float32(16)), np.float32(5e-11))
    y = _conv(net, net.op("Concat", plain, points, axis=1), sizes)
    return _conv(net, net.op("Add", y, _conv(net, points, [4.0] * 8)), [1.0] * 8)


@pytest.mark.parametrize(
    "build", [_alike, _unimportant, _bright_points_elsewhere], ids=lambda build: build.__name__
)
def test_where_nothing_is_lost_nothing_changes(build: Build, tmp_path: Path) -> None:
    result, decibels = _optimized(build, tmp_path)
    assert not _events(result, "match")
    assert not _events(result, "miss")
    assert decibels > 30


def test_steps_that_grow_need_none(tmp_path: Path) -> None:
    result, _ = _optimized(_plain, tmp_path, precision="fp8", target="sm89")
    assert not _events(result, "match")
