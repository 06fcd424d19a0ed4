"""Taking Q/DQ pairs out of a graph, whoever put them in."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import onnx_type
from fusewright.graph.edit import Names, bypass
from fusewright.graph.walk import is_constant, passes_on, producer
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.quantize.quantized_values import clipped, float_values, stored
from fusewright.target.formats import MXFP8_DEQUANTIZE, MXFP8_QUANTIZE, NVFP4_QUANTIZE

QUANTIZERS = frozenset({QUANTIZE, NVFP4_QUANTIZE, MXFP8_QUANTIZE})
DEQUANTIZERS = frozenset({DEQUANTIZE, MXFP8_DEQUANTIZE})
_KEEPERS = frozenset({"Clip", "Identity"})
# Of their first input; the others say where to.
_MOVERS = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def strip_qdq(graph: gs.Graph) -> list[str]:
    """Takes every Q/DQ pair out, in place; names the tensors that had one.

    A weight stored quantized becomes float again, with the values it was rounded to. What narrows
    or moves quantized values between the two goes, or moves the float ones. Pairs inside local
    functions and bodies go too; a scale that a call handed over stays as an input that nothing
    reads. What is no pair stays: see `left_quantized`.
    """
    found = _strip(graph)
    for body in graph.subgraphs(recursive=True):
        found += _strip(body)
    for function in graph.functions:
        found += [f"{function.name}/{name}" for name in _strip(function)]
    return found


def _strip(graph: gs.Graph) -> list[str]:
    _take_out_fences(graph)
    found: list[str] = []
    passed: set[int] = set()
    for node in list(graph.nodes):
        if node.op not in DEQUANTIZERS or not node.inputs:
            continue
        between = _between(node)[0]
        source = _float_source(node)
        if source is None:
            continue
        found.append(source.name)
        passed.update(id(step) for step in between)
        source = _moved(source, [step for step in between if step.op in _MOVERS], graph)
        to, changes = _cast_to(node, source), _changes_type(node)
        node.domain = None
        if to is not None:
            node.op, node.attrs, node.inputs = "Cast", {"to": to}, [source]
        elif changes:
            # Float32 on one side of the pair and half on the other: a Cast does what is left.
            node.op, node.attrs, node.inputs = "CastLike", {}, [source, node.inputs[1]]
        elif not bypass(graph, node, source):
            # The pair of another tool between an input, or a stored tensor, and an output.
            node.op, node.attrs, node.inputs = "Identity", {}, [source]
    used = [n for n in reversed(graph.nodes) if n.outputs and _is_used(n, graph, passed)]
    graph.nodes = used[::-1]
    return found


def _take_out_fences(graph: gs.Graph) -> None:
    """Takes out the Sums of one input beside a pair; `quantize.fence` puts them there."""
    for node in list(graph.nodes):
        if not passes_on(node):
            continue
        maker, readers = producer(node.inputs[0]), node.outputs[0].outputs
        behind = maker is not None and maker.op in DEQUANTIZERS
        if behind or any(reader.op in QUANTIZERS for reader in readers):
            bypass(graph, node, node.inputs[0])


def _cast_to(dequantize: gs.Node, source: gs.Tensor) -> int | None:
    """The type that a pair of blocks restores to, where what it quantizes has another.

    ModelOpt restores MXFP8 to half whatever comes in, and NVFP4 to the float32 of its scale.
    """
    maker = producer(_between(dequantize)[1])
    if maker is None or maker.op not in (NVFP4_QUANTIZE, MXFP8_QUANTIZE) or source.dtype is None:
        return None
    before = onnx_type(source.dtype)
    if maker.op == MXFP8_QUANTIZE:
        after = int(dequantize.attrs.get("output_dtype", onnx.TensorProto.FLOAT))
    else:
        after = onnx_type(maker.inputs[1].dtype)
    return None if before == after else after


def _changes_type(dequantize: gs.Node) -> bool:
    """Whether a pair's scales say that the type behind it is another than in front of it."""
    quantize = producer(_between(dequantize)[1])
    if quantize is None or quantize.op != QUANTIZE:
        return False
    one, other = quantize.inputs[1], dequantize.inputs[1]
    if is_constant(one) and is_constant(other):
        return bool(one.dtype != other.dtype)
    return one is not other  # inputs of a local function, one for each type


def _float_source(dequantize: gs.Node) -> gs.Tensor | None:
    """What a pair quantizes, or what stored values stand for; None where it is neither."""
    between, quantized = _between(dequantize)
    maker = producer(quantized)
    moves = any(node.op in _MOVERS for node in between)
    if maker is not None and maker.op in QUANTIZERS and maker.outputs[0] is quantized:
        return maker.inputs[0]
    values, scale = stored(quantized), stored(dequantize.inputs[1])
    if values is None or scale is None or (moves and scale.size > 1):
        return None  # an axis of scales is one behind the move
    for clip in between:
        values = clipped(values, clip) if clip.op == "Clip" and values is not None else values
    values = None if values is None else float_values(dequantize, values)
    return None if values is None else gs.Constant(f"{quantized.name}_float", values)


def _between(dequantize: gs.Node) -> tuple[list[gs.Node], gs.Tensor]:
    """What keeps or moves quantized values in front of a DequantizeLinear, and the first of them.

    Brevitas has a Clip there, which narrows eight bits to fewer.
    """
    nodes: list[gs.Node] = []
    tensor = dequantize.inputs[0]
    while (node := producer(tensor)) is not None and node.op in _KEEPERS | _MOVERS:
        nodes.insert(0, node)
        tensor = node.inputs[0]
    return nodes, tensor


def _moved(source: gs.Tensor, moves: Sequence[gs.Node], graph: gs.Graph) -> gs.Tensor:
    """The moves made of float values; another reader may still want the quantized ones."""
    names = Names(graph) if moves else None
    for node in moves:
        assert names is not None
        name = names.fresh(f"{node.outputs[0].name}_float")
        result = gs.Variable(name, source.dtype, node.outputs[0].shape)
        inputs = [source, *node.inputs[1:]]
        copy = gs.Node(node.op, names.fresh(name), dict(node.attrs), inputs, [result])
        graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is node) + 1, copy)
        source = result
    return source


def _is_used(node: gs.Node, graph: gs.Graph, passed: set[int]) -> bool:
    # Of a pair that is gone: its nodes, what lay between them, and a Constant with its scale.
    if node.op not in QUANTIZERS | DEQUANTIZERS | {"Constant"} and id(node) not in passed:
        return True
    if any(t.outputs or any(t is result for result in graph.outputs) for t in node.outputs):
        return True
    node.inputs.clear()
    return False
