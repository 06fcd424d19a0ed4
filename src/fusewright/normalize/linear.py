"""Linear in one form, x·W [+ b]: MatMul with W as [in, out], then Add.

PyTorch writes a Linear on a matrix as Gemm and on anything larger as MatMul+Add; Keras and older
PyTorch flatten to a matrix around the Gemm and reshape back.
"""

from __future__ import annotations

import numpy as np

from fusewright.graph.walk import attribute, is_constant, producer, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Var, const, one_of, op, optional, var
from fusewright.normalize.rule import Edit, Rule


def _from_gemm(match: Match, edit: Edit) -> str | None:
    node = match.root
    if attribute(node, "transA", edit.opset):
        return "a transposed input"
    w, c = match.tensors["w"], match.tensors.get("c")
    if is_constant(match.tensors["x"]):
        return "a stored first operand"
    if not is_constant(w):
        return f"the computed weight '{w.name}'"
    alpha, beta = (attribute(node, name, edit.opset) for name in ("alpha", "beta"))
    old = values(w)
    if old.dtype.kind != "f" or (c is not None and beta != 1 and not is_constant(c)):
        return "a computed or integer operand that would have to be scaled"
    matrix = old.T if attribute(node, "transB", edit.opset) else old
    if matrix is not old or alpha != 1:
        # A new tensor even where the node alone reads it: [in, out] is another weight.
        matrix = matrix if alpha == 1 else (matrix * alpha).astype(old.dtype)
        w = edit.constant(f"{w.name}_in_out", matrix)
    matmul = edit.node("MatMul", [match.tensors["x"], w], node.name)
    nodes = [matmul]
    if c is not None:
        if beta != 1:
            c = edit.constant(f"{c.name}_beta", (values(c) * beta).astype(old.dtype))
        nodes.append(edit.node("Add", [matmul.outputs[0], c], f"{node.name}_bias"))
    edit.replace(match, nodes)
    return None


def _without_reshapes(match: Match, edit: Edit) -> str | None:
    x, w, result = match.tensors["x"], match.tensors["w"], match.output
    rank = rank_of(x)
    if rank is None or rank != rank_of(result) or values(w).ndim != 2:
        return "shapes that are not known"
    if x.shape[-1] != w.shape[0] or result.shape[-1] != w.shape[1]:
        return "a reshape of the last axis"
    # Element counts agree, so where all leading sizes but one are equal, that one is too.
    pairs = list(zip(x.shape[:-1], result.shape[:-1], strict=True))
    unknown = [a for a, b in pairs if a != b or a is None]
    if len(unknown) > 1 or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
    ):
        return "other leading axes behind than in front"
    matmul = edit.node("MatMul", [x, w], match.named["layer"].name)
    nodes = [matmul]
    if "b" in match.tensors:
        add = edit.node("Add", [matmul.outputs[0], match.tensors["b"]], match.named["add"].name)
        nodes.append(add)
    edit.replace(match, nodes)
    return None


def _to_conv(match: Match, edit: Edit) -> str | None:
    flatten, w, pooled = match.named["flatten"], match.tensors["w"], match.tensors["pooled"]
    pool, matrix = producer(pooled), values(w)
    if pool is None or pool.op != "GlobalAveragePool" or rank_of(pooled) != 4:
        return "no global pool over an image in front"
    if matrix.ndim != 2 or rank_of(flatten.outputs[0]) != 2 or pooled.shape[1] != w.shape[0]:
        return "a flattening that is not to [batch, channels]"
    kernel = edit.constant(f"{w.name}_conv", matrix.T.reshape(*matrix.T.shape, 1, 1))
    inputs = [pooled, kernel]
    if "b" in match.tensors:
        bias = np.broadcast_to(values(match.tensors["b"]).reshape(-1), matrix.shape[1:])
        inputs.append(edit.constant(f"{w.name}_conv_bias", bias))
    conv = edit.node("Conv", inputs, match.named["layer"].name, {"kernel_shape": [1, 1]})
    edit.replace(match, [conv, edit.node("Flatten", conv.outputs, flatten.name, {"axis": 1})])
    return None


_LAYER = op("MatMul", op("Reshape|Flatten", var("x"), optional(const())), const("w"), name="layer")
_BIAS = const("b", test=lambda t: np.ndim(t.values) <= 1, expected="a bias vector")

RULES = (
    Rule(
        "GemmToMatMul",
        "Gemm(x, W, b) → x·W + b",
        op(
            "Gemm",
            *(one_of(Const(n), Var(n)) for n in "xw"),
            optional(one_of(Const("c"), Var("c"))),
        ),
        _from_gemm,
    ),
    Rule(
        "LinearOnMatrix",
        "Reshape(Reshape(x)·W + b) → x·W + b",
        op("Reshape", one_of(op("Add", _LAYER, _BIAS, name="add"), _LAYER), const("shape_out")),
        _without_reshapes,
    ),
)

_POOLED = op("Flatten|Reshape", var("pooled"), optional(const()), name="flatten")
_HEAD = op("MatMul", _POOLED, const("w"), name="layer")

# Not among RULES but on request: TensorRT-RTX needs one kernel more for it, other engines less.
POOL_HEAD = Rule(
    "PoolHeadToConv",
    "Flatten(globalpool(x))·W + b → Flatten(Conv1x1(globalpool(x), Wᵀ, b))",
    one_of(op("Add", _HEAD, _BIAS, name="add"), _HEAD),
    _to_conv,
)
