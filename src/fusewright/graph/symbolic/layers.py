"""Shapes behind operators that compute: elementwise, products, convolutions, pools, reductions.

One function per operator takes a node and what is known, and returns the shape of its first
output; None is an unknown rank, and a dimension that is None is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_graphsurgeon as gs

from fusewright.graph.dims import Dim, Shape, Size, floor, is_cut_from, is_never, quotient
from fusewright.graph.facts import Facts

ShapeFunction: TypeAlias = Callable[[gs.Node, Facts], "Shape | None"]


def broadcast(*shapes: Shape | None) -> Shape | None:
    """The shape of several tensors against each other, in a model that runs."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in known]
    return tuple(_joined(column) for column in zip(*padded, strict=True))


def _joined(dims: Sequence[Size | None]) -> Size | None:
    """One dimension of operands that broadcast: all are the result, or 1."""
    wide = [dim for dim in dims if not (isinstance(dim, int) and dim == 1)]
    if not wide:
        return 1
    certain = [dim for dim in wide if dim is not None and is_never(dim, 1)]
    if certain:
        return min(certain, key=lambda dim: isinstance(dim, Dim))
    first = wide[0]
    if all(dim is not None and dim == first for dim in wide):
        return first
    return _largest(wide)


def _largest(dims: Sequence[Size | None]) -> Size | None:
    """`seq` of seq and min(512, seq): where seq is 1, the other cannot be more."""
    for dim in dims:
        if dim is not None and all(
            d is not None and (d == dim or is_cut_from(d, dim)) for d in dims
        ):
            return dim
    return None


def unified(dims: Sequence[Size | None]) -> Size | None:
    """A dimension that is the same in all operands: what one of them says of it."""
    known = [dim for dim in dims if dim is not None]
    return min(known, key=lambda dim: isinstance(dim, Dim)) if known else None


def like_first(node: gs.Node, facts: Facts) -> Shape | None:
    """What has the shape of its first input."""
    return facts.shape_at(node, 0)


def _elementwise(node: gs.Node, facts: Facts) -> Shape | None:
    return broadcast(*(facts.shape(tensor) for tensor in node.inputs))


def _matmul(node: gs.Node, facts: Facts) -> Shape | None:
    a, b = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if not a or not b:
        return None
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    batch = broadcast(a[:-2], b[:-2])
    return None if batch is None else (*batch, *rows, *columns)


def _gemm(node: gs.Node, facts: Facts) -> Shape | None:
    a, b = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    rows = a[1] if facts.attr(node, "transA") else a[0]
    return rows, b[0] if facts.attr(node, "transB") else b[1]


def _einsum(node: gs.Node, facts: Facts) -> Shape | None:
    equation = node.attrs["equation"].replace(" ", "")
    terms, arrow, result = equation.partition("->")
    shapes = [facts.shape(tensor) for tensor in node.inputs]
    if not arrow or "." in equation or None in shapes:
        return None
    sizes: dict[str, list[Size | None]] = {}
    for term, shape in zip(terms.split(","), shapes, strict=True):
        for letter, dim in zip(term, shape or (), strict=True):
            sizes.setdefault(letter, []).append(dim)
    return tuple(_joined(sizes[letter]) for letter in result)


def _conv(node: gs.Node, facts: Facts) -> Shape | None:
    x, w = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if x is None or w is None or len(x) < 3 or len(w) != len(x):
        return None
    kernel = node.attrs.get("kernel_shape") or w[2:]
    return (x[0], w[0], *_windows(node, x[2:], kernel, facts))


