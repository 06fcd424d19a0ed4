"""Einsum that is a matrix product, as MatMul with Transposes and Reshapes around it.

    'bhid,bhjd->bhij'  →  MatMul(a, Transpose(b))
    'bnd,dhe->bnhe'    →  Reshape(MatMul(a, W as [d, h·e]))

A stored operand of two becomes the weight of a Linear, [in, out]. What is not a matrix product
(diagonals, three operands, a sum over one operand's own label) stays.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import is_constant, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Pattern, Var, one_of, op, optional
from fusewright.normalize.labels import Product, parse
from fusewright.normalize.operand import Operand, matmul
from fusewright.normalize.rule import Edit, Rule


def _rewrite(match: Match, edit: Edit) -> str | None:
    node = match.root
    operands = [t for t in node.inputs if not t.is_empty()]
    product = parse(str(node.attrs["equation"]), [rank_of(t) for t in operands])
    reason = product if isinstance(product, str) else _unfit(product, operands)
    if reason is not None or isinstance(product, str):
        return reason
    stored = [is_constant(t) for t in operands]
    if stored[0] or (not stored[1] and product.is_crossed):
        product, operands = product.swapped(), operands[::-1]
    a = Operand(edit, operands[0], f"{node.name}_a")
    b = Operand(edit, operands[1], f"{node.name}_b")
    if is_constant(b.tensor) and not product.batch:
        result, labels = _by_weight(product, a, b, node.name)
    else:
        result, labels = _by_matmul(product, a, b, node.name)
    result.transpose([labels.index(n) for n in product.out])
    edit.replace(match, result.nodes)
    return None


def _unfit(product: Product, operands: list[gs.Tensor]) -> str | None:
    if all(is_constant(t) for t in operands):
        return "two stored operands"
    if any(t.dtype is not None and numpy_type(t.dtype).kind != "f" for t in operands):
        return "integers"
    sizes: dict[str, int] = {}
    for labels, tensor in zip((product.a, product.b), operands, strict=True):
        if rank_of(tensor) is None:
            return "shapes that are not known"
        if rank_of(tensor) != len(labels):
            return f"labels '{labels}' for a tensor of rank {rank_of(tensor)}"
        for label, size in zip(labels, tensor.shape, strict=True):
            if isinstance(size, int) and sizes.setdefault(label, size) != size:
                return f"sizes {sizes[label]} and {size} of label '{label}'"
    return None


def _by_weight(product: Product, x: Operand, w: Operand, name: str) -> tuple[Operand, str]:
    """x·W with W as [in, out]; returns the result and its labels."""
    sizes = dict(zip(product.b, w.tensor.shape, strict=True))
    summed, ours, theirs = product.summed, product.of_a, product.of_b
    x.transpose([product.a.index(n) for n in ours + summed])
    x.merge_last(len(summed))
    matrix = values(w.tensor).transpose([product.b.index(n) for n in summed + theirs])
    rows = int(np.prod([sizes[n] for n in summed]))
    w.tensor = w.edit.constant(f"{w.tensor.name}_in_out", matrix.reshape(rows, -1))
    result = matmul(x, w, name)
    if not theirs:
        result.squeeze([len(ours)])
    elif len(theirs) > 1:
        split = [int(sizes[n]) for n in theirs]
        lead = None if result.shape is None else [*result.shape[:-1], *split]
        result.reshape([*[0] * len(ours), *split], lead)
    return result, ours + theirs


def _by_matmul(product: Product, a: Operand, b: Operand, name: str) -> tuple[Operand, str]:
    """MatMul over leading axes that either operand may lack; a missing row or column is of one."""
    row, column, summed = product.of_a[-1:], product.of_b[-1:], product.summed
    lead = "".join(n for n in product.out if n not in row + column)
    ours, theirs = ("".join(n for n in lead if n in term) for term in (product.a, product.b))
    a.transpose([product.a.index(n) for n in ours + row + summed])
    a.merge_last(len(summed))
    if len(summed) > 1:
        b.transpose([product.b.index(n) for n in theirs + column + summed])
        b.merge_last(len(summed))
        order = theirs + column + summed[0]
    else:
        order = product.b
    b.transpose([order.index(n) for n in theirs + summed[0] + column])
    a.unsqueeze(_missing(lead, ours, None if row else -2))
    b.unsqueeze(_missing(lead, theirs, None if column else -1))
    result = matmul(a, b, name)
    result.squeeze([len(lead) + i for i, n in enumerate((row, column)) if not n])
    return result, lead + row + column


def _missing(lead: str, present: str, inner: int | None) -> list[int]:
    """Where an operand lacks axes: of `lead` behind its own first, and its row or column."""
    first = lead.index(present[0]) if present else len(lead)
    axes = [i - first for i, n in enumerate(lead) if i > first and n not in present]
    if inner is not None:
        axes.append(len(lead) - first + 2 + inner)
    return sorted(axes)


def _any(name: str) -> Pattern:
    return one_of(Var(name), Const(name))


RULES = (
    Rule(
        "EinsumToMatMul",
        "Einsum(a, b) → MatMul(a, b), with Transposes and Reshapes",
        op("Einsum", _any("a"), optional(_any("b")), optional(_any("c"))),
        _rewrite,
    ),
)
