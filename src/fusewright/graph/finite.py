"""Stored values that are no numbers: what NaN and Inf may stand for, and where they are an error.

A scale or a rounding makes something finite of them, so that a result would differ from its model
without a word. Who reads a tensor decides: Inf is a bound to Clip, and −Inf masks a softmax; NaN is
an error to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.layout import SHAPE_ONLY
from fusewright.graph.model import Model
from fusewright.graph.walk import STANDARD_DOMAINS, is_constant, peek, producer

# Inf is a number like others to these: bounds, comparisons, choices, and what ends in a limit.
_BOUNDED = frozenset(
    {"Clip", "Min", "Max", "Where", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"}
    | {"IsInf", "Softmax", "LogSoftmax", "Exp", "Sigmoid", "HardSigmoid", "Tanh", "Attention"}
    | {"ReduceMax", "ReduceMin", "ReduceLogSumExp", "ArgMax", "ArgMin", "TopK", "MaxPool"}
)
# Their outputs hold what they read, as it is.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Slice", "Gather", "GatherND", "GatherElements", "Expand", "Tile"}
    | {"Concat", "Split", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "CastLike", "Pad"}
    | {"ScatterND", "ScatterElements", "Trilu", "If"}
)
# −Inf in a sum stays −Inf, and so it does when the sum is scaled: scores with their mask.
_SUMS = frozenset({"Add", "Sub", "Sum"})
_SCALES = frozenset({"Mul", "Div"})
_PAD_FILL = 2
_FLOATS = "f"


_CURE = (
    "export the model again from weights that are finite (training may have diverged, or FP16"
    " could not hold a value)"
)


def check_finite(model: Model, original: Callable[[], Model]) -> None:
    """Refuses a model with a stored NaN, or with an Inf where a weight is read.

    Args:
        model: normalized; what is folded in it counts too (a BatchNormalization of variance −1).
        original: gives the file as it is, in which what was folded has a name of its own.

    Raises:
        ModelError: with the tensor, the node that reads it, and where in it; or with the attribute.
    """
    for scope in (model.graph, *model.graph.subgraphs(recursive=True)):
        for node in scope.nodes:
            _check_attributes(node, model)
    for tensor, array in _stored(model.graph):
        if _is_finite(array):
            continue
        node = _misled(tensor, array)
        if node is not None:
            file = original()
            found = _in_file(file.graph, {*model.origin(node)}, tensor.name)
            if found is not None:
                tensor, array, node, model = *found, file
            raise ModelError(
                f"{model.path}: stored tensor '{tensor.name}' holds {_counted(array)}, and"
                f" {_shown(node, model)} reads it: {_CURE}"
            )


def _check_attributes(node: gs.Node, model: Model) -> None:
    bounded = node.op in _BOUNDED or node.op == "Pad"
    for key, value in node.attrs.items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            bad = isinstance(number, float) and not math.isfinite(number)
            if bad and not (bounded and math.isinf(number)):
                raise ModelError(
                    f"{model.path}: attribute '{key}' of {_shown(node, model)} holds {number}:"
                    f" {_CURE}"
                )


def _in_file(
    graph: gs.Graph, readers: Collection[str], folded: str
) -> tuple[gs.Tensor, np.ndarray, gs.Node] | None:
    """The stored tensor of the file that made a folded one not finite, its values and its reader.

    It is read by one of `readers`, or by what computes `folded` and what they read out of stored
    values alone. None where each is finite: folding made the NaN.
    """
    fed = {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        if any(id(tensor) in fed for tensor in node.inputs) or node.subgraphs():
            fed.update(map(id, node.outputs))
    waiting = [n for n in graph.nodes if n.name in readers or folded in (t.name for t in n.outputs)]
    seen = {id(node) for node in waiting}
    for node in waiting:  # grows
        for tensor in node.inputs:
            array = peek(tensor) if is_constant(tensor) else None
            if array is not None and _is_float(array) and not _is_finite(array):
                return tensor, array, node
            writer = None if id(tensor) in fed else producer(tensor)
            if writer is not None and id(writer) not in seen:
                seen.add(id(writer))
                waiting.append(writer)
    return None


def _counted(array: np.ndarray) -> str:
    values = array.astype(np.float64)
    bad = ~np.isfinite(values)
    nans, first = int(np.isnan(values).sum()), [int(i) for i in np.argwhere(bad)[0]]
    kinds = ((nans, "NaN"), (int(bad.sum()) - nans, "Inf"))
    what = " and ".join(f"{count} {kind}" for count, kind in kinds if count)
    return f"{what} among its {array.size} values, the first at {first}"


def _shown(node: gs.Node, model: Model) -> str:
    origin = model.origin(node) or (node.name,)
    folded = f", folded from {', '.join(origin[:4])}," if len(origin) > 1 else ""
    return f"node '{origin[0]}' ({node.op}){folded}"


def _stored(graph: gs.Graph) -> Iterator[tuple[gs.Tensor, np.ndarray]]:
    """Stored tensors of floats that some node reads, and their values."""
    for scope in (graph, *graph.subgraphs(recursive=True)):
        for tensor in scope.tensors().values():
            if is_constant(tensor) and tensor.outputs:
                array = peek(tensor)
                if _is_float(array):
                    yield tensor, array
        for node in scope.nodes:
            held = node.attrs.get("value") if node.op == "Constant" else None
            if isinstance(held, gs.Constant) and _is_float(held.values):
                yield node.outputs[0], held.values


def _is_float(array: np.ndarray) -> bool:
    # ml_dtypes' numbers are of kind "V"; INT4 has no NaN.
    return array.dtype.kind == _FLOATS or "float" in array.dtype.name


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    with np.errstate(all="ignore"):
        # One pass that writes nothing; a sum that is too large for its type is looked at again.
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def _misled(tensor: gs.Tensor, array: np.ndarray) -> gs.Node | None:
    """The first reader to which the values are no numbers that it can take; None: all can."""
    values = array.astype(np.float64)
    if np.isnan(values).any():
        return tensor.outputs[0] if tensor.outputs else None
    masks = not np.isposinf(values).any()
    return next((n for n in tensor.outputs if not _takes(n, tensor, masks, is_stored=True)), None)


def _takes(node: gs.Node, tensor: gs.Tensor, masks: bool, *, is_stored: bool) -> bool:
    """Whether Inf (`masks`: −Inf alone) means something to a node, and to all behind it."""
    stack, seen = [(node, tensor, is_stored)], set[int]()
    while stack:
        reader, read, first = stack.pop()
        slots = [i for i, t in enumerate(reader.inputs) if t is read]
        fill = reader.op == "Pad" and slots == [_PAD_FILL]
        blind = reader.domain not in STANDARD_DOMAINS or reader.op in SHAPE_ONLY
        if blind or reader.op in _BOUNDED or fill:
            continue
        sums = masks and (reader.op in _SUMS or (reader.op in _SCALES and not first))
        if not sums and reader.op not in _MOVES:
            return False
        for output in reader.outputs:
            if id(output) not in seen:
                seen.add(id(output))
                stack += [(behind, output, False) for behind in output.outputs]
    return True
