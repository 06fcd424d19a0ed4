"""A graph as data: which stem, blocks, tail and disguises, each with a seed of its own.

A recipe builds the same bytes everywhere, and one with a step less builds the rest as before: that
is how a failure is made small.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import attention_blocks
import map_blocks
import move_blocks
import numpy as np
import onnx
import token_blocks
from building import run
from disguises import DISGUISES
from ends import SAMPLES, STEMS, TAILS
from growing import LINE, MAP, ROW, TOKENS, VOLUME, Grower

# So many times the samples that a model is drawn with, where a figure is to be sure.
_MORE = 5
SPACE = (MAP, LINE, VOLUME)
ANY = (*SPACE, TOKENS, ROW)
Step = tuple[str, int]


@dataclass(frozen=True)
class Block:
    """What grows a value, the layouts it takes, and how often it is drawn."""

    grow: Callable[[Grower], None]
    takes: tuple[str, ...]
    weight: int = 1


BLOCKS = {
    block.grow.__module__.removesuffix("_blocks") + "." + block.grow.__name__: block
    for block in (
        Block(map_blocks.spelled, (MAP,), 8),
        Block(map_blocks.conv, SPACE, 8),
        Block(map_blocks.residual, SPACE, 4),
        Block(map_blocks.deconv, SPACE, 2),
        Block(map_blocks.pool, SPACE, 2),
        Block(map_blocks.norm, SPACE, 2),
        Block(map_blocks.act, ANY, 3),
        Block(map_blocks.concat, ANY, 3),
        Block(map_blocks.resize, (MAP,), 2),
        Block(map_blocks.shuffle, (MAP,), 2),
        Block(map_blocks.pad_map, (MAP, LINE)),
        Block(map_blocks.to_tokens, SPACE, 3),
        Block(attention_blocks.attention, (TOKENS,), 10),
        Block(attention_blocks.window_attention, (MAP,), 2),
        Block(token_blocks.dense, (TOKENS, ROW), 8),
        Block(token_blocks.mlp, (TOKENS, ROW), 4),
        Block(token_blocks.gated, (TOKENS, ROW), 2),
        Block(token_blocks.norm, (TOKENS, ROW), 2),
        Block(token_blocks.positions, (TOKENS,), 2),
        Block(token_blocks.class_token, (TOKENS,)),
        Block(token_blocks.pooled, (TOKENS,)),
        Block(token_blocks.to_map, (TOKENS,)),
        Block(token_blocks.mixed, (TOKENS,)),
        Block(token_blocks.row_to_map, (ROW,)),
        Block(token_blocks.map_to_row, SPACE, 2),
        Block(move_blocks.identity, ANY, 2),
        Block(move_blocks.scale, ANY, 2),
        Block(move_blocks.permuted, ANY),
        Block(move_blocks.halved, ANY),
        Block(move_blocks.flipped, ANY),
        Block(move_blocks.turned, ANY),
        Block(move_blocks.gate, ANY, 2),
        Block(move_blocks.ones, ANY),
        Block(move_blocks.observed, ANY),
        Block(move_blocks.branch, ANY),
        Block(move_blocks.loop, ANY),
        Block(move_blocks.scan, (TOKENS, LINE)),
        Block(move_blocks.recurrent, (TOKENS,)),
        Block(move_blocks.shared, ANY),
    )
}
OPSETS = (11, 12, 13, 13, 14, 15, 16, 17, 17, 17, 18, 18, 19, 20, 21, 22, 23)


@dataclass(frozen=True)
class Recipe:
    """One graph.

    Attributes:
        disguises: changes to the finished model that keep its meaning.
        seed: of the samples.
    """

    opset: int
    stem: Step
    blocks: tuple[Step, ...]
    tail: Step
    disguises: tuple[Step, ...] = ()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Drawn:
    """A model with its samples: calibration first, unseen ones behind.

    Attributes:
        rough: outputs that jump where their input moves a little.
        plain: the model without its disguises, for what a reference is made from.
        more: further samples.
    """

    proto: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]
    rough: frozenset[str] = field(default_factory=frozenset)
    plain: onnx.ModelProto | None = None
    more: Callable[[], list[dict[str, np.ndarray]]] = list


def draw_recipe(seed: int) -> Recipe:
    """A recipe from one number."""
    draw = random.Random(seed)
    opset = draw.choice(OPSETS)
    stem = (draw.choice(list(STEMS)), draw.randrange(2**31))
    grower = _begun(opset, stem)
    blocks: list[Step] = []
    for _ in range(draw.randint(1, 6)):
        able = [n for n, b in BLOCKS.items() if grower.value.layout in b.takes]
        weights = [BLOCKS[name].weight for name in able]
        step = (draw.choices(able, weights)[0], draw.randrange(2**31))
        _grow(grower, step)
        blocks.append(step)
    tail = (draw.choice(list(TAILS)), draw.randrange(2**31))
    count = draw.choice([0, 0, 1, 1, 2, 3])
    disguises = tuple((name, draw.randrange(2**31)) for name in draw.sample(list(DISGUISES), count))
    return Recipe(opset, stem, tuple(blocks), tail, disguises, draw.randrange(2**31))


def build(recipe: Recipe) -> Drawn:
    """The model and its samples."""
    grower = _begun(recipe.opset, recipe.stem)
    for step in recipe.blocks:
        if grower.value.layout in BLOCKS[step[0]].takes:
            _grow(grower, step)
    grower.begin(recipe.tail[1])
    TAILS[recipe.tail[0]](grower)
    inputs = {value.name for value in grower.net.inputs}
    outputs = [o for o in dict.fromkeys(grower.outputs) if o not in inputs]
    proto = grower.net.proto(*(outputs or [grower.op("Identity", grower.value.name)]))
    feeds = _feeds(grower, recipe.seed)
    _declare(proto, feeds[0])
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for name, seed in recipe.disguises:
        proto = DISGUISES[name](proto, random.Random(seed))

    def more() -> list[dict[str, np.ndarray]]:
        seeds = range(recipe.seed + 1, recipe.seed + 1 + _MORE)
        return [_typed(proto, feed) for seed in seeds for feed in _feeds(grower, seed)]

    rough = frozenset(grower.rough)
    return Drawn(proto, [_typed(proto, feed) for feed in feeds], rough, plain, more)


def _declare(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    """Gives a rank to outputs whose shape could not be inferred: a valid model needs one."""
    if all(v.type.tensor_type.HasField("shape") for v in proto.graph.output):
        return
    for value, array in zip(proto.graph.output, run(proto, feed), strict=True):
        if not value.type.tensor_type.HasField("shape"):
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            shape = [None] * array.ndim
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))


def _typed(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feed in the types of the inputs: a disguise may have made them half."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
    return {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, array in feed.items()
    }


def _begun(opset: int, stem: Step) -> Grower:
    grower = Grower(opset, stem[1])
    STEMS[stem[0]](grower)
    return grower


def _grow(grower: Grower, step: Step) -> None:
    grower.begin(step[1])
    BLOCKS[step[0]].grow(grower)


def _feeds(grower: Grower, seed: int) -> list[dict[str, np.ndarray]]:
    random_ = np.random.default_rng(seed)
    found = []
    for i in range(2 * SAMPLES):
        feed = {}
        for value in grower.net.inputs:
            kind = value.type.tensor_type
            shape = [
                grower.sizes[d.dim_param][i] if d.dim_param else d.dim_value for d in kind.shape.dim
            ]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if value.name in grower.whole:
                array = random_.integers(*grower.whole[value.name], shape)
            else:
                array = random_.standard_normal(shape)
            feed[value.name] = np.asarray(array).astype(dtype)
        found.append(feed)
    return found
