"""What says nothing: Identity, Dropout, a Pad by zero, zeros added, a Reshape to the same shape.

And what one operator says: two Transposes in a row, a Sum of two.
"""

from __future__ import annotations

import numpy as np

from fusewright.graph.edit import bypass
from fusewright.graph.walk import input_at, is_constant, scalar, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Var, const, one_of, op, optional, var
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import same_shape

_ANY = one_of(Var("x"), Const("x"))
_MAYBE = optional(one_of(Const(), Var("unused")))
_MAYBE_TOO = optional(one_of(Const(), Var("unused_too")))


def _skip(match: Match, edit: Edit) -> str | None:
    done = bypass(edit.model.graph, match.root, match.tensors["x"])
    return None if done else "it names an output of the model"


def _drop_dropout(match: Match, edit: Edit) -> str | None:
    node = match.root
    training = input_at(node, 2)
    if training is not None and scalar(training) != 0:
        return "it may run in training mode"
    if any(t.outputs or any(t is o for o in edit.model.graph.outputs) for t in node.outputs[1:]):
        return "its mask is used"
    return _skip(match, edit)


def _drop_pad(match: Match, edit: Edit) -> str | None:
    pads = input_at(match.root, 1)
    if pads is None or not is_constant(pads) or np.any(values(pads)):
        return "it pads"
    return _skip(match, edit)


def _drop_zeros(match: Match, edit: Edit) -> str | None:
    x, zeros = match.tensors["x"], values(match.tensors["c"])
    if np.any(zeros):
        return "it adds"
    if x.shape is None or zeros.ndim > len(x.shape):
        return "it may enlarge what it is added to"
    if any(n not in (1, m) for n, m in zip(zeros.shape[::-1], x.shape[::-1], strict=False)):
        return "it may enlarge what it is added to"
    return _skip(match, edit)


def _drop_reshape(match: Match, edit: Edit) -> str | None:
    if not same_shape(match.tensors["x"], match.output):
        return "another shape, or one that is not known"
    return _skip(match, edit)


def _share_reshape(match: Match, edit: Edit) -> str | None:
    node, (x, shape) = match.root, match.root.inputs
    twins = [
        other
        for other in x.outputs
        if other is not node
        and (other.op, other.domain, other.attrs) == (node.op, node.domain, node.attrs)
        and other.inputs[0] is x
        and is_constant(other.inputs[1])
        and np.array_equal(values(other.inputs[1]), values(shape))
    ]
    if not twins:
        return "the only one of this shape"
    nodes = edit.model.graph.nodes
    first = next(n for n in nodes if n is node or any(n is twin for twin in twins))
    if first is node:
        return "the first of this shape"
    done = bypass(edit.model.graph, node, first.outputs[0])
    return None if done else "it names an output of the model"


def _merge_transposes(match: Match, edit: Edit) -> str | None:
    first, last = (list(match.named[name].attrs.get("perm", ())) for name in ("first", "last"))
    if not first or not last:
        return "a Transpose without an order"
    perm = [first[i] for i in last]
    if perm == sorted(perm):
        return _skip(match, edit)
    node = edit.node("Transpose", [match.tensors["x"]], match.root.name, {"perm": perm})
    edit.replace(match, [node])
    return None


def _sum_to_add(match: Match, edit: Edit) -> str | None:
    edit.replace(match, [edit.node("Add", match.root.inputs, match.root.name)])
    return None


RULES = (
    # torch.cat([x]), and Caffe2's Sum of what is left of a list.
    Rule("Identity", "Identity(x) → x", op("Identity|Sum|Concat", _ANY), _skip),
    Rule("Dropout", "Dropout(x) → x", op("Dropout", _ANY, _MAYBE, _MAYBE_TOO), _drop_dropout),
    # TorchScript writes nn.ZeroPad2d(0), and Keras' ZeroPadding2D of "valid", as a Pad of zeros.
    Rule("ZeroPad", "Pad(x, 0) → x", op("Pad", var("x"), Const(), _MAYBE, _MAYBE_TOO), _drop_pad),
    # transformers' mask of a ViT, in which nothing is masked.
    Rule("AddedZeros", "x + 0 → x", op("Add", var("x"), const("c")), _drop_zeros),
    Rule(
        "SameReshape",
        "Reshape(x, shape of x) → x",
        op("Reshape", var("x"), one_of(Const(), Var("unused"))),
        _drop_reshape,
    ),
    # onnxruntime's Gemms of q, k and v have a Reshape each (a static Swin behind its basic level).
    Rule(
        "EqualReshape",
        "Reshape(x, s) of several → one",
        op("Reshape", var("x"), Const()),
        _share_reshape,
    ),
    Rule(
        "TransposeTwice",
        "Transpose(Transpose(x, p), q) → Transpose(x, p[q])",
        op("Transpose", op("Transpose", var("x"), name="first"), name="last"),
        _merge_transposes,
    ),
    # Caffe2 writes the residual Add as a Sum.
    Rule(
        "SumOfTwo", "Sum(a, b) → a + b", op("Sum", one_of(Var("a"), Const("a")), _ANY), _sum_to_add
    ),
)
