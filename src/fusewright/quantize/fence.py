"""Forms that onnxruntime's optimizer leaves as they are.

Its default session is where users check a file. Some of its rewrites (seen with 1.32) give another
result, or an error, where TensorRT builds the same kernels from either form:

- WeightBiasQuantization rounds a bias to INT32 in steps of input scale × weight scale, in the type
  of the scales: beyond INT32 for a channel that a BN has killed, beyond 65504 in FP16 where the
  input is narrow or the bias wide (squeezenet's first Conv, whose bias holds the image's mean).
- ReluQuantRewrite drops a Relu in front of any FP8 quantizer, as if its zero-point were the least
  value; ClipQuantRewrite fails on one.
- QDQPropagation and QDQS8ToU8Transformer together make pairs whose types differ, from opset 21 on:
  the model does not open.
- QDQPropagation gives a Transpose in front of two readers a pair behind it too, and what makes two
  Transposes one then moves the codes: of FP8 no Transpose does before opset 21. It does not open.
- MatMulNBits takes over the Linear whose weight alone is dequantized, as it looks where a Cast
  stands behind the other pair, and computes something else from FP16 scales.

A Sum of one input, which computes nothing, hides from the first three the quantizer that they look
for behind Conv, Relu or Clip, and from the next two what reads a pair. MatMulNBits only knows axes
that count from the front, and one scale of a whole weight as a scalar, not as a list of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names, put_in_front
from fusewright.graph.older import PLAIN_PAIRS_OPSET
from fusewright.graph.walk import PASS_ON, input_at, is_constant, peek, producer
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.target import format_of
from fusewright.target.precision import FP8, INT4, INT8

_CLAMPS = frozenset({"Relu", "Clip"})
# Through these onnxruntime moves a quantizer up.
_MOVERS = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
# Half of INT32's range: products of INT8 are added to the bias.
_MOST_STEPS = float(1 << 30)


def fence(graph: gs.Graph) -> list[str]:
    """Keeps onnxruntime's optimizer away from what it would get wrong, in place.

    A graph with BF16 stays as it is: onnxruntime's CPU has no kernels for it at any level.

    Returns:
        The tensors that a Sum of one input passes on.
    """
    if any(t.dtype == ml_dtypes.bfloat16 for node in graph.nodes for t in node.outputs):
        return []
    outputs = frozenset(id(tensor) for tensor in graph.outputs)
    names = Names(graph)
    _respell_half_linears(graph, names)
    sums = [
        _passing(quantize.inputs[0], [quantize], names)
        for quantize in graph.nodes
        if quantize.op == QUANTIZE and _is_rewritten(quantize, outputs)
    ]
    if int(graph.opset) > PLAIN_PAIRS_OPSET:
        sums += [_passing(t, list(t.outputs), names) for t in _restored(graph, INT8)]
    else:
        branching = ((t, _branching(t)) for t in _restored(graph, FP8))
        sums += [_passing(t, readers, names) for t, readers in branching if readers]
    put_in_front(graph, ([node] for node in sums))
    return [node.inputs[0].name for node in sums]


def _passing(tensor: gs.Tensor, readers: Sequence[gs.Node], names: Names) -> gs.Node:
    """A Sum of one input between a tensor and some of its readers."""
    passed = gs.Variable(names.fresh(f"{tensor.name}_same"), tensor.dtype, tensor.shape)
    for reader in readers:
        for i, given in enumerate(reader.inputs):
            if given is tensor:
                reader.inputs[i] = passed
    return gs.Node(PASS_ON, names.fresh(f"{tensor.name}_{PASS_ON}"), {}, [tensor], [passed])


def _branching(tensor: gs.Tensor) -> list[gs.Node]:
    """The Transposes that read a tensor and are read more than once."""
    return [n for n in tensor.outputs if n.op == "Transpose" and len(n.outputs[0].outputs) > 1]


def _restored(graph: gs.Graph, form: str) -> list[gs.Tensor]:
    """What the pairs of activations in a format give to those that read it."""
    made = [node for node in graph.nodes if _is_of_activation(node, form)]
    return [restore.outputs[0] for node in made for restore in node.outputs[0].outputs]


def has_pairs(graph: gs.Graph) -> bool:
    """Whether anything that is computed is quantized to INT8."""
    return any(_is_of_activation(node, INT8) for node in graph.nodes)


def _is_of_activation(node: gs.Node, form: str) -> bool:
    return node.op == QUANTIZE and not is_constant(node.inputs[0]) and _format(node) == form


def _format(pair: gs.Node) -> str | None:
    told = input_at(pair, 2)
    told = pair.inputs[0] if told is None else told
    form = None if told.dtype is None else format_of(told.dtype)
    return None if form is None else form.name


def _is_rewritten(quantize: gs.Node, outputs: frozenset[int]) -> bool:
    chain = list(_in_front(quantize, outputs))
    clamped = any(node.op in _CLAMPS for node in chain)
    if clamped and _format(quantize) == FP8:
        return True
    return bool(chain) and _loses_bias(chain[-1])


def _in_front(quantize: gs.Node, outputs: frozenset[int]) -> Iterator[gs.Node]:
    """What onnxruntime looks through from the quantizer on, and the node behind it, nearest first.

    It stops at a tensor that something else reads too.
    """
    tensor = quantize.inputs[0]
    while len(tensor.outputs) == 1 and id(tensor) not in outputs:
        node = producer(tensor)
        if node is None:
            return
        yield node
        if node.op not in _CLAMPS | _MOVERS:
            return
        tensor = node.inputs[0]


def _loses_bias(node: gs.Node) -> bool:
    """Whether the bias of a quantized node has more steps of its scale than the types hold."""
    bias = _bias(node)
    heavy = producer(_summed(node)) if node.op == "Add" else node
    if bias is None or heavy is None:
        return False
    pairs = [_behind_movers(tensor) for tensor in heavy.inputs[:2]]
    if any(pair is None or pair.op != DEQUANTIZE for pair in pairs):
        return False
    scales = [pair.inputs[1] for pair in pairs if pair is not None]
    if not all(is_constant(scale) for scale in scales):
        return False
    return _overflows(peek(scales[0]), peek(scales[1]), peek(bias))


def _behind_movers(tensor: gs.Tensor) -> gs.Node | None:
    """What makes a tensor: onnxruntime moves a pair down to what reads it, too."""
    node = producer(tensor)
    while node is not None and node.op in _MOVERS:
        node = producer(node.inputs[0])
    return node


def _bias(node: gs.Node) -> gs.Constant | None:
    """The stored bias of a heavy node, or of MatMul + Add, which onnxruntime makes a Gemm."""
    if node.op in _BIASED:
        bias = input_at(node, 2)
        return bias if bias is not None and is_constant(bias) else None
    if node.op != "Add":
        return None
    maker = producer(_summed(node))
    stored = next((tensor for tensor in node.inputs if is_constant(tensor)), None)
    return stored if maker is not None and maker.op == "MatMul" else None


def _summed(add: gs.Node) -> gs.Tensor:
    return next((t for t in add.inputs if not is_constant(t)), add.inputs[0])


def _overflows(of_input: np.ndarray, of_weight: np.ndarray, bias: np.ndarray) -> bool:
    # ml_dtypes has no stubs.
    most = min(float(ml_dtypes.finfo(of_input.dtype).max), _MOST_STEPS)  # type: ignore[no-untyped-call]
    # A step may round to 0, and 0 of such steps are none.
    with np.errstate(all="ignore"):
        step = (of_input * of_weight).astype(of_input.dtype).astype(np.float64)
        # What is added to a product may be a whole map: its channels are last, as the steps are.
        return bool((np.abs(bias.astype(np.float64)) / step > most).any())


def _respell_half_linears(graph: gs.Graph, names: Names) -> None:
    """Axes that count from the end, and scales of a whole weight as lists of one."""
    lists: dict[int, gs.Constant] = {}
    for node in graph.nodes:
        if node.op != DEQUANTIZE or not _is_of_half_linear(node):
            continue
        maker = producer(node.inputs[0])
        for pair in (node, maker):
            if pair is None:
                continue
            if pair.attrs.get("axis", -1) >= 0:
                pair.attrs["axis"] -= 2
            for i, told in enumerate(pair.inputs[1:], 1):
                if is_constant(told) and not told.shape:
                    pair.inputs[i] = lists.setdefault(id(told), _list_of_one(told, names))


def _list_of_one(told: gs.Constant, names: Names) -> gs.Constant:
    return gs.Constant(names.fresh(f"{told.name}_1"), peek(told).reshape(1))


def _is_of_half_linear(dequantize: gs.Node) -> bool:
    stored = dequantize.inputs[0]
    maker = producer(stored)
    weight = stored if maker is None else maker.inputs[0]
    if not is_constant(weight) or len(weight.shape) != 2:
        return False
    return _format(dequantize) in (INT8, INT4) and dequantize.inputs[1].dtype == np.float16