def _pool(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    if x is None or len(x) < 3:
        return None
    windows = _windows(node, x[2:], node.attrs["kernel_shape"], facts)
    # Whether a last window that starts in the padding counts depends on the runtime.
    return None if None in windows and facts.attr(node, "ceil_mode") else (*x[:2], *windows)


def _windows(
    node: gs.Node, sizes: Shape, kernel: Sequence[Size | None], facts: Facts
) -> list[Size | None]:
    """How many windows fit: ⌊(x + pads − dilation·(k − 1) − 1) / stride⌋ + 1."""
    rank = len(sizes)
    strides, dilations = (node.attrs.get(n) or [1] * rank for n in ("strides", "dilations"))
    pads = node.attrs.get("pads") or [0] * 2 * rank
    kind, divide = facts.attr(node, "auto_pad"), floor
    if facts.attr(node, "ceil_mode"):
        divide = quotient
    found: list[Size | None] = []
    for i, (size, k) in enumerate(zip(sizes, kernel, strict=True)):
        if size is None or not isinstance(k, int):
            found.append(None)
        elif kind in ("SAME_UPPER", "SAME_LOWER"):
            found.append(floor(size + strides[i] - 1, strides[i]))
        else:
            around = 0 if kind == "VALID" else pads[i] + pads[i + rank]
            last = divide(size + around - dilations[i] * (k - 1) - 1, strides[i])
            found.append(None if last is None else last + 1)
    return found


def _conv_transpose(node: gs.Node, facts: Facts) -> Shape | None:
    x, w = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if x is None or w is None or len(x) < 3 or not isinstance(w[1], int):
        return None
    rank, channels = len(x) - 2, w[1] * int(facts.attr(node, "group") or 1)
    if "output_shape" in node.attrs:
        return (x[0], channels, *node.attrs["output_shape"][-rank:])
    if facts.attr(node, "auto_pad") != "NOTSET":
        return (x[0], channels, *(None for _ in x[2:]))
    names = ("strides", "dilations", "output_padding", "pads")
    strides, dilations, more, pads = (node.attrs.get(name) for name in names)
    kernel = node.attrs.get("kernel_shape") or w[2:]
    found: list[Size | None] = []
    for i, (size, k) in enumerate(zip(x[2:], kernel, strict=True)):
        if size is None or not isinstance(k, int):
            found.append(None)
            continue
        last = (k - 1) * (dilations[i] if dilations else 1) + (more[i] if more else 0)
        cut = pads[i] + pads[i + rank] if pads else 0
        found.append((size - 1) * (strides[i] if strides else 1) + (last + 1 - cut))
    return (x[0], channels, *found)


def _global_pool(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    return None if x is None else (*x[:2], *(1 for _ in x[2:]))


def _reduce(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    axes = None if x is None else facts.axes(node, len(x))
    if x is None or axes is None:
        return None
    if not axes and facts.attr(node, "noop_with_empty_axes"):
        return x
    over = axes or range(len(x))
    if facts.attr(node, "keepdims"):
        return tuple(1 if axis in over else dim for axis, dim in enumerate(x))
    return tuple(dim for axis, dim in enumerate(x) if axis not in over)


def _arg(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    if x is None:
        return None
    axis = int(facts.attr(node, "axis")) % len(x)
    return (*x[:axis], *((1,) if facts.attr(node, "keepdims") else ()), *x[axis + 1 :])


def _attention(node: gs.Node, facts: Facts) -> Shape | None:
    q, v = facts.shape_at(node, 0), facts.shape_at(node, 2)
    if q is None or v is None or len(q) != len(v):
        return None
    if len(q) == 4:
        return (*q[:3], v[3])
    heads, groups = node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")
    width = v[-1]
    known = len(q) == 3 and heads and groups and isinstance(width, int)
    return (q[0], q[1], width // groups * heads) if known and isinstance(width, int) else None


_TABLE: Mapping[str, ShapeFunction] = {
    "Abs|Acos|Acosh|Asin|Asinh|Atan|Atanh|BitwiseNot|Cast|CastLike|Ceil|Celu|Clip|Cos|Cosh|CumSum"
    "|Dropout|Elu|Erf|Exp|Floor|Gelu|HardSigmoid|HardSwish|Hardmax|Identity|IsInf|IsNaN|LeakyRelu|Log"
    "|LogSoftmax|Mish|Neg|Not|PRelu|Reciprocal|Relu|Round|Selu|Shrink|Sigmoid|Sign|Sin|Sinh|Softmax"
    "|Softplus|Softsign|Sqrt|Swish|Tan|Tanh|ThresholdedRelu|Trilu": like_first,
    "BatchNormalization|GroupNormalization|InstanceNormalization|LRN|LayerNormalization"
    "|LpNormalization|MeanVarianceNormalization|RMSNormalization": like_first,
    "DequantizeLinear|EyeLike|QuantizeLinear|RandomNormalLike|RandomUniformLike|RotaryEmbedding"
    "|ScatterElements|ScatterND|TensorScatter": like_first,
    "Add|And|BitShift|BitwiseAnd|BitwiseOr|BitwiseXor|Div|Equal|Greater|GreaterOrEqual|Less"
    "|LessOrEqual|Max|Mean|Min|Mod|Mul|Or|Pow|Sub|Sum|Where|Xor": _elementwise,
    "ReduceL1|ReduceL2|ReduceLogSum|ReduceLogSumExp|ReduceMax|ReduceMean|ReduceMin|ReduceProd"
    "|ReduceSum|ReduceSumSquare": _reduce,
    "ArgMax|ArgMin": _arg,
    "Attention": _attention,
    "AveragePool|LpPool|MaxPool": _pool,
    "Conv|ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool|GlobalLpPool|GlobalMaxPool": _global_pool,
    "MatMul|MatMulInteger": _matmul,
}
LAYERS: Mapping[str, ShapeFunction] = {
    op: function for ops, function in _TABLE.items() for op in ops.split("|")
}
