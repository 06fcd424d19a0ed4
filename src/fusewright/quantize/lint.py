"""The Q/DQ linter: what must hold of every quantized graph, whatever placed the pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import SHAPE_ONLY, data_readers
from fusewright.graph.opset import INT8_OPSET as _OPSET
from fusewright.graph.walk import input_at, is_constant, producer, values
from fusewright.groups.activations import act
from fusewright.match.pattern import root_types, var
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import HEAVY_OPS
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.target import FORMATS, Format, format_of
from fusewright.target.formats import (
    MXFP8_DEQUANTIZE,
    MXFP8_QUANTIZE,
    NVFP4_QUANTIZE,
    TRT_DOMAIN,
)
from fusewright.target.precision import MXFP8

_TITLES = ", ".join(form.title for form in FORMATS.values())
_BFLOAT16 = 16
_PAIR = (QUANTIZE, DEQUANTIZE)
# What an Act is made of; SiLU, Mish, GELU and HardSwish chains have two to five nodes.
_ACT_OPS = root_types(act(var("x"))) | {"Add", "Div", "Erf", "Max", "Min", "Mul", "Sub"}
_LONGEST_ACT = 5


@dataclass(frozen=True)
class Violation:
    """A rule that a graph breaks.

    Attributes:
        node: name of the node at fault: a Q or DQ node, or one that reads a pair.
        text: what is wrong, in one line.
    """

    node: str
    text: str


def lint(graph: gs.Graph) -> list[Violation]:
    """What breaks a rule on a flat graph; an empty list is a clean bill."""
    return [
        *_scales(graph),
        *_blocks(graph),
        *_one_pair_per_tensor(graph),
        *_types(graph),
        *_outputs(graph),
        *_weighted(graph),
        *_concat(graph),
        *_unweighted(graph),
    ]


def _at(node: gs.Node, text: str) -> Violation:
    return Violation(node.name, f"{node.op} '{node.name}' {text}")


def _is_dequantized(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    return node is not None and node.op in (DEQUANTIZE, MXFP8_DEQUANTIZE)


def _scales(graph: gs.Graph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op not in _PAIR or _is_of_blocks(node):
            continue
        scale = node.inputs[1]
        if not is_constant(scale) or not np.all(values(scale) > 0):
            yield _at(node, "has a scale that is not positive")
        if not _is_symmetric(node):
            yield _at(node, f"has a zero-point other than 0 of {_TITLES}")
        quantize = producer(node.inputs[0]) if node.op == DEQUANTIZE else None
        if quantize is not None and quantize.op == QUANTIZE and not _same_grid(quantize, node):
            yield _at(node, f"has another scale or axis than '{quantize.name}' in front of it")


def _is_of_blocks(dequantize: gs.Node) -> bool:
    """Whether it restores values whose scales come from a DequantizeLinear, or those scales."""
    readers = dequantize.outputs[0].outputs
    return producer(dequantize.inputs[1]) is not None or any(
        reader.op == DEQUANTIZE and reader.inputs[1] is dequantize.outputs[0] for reader in readers
    )


def _blocks(graph: gs.Graph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op not in (NVFP4_QUANTIZE, MXFP8_QUANTIZE):
            continue
        shape, block = node.inputs[0].shape or (None,), node.attrs["block_size"]
        if not isinstance(shape[-1], int) or shape[-1] % block:
            yield _at(node, f"cuts an axis of {shape[-1]} into blocks of {block}")
        if len(shape) not in (2, 3):
            yield _at(node, f"has {len(shape)} dimensions; TensorRT takes 2 or 3")
        if node.op == NVFP4_QUANTIZE and not np.all(values(node.inputs[1]) > 0):
            yield _at(node, "has a scale that is not positive")
        if _is_dequantized(node.inputs[0]):
            yield _at(node, "quantizes what was quantized already")


def _is_symmetric(node: gs.Node) -> bool:
    """Whether the zero-point is 0 in a known format; stored weights of four bits may lack one."""
    zero, form = input_at(node, 2), _format(node)
    if zero is None:
        return node.op == DEQUANTIZE and form is not None and form.weights_only
    return form is not None and is_constant(zero) and not np.any(values(zero).astype(np.float32))


def _format(node: gs.Node) -> Format | None:
    """What a Q or DQ node rounds to: the type of its zero-point, else of what it dequantizes."""
    if node.op == MXFP8_DEQUANTIZE:
        return FORMATS[MXFP8]
    zero = input_at(node, 2)
    told = zero if zero is not None else node.inputs[0] if node.op == DEQUANTIZE else None
    return None if told is None or told.dtype is None else format_of(told.dtype)


def _same_grid(first: gs.Node, second: gs.Node) -> bool:
    one, other = first.inputs[1], second.inputs[1]
    if first.attrs.get("axis") != second.attrs.get("axis") or _format(first) != _format(second):
        return False
    if one is other or not (is_constant(one) and is_constant(other)):
        return one is other
    return bool(np.array_equal(values(one), values(other)))


def _one_pair_per_tensor(graph: gs.Graph) -> Iterator[Violation]:
    pairs: dict[tuple[str, object, Format | None], list[gs.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == QUANTIZE:
            pairs[node.inputs[0].name, node.attrs.get("axis"), _format(node)].append(node)
            if _is_dequantized(node.inputs[0]):
                yield _at(node, "quantizes what was quantized already")
    for (tensor, _, _), nodes in pairs.items():
        if len(nodes) > 1:
            yield _at(nodes[0], f"is one of {len(nodes)} pairs of tensor '{tensor}'")


def _types(graph: gs.Graph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op == QUANTIZE:
            dtype = node.inputs[0].dtype
            if dtype is not None and not _is_float(dtype):
                yield _at(node, f"quantizes a tensor of type {np.dtype(dtype)}")


def _is_float(dtype: object) -> bool:
    # graphsurgeon keeps ONNX's number of bfloat16 where it read it, which NumPy lacks.
    if dtype in (_BFLOAT16, ml_dtypes.bfloat16):
        return True
    return bool(np.dtype(dtype).kind == "f")  # type: ignore[call-overload]


def _outputs(graph: gs.Graph) -> Iterator[Violation]:
    for tensor in graph.outputs:
        if _is_dequantized(tensor):
            yield _at(tensor.inputs[0], f"writes the output '{tensor.name}', which is quantized")


def _weighted(graph: gs.Graph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op in HEAVY_OPS:
            yield from _operands(node)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and _is_dequantized(bias):
                yield _at(node, "has a quantized bias")


def _operands(node: gs.Node) -> Iterator[Violation]:
    """Both operands are quantized to one format, or a stored one to a weights-only format."""
    sides = [_dequantizer(t) for t in node.inputs[:2]]
    formats = [None if side is None else _format(side) for side in sides]
    if any(form is not None and form.weights_only for form in formats):
        return
    if any(sides) and not all(sides):
        yield _at(node, "has a pair on one of its two operands")
    elif formats[0] != formats[-1]:
        shown = " and ".join(form.title for form in formats if form is not None)
        yield _at(node, f"has operands in {shown}")


def _concat(graph: gs.Graph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op != "Concat":
            continue
        found = [_dequantizer(t) for t in node.inputs]
        made = [dq for dq in found if dq is not None]
        if made and len(made) < len(found):
            yield _at(node, "has a pair on some of its inputs only")
        elif made and not all(_same_grid(made[0], dq) for dq in made):
            yield _at(node, "has inputs of different scales")


def _unweighted(graph: gs.Graph) -> Iterator[Violation]:
    """An op without weights that reads INT8 only must write it: TensorRT fuses both or neither."""
    fixed = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        if (
            node.op in (*HEAVY_OPS, *_PAIR)
            or node.domain == TRT_DOMAIN
            or data_inputs(node, _OPSET)
        ):
            continue
        computed = [t for t in node.inputs if not is_constant(t) and not t.is_empty()]
        if not computed or not all(_is_int8(t) for t in computed) or _asks_behind_layout(node):
            continue
        if not _is_fused(node, fixed):
            yield _at(node, "reads INT8 and writes float, without weights")


def _asks_behind_layout(node: gs.Node) -> bool:
    """Whether a node reads but the sizes of what an operator behind a pair laid out anew.

    SegFormer asks for the map that it makes of tokens, and its convolution moved the pair in front
    of the tokens. Behind the pair itself it has no place: the tensor in front has the same sizes.
    """
    return node.op in SHAPE_ONLY and not _is_dequantized(node.inputs[0])


def _is_int8(tensor: gs.Tensor) -> bool:
    """Whether a tensor is dequantized, or an Act away from it."""
    return _act_input(tensor) is not None


def _act_input(tensor: gs.Tensor, depth: int = 0) -> gs.Tensor | None:
    """The one dequantized tensor that this one is, or is an Act of, in however many nodes."""
    if _dequantizer(tensor) is not None:
        return tensor
    node = producer(tensor)
    return None if node is None or depth > _LONGEST_ACT else _of_one_tensor(node, depth)


def _of_one_tensor(node: gs.Node, depth: int = 0) -> gs.Tensor | None:
    if node.op not in _ACT_OPS:
        return None
    found = [
        _act_input(t, depth + 1) for t in node.inputs if not is_constant(t) and not t.is_empty()
    ]
    return found[0] if found and all(t is found[0] for t in found) else None


def _is_fused(node: gs.Node, fixed: set[int]) -> bool:
    """Whether a node that reads INT8 writes it too, or is inside an Act of which that holds.

    The Act of Act → Add is judged with the Add.
    """
    if all(_is_read_quantized(t, fixed) for t in node.outputs):
        return True
    readers = [r for t in node.outputs for r in data_readers(t)]
    if not readers or _of_one_tensor(node) is None:
        return False
    return all(_joins(reader) or _is_fused(reader, fixed) for reader in readers)


def _joins(node: gs.Node) -> bool:
    computed = [t for t in node.inputs if not is_constant(t) and not t.is_empty()]
    return len(computed) > 1 and _of_one_tensor(node) is None


def _is_read_quantized(tensor: gs.Tensor, fixed: set[int]) -> bool:
    if id(tensor) in fixed or not data_readers(tensor):
        return False
    for reader in data_readers(tensor):
        moves = any(t is tensor for t in data_inputs(reader, _OPSET))
        if reader.op != QUANTIZE and not (
            moves and all(_is_read_quantized(t, fixed) for t in reader.outputs if data_readers(t))
        ):
            return False
    return True


def _dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear behind a tensor, perhaps in front of ops that only move elements."""
    seen = 0
    while not _is_dequantized(tensor):
        node = producer(tensor)
        sources = () if node is None else data_inputs(node, _OPSET)
        if not sources or seen > 64:
            return None
        tensor, seen = sources[0], seen + 1
    return producer(tensor)
