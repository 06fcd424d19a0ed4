"""Act: what may follow a convolution or a Linear inside its group."""

from __future__ import annotations

from math import pi

from fusewright.match.pattern import Const, Pattern, const, number, one_of, op, optional
from fusewright.normalize.constants import one

# One node, one computed input.
_SIMPLE = (
    "Relu|LeakyRelu|HardSwish|HardSigmoid|Sigmoid|Tanh|Elu|Selu|Celu|Softplus|Softsign|Mish|Gelu"
    "|Swish|ThresholdedRelu"
)


def act(x: Pattern) -> Pattern:
    """Act(x), in one node or in the chains that have no operator in every opset."""
    return one_of(
        op(_SIMPLE, x),
        op("Clip", x, optional(const()), optional(const())),
        op("PRelu", x, Const("slope")),
        op("Mul", x, op("Sigmoid", x)),  # SiLU, an operator (Swish) from opset 24 only
        op("Mul", x, op("Sigmoid", op("Mul", x, one("alpha")))),  # QuickGELU: α = 1.702
        op("Mul", x, op("HardSigmoid", x)),  # HardSwish before opset 14
        op("Mul", x, op("Tanh", op("Softplus", x))),  # Mish before opset 18
        _hard_swish(x),
        _gelu(x),
    )


def _hard_swish(x: Pattern) -> Pattern:
    """x·relu6(x+3)/6 as paddle2onnx and ports of MobileNetV3 write it out."""
    gate = op("Clip", op("Add", x, number(3.0)), number(0.0), number(6.0))
    sixth = number(1.0 / 6.0)
    return one_of(
        op("Div", op("Mul", x, gate), number(6.0)),
        op("Mul", op("Mul", x, gate), sixth),
        op("Mul", op("Div", x, number(6.0)), gate),
        op("Mul", op("Mul", x, sixth), gate),
    )


def _gelu(x: Pattern) -> Pattern:
    """GELU before opset 20, in the one order that the normalizer makes of all.

    x·½·(1 + erf(x/√2)), and x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    """
    inner = one_of(op("Div", x, number(2**0.5)), op("Mul", x, number(0.5**0.5)))
    cube = op("Mul", op("Pow", x, number(3.0)), number(0.044715))
    tanh = op("Tanh", op("Mul", op("Add", x, cube), number((2.0 / pi) ** 0.5)))
    gate = op("Add", one_of(op("Erf", inner), tanh), number(1.0))
    return op("Mul", op("Mul", x, number(0.5)), gate)
