"""Swin's windows: what a layout region does to a feature map, told from where it takes the tokens.

The definition: the map [batch, height, width, channels] is padded at the bottom and the right to
multiples of the window, rolled up and to the left by the shift (timm rolls before it pads), and cut
into windows in row-major order. The reverse puts every token back and drops the padding. Exporters
write this in many ways, some with the map as [batch, height·width, channels]; the index tensor that
comes out is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dims import resolve
from fusewright.graph.layout import Region, region_ahead, region_behind
from fusewright.graph.walk import is_constant, producer
from fusewright.match.attention import Attention
from fusewright.match.linear import Linear, linear_at
from fusewright.match.projection import Projection, projection_of
from fusewright.match.scene import Scene

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
# Rows and columns, each in two parts, and the channels; the batch may be away where it is 1.
_CUT_AXES = 5
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Window:
    """How a map is cut.

    Attributes:
        size: height and width of a window, in tokens.
        shift: of the cyclic roll, up and to the left.
        padding: rows added at the bottom, columns added at the right.
        map: height and width before padding.
        rolls_first: the roll comes in front of the padding, as timm has it.
    """

    size: tuple[int, int]
    shift: tuple[int, int]
    padding: tuple[int, int]
    map: tuple[int, int]
    rolls_first: bool = False

    @property
    def covers_map(self) -> bool:
        """Whether there is one window, so that cutting is a plain reshape."""
        return self.size == self.map and self.shift == (0, 0)

    def cut(self, batch: int) -> np.ndarray:
        """Index of the token in each place, [batch·windows, tokens of a window]; -1 is padding."""
        height, width = self.map
        index = np.arange(batch * height * width).reshape(batch, height, width)
        amounts = ((0, 0), (0, self.padding[0]), (0, self.padding[1]))
        back = -self.shift[0], -self.shift[1]
        if self.rolls_first:
            index = np.roll(index, back, (1, 2))
        index = np.pad(index, amounts, constant_values=-1)
        if not self.rolls_first:
            index = np.roll(index, back, (1, 2))
        rows, columns = (n // s for n, s in zip(index.shape[1:], self.size, strict=True))
        index = index.reshape(batch, rows, self.size[0], columns, self.size[1])
        return index.transpose(0, 1, 3, 2, 4).reshape(-1, self.size[0] * self.size[1])

    def merge(self, batch: int) -> np.ndarray:
        """The reverse: place of each token in the windows, [batch·height·width]."""
        cut = self.cut(batch).reshape(-1)
        places = np.empty(batch * self.map[0] * self.map[1], np.int64)
        places[cut[cut >= 0]] = np.flatnonzero(cut >= 0)
        return places


def window_of(tokens: np.ndarray, batch: int, size: tuple[int, int] | None) -> Window | None:
    """The window that cuts a map like this, or None.

    Args:
        tokens: [windows, tokens of a window], index of the token in each place.
        batch: how many maps were cut.
        size: height and width of the map where its shape says so.
    """
    count = int(tokens.max()) + 1
    maps = [size] if size is not None else _pairs(count // batch)
    for height, width in _pairs(tokens.shape[1]):
        for rows, columns in maps:
            if batch * rows * columns != count:
                continue
            padding = (-rows % height, -columns % width)
            shift = divmod(int(tokens[0, 0]), columns)
            for rolls_first in (False, True) if any(padding) and any(shift) else (False,):
                window = Window((height, width), shift, padding, (rows, columns), rolls_first)
                cut = window.cut(batch)
                if cut.shape == tokens.shape and np.array_equal(cut, tokens):
                    return window
    return None


def _pairs(count: int) -> list[tuple[int, int]]:
    """The factors of a number in pairs, the square first."""
    pairs = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
    return sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))


@dataclass(frozen=True)
class Windowing:
    """The layout around one attention: from the map to its windows, and where found, back.

    Attributes:
        window: how the map is cut.
        partition: from the map to the projection.
        output: the Linear behind the core.
        reverse: from that Linear to the map, or why there is none.
    """

    window: Window
    partition: Region
    output: Linear | None
    reverse: Region | str


def windowing_of(attention: Attention) -> Windowing | str:
    """The windows that an attention runs in, or why it is not a window attention."""
    found = attention.scene.found
    key = "windowing", id(attention.match.root)
    if key not in found:
        found[key] = _find(attention)
    windowing = found[key]
    assert isinstance(windowing, Windowing | str)
    return windowing


def _find(attention: Attention) -> Windowing | str:
    projection = projection_of(attention)
    if isinstance(projection, str):
        return projection
    if len(projection.inputs) != 1:
        return "q, k and v of several maps"
    found: tuple[Region, Window] | str = ""
    for x, readers in _windows(projection):
        found = _partitioned(x, readers, attention)
        if not isinstance(found, str):
            break
    if isinstance(found, str):
        return found
    region, window = found
    output = output_linear(attention)
    reverse = _reverse(output, window, attention)
    return Windowing(window, region, output, reverse)


def _windows(projection: Projection) -> Iterator[tuple[gs.Tensor, list[gs.Node]]]:
    """What may be the map in windows, with its readers: what the projection reads, or its norm.

    The norm is in front of the partition in most files, and behind it in those of this package.
    """
    (x,) = projection.inputs
    node = producer(x)
    while node is not None and node.op in _VIEWS:
        node = producer(node.inputs[0])
    if node is not None and node.op in _NORMS:
        yield node.inputs[0], [node]
    yield x, [node for linear in projection.linears for node in linear.nodes]


def _partitioned(
    x: gs.Tensor, readers: list[gs.Node], attention: Attention
) -> tuple[Region, Window] | str:
    region = _partition(x, readers, attention.scene)
    if isinstance(region, str):
        return region
    window = _cut(region, attention)
    if isinstance(window, str):
        return window
    if window.covers_map and not (has_position_bias(attention) or _is_cut(region)):
        return "a plain reshape, and no position bias"
    return region, window


def _partition(x: gs.Tensor, readers: list[gs.Node], scene: Scene) -> Region | str:
    """The layout between the map and what reads its windows, closed to everything else."""
    stops: list[gs.Tensor] = []
    while True:
        region = region_behind([x], scene.opset, stops)
        if not region.nodes:
            return "no layout between the map and its projection"
        leak = region.leaks(readers, scene.outputs)
        if leak is None:
            return region
        maker = producer(leak)
        if maker is None or maker.op not in _VIEWS or leak is x:
            return f"'{leak.name}' of the partition used elsewhere"
        # The map itself, in another shape: the residual reads it too.
        stops.append(leak)


def _cut(region: Region, attention: Attention) -> Window | str:
    scene = attention.scene
    (length,) = resolve(attention.lengths[:1], scene.sizes)
    if length is None:
        return "windows of unknown length"
    moved = scene.moved(region)
    if isinstance(moved, str):
        return f"a partition that cannot be probed: {moved}"
    (array, *_), shape = moved
    tokens = _tokens(array, shape[-1])
    if tokens is None or tokens.size % length:
        return "tokens whose channels are moved"
    size = shape[1:3] if len(shape) == 4 else None
    window = window_of(tokens.reshape(-1, length), shape[0], size)
    if window is None:
        return f"another layout than windows of {length} tokens"
    return window


def _tokens(moved: np.ndarray, channels: int) -> np.ndarray | None:
    """Token that each row holds, -1 for padding; None where a row is not one whole token."""
    if moved.shape[-1] != channels:
        return None
    tokens, places = np.divmod(moved.reshape(-1, channels), channels)
    padded = moved.reshape(-1, channels) < 0
    if np.any(padded.any(1) != padded.all(1)) or np.any(tokens != tokens[:, :1]):
        return None
    if np.any((places != np.arange(channels)) & ~padded):
        return None
    return np.where(padded[:, 0], -1, tokens[:, 0])


def _is_cut(region: Region) -> bool:
    """Whether rows and columns are split and turned, though one window leaves all in its place.

    Nothing but a window partition turns that many axes: what changes places are the windows'
    columns, of which there is one, and the rows in a window. transformers' Swin before training
    (5.24): its biases are zero, and cleaning takes them away.
    """
    return any(len(node.attrs.get("perm", ())) >= _CUT_AXES for node in region.nodes)


def has_position_bias(attention: Attention) -> bool:
    """Whether the core adds a stored value per head and pair of positions."""
    length = attention.lengths[0]
    return any(
        is_constant(t) and len(t.shape) >= 3 and tuple(t.shape[-2:]) == (length, length)
        for t in attention.match.tensors.values()
    )


def output_linear(attention: Attention) -> Linear | None:
    """The Linear that alone reads the core, through layout."""
    scene = attention.scene
    ahead = region_ahead(attention.match.output, scene.opset)
    if len(ahead.results) != 1 or len(ahead.results[0].outputs) != 1:
        return None
    node = ahead.results[0].outputs[0]
    if node.op != "MatMul" or node.inputs[0] is not ahead.results[0]:
        return None
    result = node.outputs[0]
    if len(result.outputs) == 1 and result.outputs[0].op == "Add":
        add = result.outputs[0]
        if any(is_constant(t) for t in add.inputs):
            result = add.outputs[0]
    return linear_at(result, scene.outputs)


def _reverse(output: Linear | None, window: Window, attention: Attention) -> Region | str:
    scene = attention.scene
    if output is None:
        return "no Linear behind the attention"
    region = region_ahead(output.output, scene.opset)
    if not region.nodes:
        return "no layout between the Linear and the map"
    if len(region.results) != 1 or region.leaks((), scene.outputs) is not None:
        return "several tensors behind the Linear, not one map"
    moved = scene.moved(region)
    if isinstance(moved, str):
        return f"a reverse that cannot be probed: {moved}"
    (array, *_), shape = moved
    tokens = _tokens(array, shape[-1])
    # The batch of what was probed, which may be another than that of the partition.
    batch = 0 if tokens is None else len(tokens) // prod(window.map)
    if tokens is None or not np.array_equal(tokens, window.merge(batch)):
        return "another layout than the exact inverse of the partition"
    return region
