"""A graph that grows block by block, and what is known of the value that grows.

Sizes are those of the first sample; an axis that is `open` has another size in other samples, so
that a block reads it with Shape, or copies it, and never writes it down.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from building import Net
from spelling import AXES_INPUT, SUM_AXES_INPUT, Speller

MAP, LINE, VOLUME, TOKENS, ROW = "map", "line", "volume", "tokens", "row"
FAR = 2**31 - 1
Part = int | tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor: its axes are batch, channels and space, but of tokens batch, length and width."""

    name: str
    layout: str
    size: tuple[int, ...]
    open: frozenset[int] = frozenset()

    @property
    def channel_axis(self) -> int:
        return 2 if self.layout == TOKENS else 1

    @property
    def channels(self) -> int:
        return self.size[self.channel_axis]

    @property
    def is_static(self) -> bool:
        return not self.open - {0}

    def but(self, name: str, **changes: Any) -> Value:
        return replace(self, name=name, **changes)

    def resized(self, name: str, axis: int, size: int) -> Value:
        return self.but(name, size=(*self.size[:axis], size, *self.size[axis + 1 :]))


class Grower(Speller):
    """Holds the value that grows, and earlier ones to come back to.

    Attributes:
        value: what the next block reads.
        kept: earlier values, for skips and second operands.
        outputs: names that are outputs of the model beside the last value.
        sizes: axis name → its size in each sample.
        whole: input name → (smallest, beyond) of integers that it takes.
        rough: outputs that jump where their input moves a little.
        table: the embedding that a tail may tie.
    """

    def __init__(self, opset: int, seed: int) -> None:
        super().__init__(Net(opset, seed), random.Random(seed), "", 0)
        self.value = Value("", ROW, (1, 1))
        self.kept: list[Value] = []
        self.outputs: list[str] = []
        self.sizes: dict[str, list[int]] = {}
        self.whole: dict[str, tuple[int, int]] = {}
        self.rough: set[str] = set()
        self.table = ""

    @property
    def draw(self) -> random.Random:
        assert self.random is not None
        return self.random

    def begin(self, seed: int) -> None:
        """What follows depends on this seed alone, so that leaving out a block moves no other."""
        self.random = random.Random(seed)
        self.net.random = np.random.default_rng(seed)

    def set(self, value: Value) -> None:
        self.kept = [*self.kept[-5:], self.value]
        self.value = value

    def chance(self, one_in: int) -> bool:
        return self.draw.randrange(one_in) == 0

    def like(self, value: Value) -> Value | None:
        """An earlier value of the same shape."""
        same = [
            v
            for v in self.kept
            if (v.layout, v.size, v.open) == (value.layout, value.size, value.open)
        ]
        return self.draw.choice(same) if same else None

    # Spellings that depend on the opset.

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        if self.net.opset >= SUM_AXES_INPUT:
            return self.op("Unsqueeze", x, list(axes))
        return self.op("Unsqueeze", x, axes=list(axes))

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        if self.net.opset >= SUM_AXES_INPUT:
            return self.op("Squeeze", x, list(axes))
        return self.op("Squeeze", x, axes=list(axes))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> tuple[str, ...]:
        """Split, by sizes or into equal parts, or a Slice each."""
        if self.chance(4):
            ends = np.cumsum([0, *sizes]).tolist()
            pairs = itertools.pairwise(ends)
            return tuple(self.slice(x, axis, a, b) for a, b in pairs)
        count = len(sizes)
        if self.net.opset < SUM_AXES_INPUT:
            return self.net.op("Split", x, outputs=count, axis=axis, split=list(sizes))
        if len(set(sizes)) > 1 or self.chance(2):
            return self.net.op("Split", x, list(sizes), outputs=count, axis=axis)
        more = {"num_outputs": count} if self.net.opset >= AXES_INPUT else {}
        return self.net.op("Split", x, outputs=count, axis=axis, **more)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        steps = [[step]] if step != 1 or self.chance(2) else []
        return self.op("Slice", x, [start], [end], [axis], *steps)

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.op("Transpose", x, perm=list(perm))

    # Shapes.

    def dim(self, x: str, axis: int) -> str:
        """The size of an axis, as a tensor of one element."""
        if self.net.opset >= 15 and self.chance(4):
            return self.op("Shape", x, start=axis, end=axis + 1)
        shape = self.op("Shape", x)
        if self.chance(2):
            return self.slice(shape, 0, axis, axis + 1)
        return self.unsqueeze(self.op("Gather", shape, np.int64(axis), axis=0), [0])

    def reshape(self, value: Value, parts: Sequence[Part], layout: str) -> Value:
        """Reshapes to `parts`: a number, or the axes whose product it is."""
        sizes = [
            p if isinstance(p, int) else int(np.prod([value.size[i] for i in p])) for p in parts
        ]
        opened = [i for i, p in enumerate(parts) if not isinstance(p, int) and value.open & set(p)]
        copied = [i for i in opened if parts[i] == (i,)]
        left = [i for i in opened if i not in copied]
        if len(left) < 2 and not self.chance(3):
            target = [0 if i in copied else -1 if i in left else n for i, n in enumerate(sizes)]
            if not left and self.chance(3):
                target[self.draw.randrange(len(target))] = -1
            name = self.op("Reshape", value.name, self._stored_shape(target))
        else:
            name = self.op("Reshape", value.name, self._computed(value, parts, opened, sizes))
        return Value(name, layout, tuple(sizes), frozenset(opened))

    def _stored_shape(self, target: list[int]) -> Any:
        if self.chance(4):
            return self.op("Concat", *(np.array([n], np.int64) for n in target), axis=0)
        return target

    def _computed(
        self, value: Value, parts: Sequence[Part], opened: Sequence[int], sizes: Sequence[int]
    ) -> str:
        made: list[Any] = []
        for i, part in enumerate(parts):
            if i not in opened or isinstance(part, int):
                made.append(np.array([sizes[i]], np.int64))
                continue
            factor = self.dim(value.name, part[0])
            for axis in part[1:]:
                factor = self.op("Mul", factor, self.dim(value.name, axis))
            made.append(factor)
        return self.op("Concat", *made, axis=0)

    # Layers.

    def dense(self, x: str, into: int, out: int, bias: bool = True) -> str:
        """A Linear over the last axis of a value of any rank."""
        w = self.net.stored[self.weight(into, out)]
        way = self.pick(4)
        turned = np.ascontiguousarray(w.T)
        if way == 1:
            y = self.op("MatMul", x, self.op("Transpose", turned, perm=[1, 0]))
        elif way == 2 and self.net.opset >= 12:
            y = self.op("Einsum", x, turned, equation="...i,oi->...o")
        else:
            y = self.op("MatMul", x, w)
        return self.op("Add", y, self.net.stored[self.net.draw(out, name="b")]) if bias else y

    def weight(self, *shape: int) -> str:
        """Drawn weights; some are tiny, large, with dead channels or all zeros."""
        name = self.net.draw(*shape)
        way, w = self.pick(24), self.net.stored[name]
        if way == 1:
            w *= np.float32(1e-4)
        elif way == 2:
            w *= np.float32(30)
        elif way == 3:
            w[: max(1, shape[0] // 2)] = 0
        elif way == 4 and self.chance(3):
            w[:] = 0
        elif way == 5:
            w[..., 0] *= np.float32(50)
        return name
