"""Where a model selects: operators whose result jumps where what they read moves a little.

Two scores that are equal but for rounding change places in a TopK, and all that is gathered by its
indices with them. Behind a selection two models are told apart fairly only with the same things
selected; in front of it they are told apart as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from fusewright.graph.walk import STANDARD_DOMAINS
from fusewright.plan.plan import HEAVY_OPS
from fusewright.verify.side import reads_of

# Operator → the outputs that say what is selected.
_ORDERING: Mapping[str, tuple[int, ...]] = {
    "TopK": (1,),
    "NonMaxSuppression": (0,),
    "ArgMax": (0,),
    "ArgMin": (0,),
    "NonZero": (0,),
    "Unique": (0, 1, 2, 3),
}
# They read what comparisons give, mostly.
_OF_CONDITIONS = frozenset({"NonZero", "Unique"})
# Operator → the input that says it.
_CONDITIONAL = {"Compress": 1, "If": 0}
_COMPARING = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"})
# What conditions are made of.
_DISCRETE = _COMPARING | {
    "And", "Cast", "Expand", "Flatten", "Identity", "Not", "Or", "Reshape", "Slice", "Squeeze",
    "Transpose", "Unsqueeze", "Xor",
}  # fmt: skip
_BODIES = frozenset({"If", "Loop", "Scan"})
OF_SHAPES = frozenset({"Shape", "Size"})
"""What they give depends on no value."""
_TO_INTEGER = frozenset({onnx.TensorProto.BOOL, onnx.TensorProto.INT32, onnx.TensorProto.INT64})
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)
# From here on there is GatherElements, which gives the values of a TopK by its indices.
_GATHER_OPSET = 11


@dataclass(frozen=True)
class Selection:
    """One place where a model selects by numbers that it computes.

    Attributes:
        label: operator and node, for tables: `TopK 'topk_3'`.
        results: the tensors that say what is selected: indices, a condition, all a Loop makes.
        fronts: the tensors that it selects by.
        inputs: all that the node reads itself.
    """

    node: onnx.NodeProto
    label: str
    results: tuple[str, ...]
    fronts: tuple[str, ...]
    inputs: tuple[str, ...]


def find_selections(model: onnx.ModelProto, comparing: bool = False) -> list[Selection]:
    """The selections of the main graph that depend on computed floats, in its order.

    One inside the body of an If, a Loop or a Scan is out of reach: the node is taken for it.

    Args:
        model: its weights are not looked at.
        comparing: comparisons and Casts to integers count as well.
    """
    standard = [node for node in model.graph.node if node.domain in STANDARD_DOMAINS]
    if not any(_may_select(node, comparing) for node in standard):
        return []
    walk = _Walk(model.graph)
    opset = opset_of(model)
    found = (_selection(node, walk, comparing) for node in standard)
    return [
        s
        for s in found
        if s is not None
        and walk.data.intersection(s.inputs)
        and not (s.node.op_type == "TopK" and opset < _GATHER_OPSET)
    ]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    versions = [e.version for e in model.opset_import if e.domain in STANDARD_DOMAINS]
    return max(versions, default=_GATHER_OPSET)


def _may_select(node: onnx.NodeProto, comparing: bool) -> bool:
    if node.op_type in _ORDERING or node.op_type in _CONDITIONAL or _selects_inside(node):
        return True
    return comparing and _compares(node)


def _compares(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(a.name == "to" and a.i in _TO_INTEGER for a in node.attribute)
    return node.op_type in _COMPARING


def _selects_inside(node: onnx.NodeProto) -> str:
    """The operator that selects in a body of the node, however deep; none: empty."""
    if node.op_type not in _BODIES:
        return ""
    inner = (n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node)
    return next((op for n in inner if (op := _ordering(n) or _selects_inside(n))), "")


def _ordering(node: onnx.NodeProto) -> str:
    return node.op_type if node.op_type in _ORDERING else ""


class _Walk:
    """A graph by tensor name: who makes it, who needs it, what depends on floats of the data."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.maker = {name: node for node in graph.node for name in node.output if name}
        self.given = {v.name for v in graph.input}
        self.used = {name for node in graph.node for name in reads_of(node)}
        self.used |= {v.name for v in graph.output}
        self.data = _data(graph)

    def decided_by(self, name: str) -> list[str]:
        """What a condition or a number is decided by: in front of the comparisons it is made of."""
        maker = self.maker.get(name)
        if maker is None or maker.op_type not in _DISCRETE:
            return self.computed([name])
        if maker.op_type in _COMPARING:
            return self.computed(maker.input)
        return [front for i in maker.input if i for front in self.decided_by(i)]

    def computed(self, names: Iterable[str]) -> list[str]:
        """Those that are not stored."""
        makers = {name: self.maker.get(name) for name in names}
        return [
            name
            for name, maker in makers.items()
            if name in self.given or (maker is not None and maker.op_type != "Constant")
        ]


