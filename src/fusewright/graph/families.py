"""Families of operators, by what they do to elements."""

from __future__ import annotations

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
# Pointwise, and of a result that does not grow with the operand.
BOUNDED = frozenset(
    {
        "And", "Atan", "Cos", "Equal", "Erf", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf",
        "IsNaN", "Less", "LessOrEqual", "Not", "Sigmoid", "Sign", "Sin", "Softsign", "Tanh",
    }
)  # fmt: skip
# Of what layout operators and selections read, the inputs that say where, not what.
PLACES = {
    "Compress": (1,), "Expand": (1,), "Gather": (1,), "GatherElements": (1,),
    "GatherND": (1,), "Pad": (1,), "Reshape": (1,), "ScatterElements": (1,), "ScatterND": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Trilu": (1,),
    "Unsqueeze": (1,), "Where": (0,),
}  # fmt: skip
