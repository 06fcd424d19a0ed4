"""Convolutions with what follows them.

BN is folded into the weights by the normalizer wherever both are stored, so that it is rarely
still there; it stays in the pattern for the cases where it could not be.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, producer
from fusewright.groups.activations import act
from fusewright.groups.kind import PER_TENSOR, GroupKind
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, maybe, one_of, op, optional, var

_PARAMETERS = ("w", "b", "gamma", "beta", "mean", "variance", "slope")
_WEIGHT = {"w": 0}


def _layer(types: str) -> Pattern:
    return op(types, var("x"), const("w"), optional(const("b")), name="layer")


def _batchnorm(x: Pattern) -> Pattern:
    parameters = (const("gamma"), const("beta"), const("mean"), const("variance"))
    # In training mode it normalizes by the batch at hand: another function, with other outputs.
    return maybe("BatchNormalization", x, *parameters, training_mode=lambda found: not found)


_CONV_BN = _batchnorm(_layer("Conv"))


def _broadcast_skip(match: Match) -> str | None:
    """A skip of another shape than the convolution's output is no residual: it cannot fuse."""
    add, skip = match.named["add"], match.tensors["skip"]
    conv = next(t for t in add.inputs if t is not skip)
    if skip.shape is None or conv.shape is None:
        return None
    pairs = zip(skip.shape, conv.shape, strict=False)
    same = len(skip.shape) == len(conv.shape) and not any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
    )
    return None if same else f"a skip of shape {list(skip.shape)} to {list(conv.shape)}"


def _residual_conv(match: Match) -> str | None:
    """Where the other operand is a convolution of its own, that one takes the Add."""
    reason = _broadcast_skip(match)
    if reason is None and _is_conv(match.tensors["skip"]):
        once = len(match.tensors["skip"].outputs) == 1
        return "a convolution on the other side, which fuses with the Add" if once else None
    return reason


def _is_conv(tensor: gs.Tensor) -> bool:
    """Whether a convolution with stored weights made the tensor, with or without BN."""
    node = producer(tensor)
    if node is not None and node.op == "BatchNormalization":
        node = producer(node.inputs[0])
    return node is not None and node.op == "Conv" and is_constant(node.inputs[1])


ACT_ADD = GroupKind(
    kind="ActAdd",
    formula="act(x) + skip",
    # Conv+Act+Add does not fuse in TensorRT, so the convolution in front stays on its own.
    pattern=op("Add", act(var("x")), var("skip"), name="add"),
    inputs=("x", "skip"),
    parameters=("slope",),
    inputs_to_quantize=frozenset({0, 1}),
    anchor="add",
    needs_quantized_output=True,
    rejects=_residual_conv,
)

CONV_BN_ADD_ACT = GroupKind(
    kind="ConvBNAddAct",
    formula="act(bn(conv(x, w, b)) + skip)",
    pattern=act(op("Add", _CONV_BN, var("skip"), name="add")),
    inputs=("x", "skip"),
    parameters=_PARAMETERS,
    # A pair on the convolution's side of the Add would split the two.
    inputs_to_quantize=frozenset({0, 1}),
    weights=_WEIGHT,
    rejects=_broadcast_skip,
)

CONV_BN_ADD = GroupKind(
    kind="ConvBNAdd",
    formula="bn(conv(x, w, b)) + skip",
    pattern=op("Add", _CONV_BN, var("skip"), name="add"),
    inputs=("x", "skip"),
    parameters=_PARAMETERS,
    inputs_to_quantize=frozenset({0, 1}),
    weights=_WEIGHT,
    rejects=_broadcast_skip,
)

CONV_BN_ACT_MAXPOOL = GroupKind(
    kind="ConvBNActMaxPool",
    formula="maxpool(act(bn(conv(x, w, b))))",
    pattern=op("MaxPool", act(_CONV_BN)),
    parameters=_PARAMETERS,
    inputs_to_quantize=frozenset({0}),
    weights=_WEIGHT,
)

CONV_BN_ACT = GroupKind(
    kind="ConvBNAct",
    formula="act(bn(conv(x, w, b)))",
    pattern=act(_CONV_BN),
    parameters=_PARAMETERS,
    inputs_to_quantize=frozenset({0}),
    weights=_WEIGHT,
)

CONV_BN = GroupKind(
    kind="ConvBN",
    formula="bn(conv(x, w, b))",
    pattern=_CONV_BN,
    parameters=_PARAMETERS,
    inputs_to_quantize=frozenset({0}),
    weights=_WEIGHT,
)

_CONV_TRANSPOSE_BN = _batchnorm(_layer("ConvTranspose"))

CONV_TRANSPOSE_BN_ACT = GroupKind(
    kind="ConvTransposeBNAct",
    formula="act(bn(conv_transpose(x, w, b))), act optional",
    pattern=one_of(act(_CONV_TRANSPOSE_BN), _CONV_TRANSPOSE_BN),
    parameters=_PARAMETERS,
    inputs_to_quantize=frozenset({0}),
    # NVIDIA's documents disagree on the channel axis (0 or 1); one scale is right either way.
    weights={"w": PER_TENSOR},
)