def _data(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on float inputs, or on what layers compute; shapes do not."""
    data = {v.name for v in graph.input if v.type.tensor_type.elem_type in _FLOATS}
    data -= {t.name for t in graph.initializer}
    for node in graph.node:
        if is_layer(node) or not (node.op_type in OF_SHAPES or data.isdisjoint(reads_of(node))):
            data.update(name for name in node.output if name)
    return data


def is_layer(node: onnx.NodeProto) -> bool:
    """Whether a node computes with weights, or stands for nodes that do."""
    return node.op_type in HEAVY_OPS or node.domain not in STANDARD_DOMAINS


def _selection(node: onnx.NodeProto, walk: _Walk, comparing: bool) -> Selection | None:
    op, name = node.op_type, node.name or (node.output[0] if node.output else "")
    inputs = tuple(dict.fromkeys(name for name in reads_of(node) if name))
    label, fronts, results = f"{op} '{name}'", walk.computed(inputs), list(node.output)
    inside = _selects_inside(node)
    if inside:
        label = f"{inside} inside {label}"
    elif op in _ORDERING:
        results = [node.output[i] for i in _ORDERING[op] if i < len(node.output)]
        if op in _OF_CONDITIONS:
            fronts = walk.decided_by(node.input[0])
    elif op in _CONDITIONAL:
        results = [node.input[_CONDITIONAL[op]]]
        fronts, inputs = walk.decided_by(results[0]), tuple(results)
    elif not comparing or not _compares(node):
        return None
    used = tuple(r for r in results if r in walk.used and r in walk.maker)
    return Selection(node, label, used, tuple(dict.fromkeys(fronts)), inputs) if used else None


def paired(
    first: Sequence[Selection], second: Sequence[Selection]
) -> list[tuple[Selection, Selection]]:
    """Selections of two models that are the same: by what they write, else one by one in order.

    Models of other tools may have other names; they count as the same where both have as many of
    an operator.
    """
    by_result = {result: s for s in first for result in s.results}
    pairs, found = [], set()
    for other in second:
        one = next((by_result[r] for r in other.results if r in by_result), None)
        if one is not None and one.node.op_type == other.node.op_type:
            pairs.append((one, other))
            found |= {id(one), id(other)}
    for op in dict.fromkeys(s.node.op_type for s in second):
        left, right = (
            [s for s in side if s.node.op_type == op and id(s) not in found]
            for side in (first, second)
        )
        if len(left) == len(right):
            pairs += zip(left, right, strict=True)
    return [
        pair
        for pair in pairs
        if len(pair[0].results) == len(pair[1].results)
        and len(pair[0].inputs) == len(pair[1].inputs)
    ]


def does_the_same(one: Selection, other: Selection, opsets: tuple[int, int]) -> bool:
    """Whether two nodes select alike from the same inputs: operator and attributes are equal."""
    return _attributes(one.node, opsets[0]) == _attributes(other.node, opsets[1])


def _attributes(node: onnx.NodeProto, opset: int) -> dict[str, bytes]:
    """With the defaults, which onnxruntime writes out."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    found = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.name}
    found |= {a.name: a for a in node.attribute}
    return {name: a.SerializeToString(deterministic=True) for name, a in found.items()}
