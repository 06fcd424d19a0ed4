"""Families of operators that the rules share."""

from __future__ import annotations

import onnx_graphsurgeon as gs

# One element in, one element out: TensorRT fuses them, with a Cast as well, in one kernel.
POINTWISE = frozenset(
    {
        "Abs", "Acos", "Add", "And", "Asin", "Atan", "Cast", "CastLike", "Ceil", "Celu", "Clip",
        "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
        "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "PRelu",
        "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
        "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
LAYOUT = frozenset(
    {
        "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
    }
)  # fmt: skip
# Interiors of norms that are written out.
REDUCTIONS = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_LIGHT = POINTWISE | LAYOUT | REDUCTIONS
# The result is no more wrong than the operand.
STEADY = frozenset(
    {
        "Abs", "Add", "Clip", "Identity", "LeakyRelu", "Max", "Min", "Neg", "Relu", "Sigmoid",
        "Sub", "Sum", "Tanh",
    }
)  # fmt: skip
# They look at no more than the sizes or at integers, and read either type as it comes.
FLEXIBLE = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Shape", "Size"})


def is_light(node: gs.Node) -> bool:
    """Whether the node may be float32 only to spare a Cast."""
    return node.op in _LIGHT or node.op in FLEXIBLE
