"""The choices that the rules leave: which groups could be otherwise, repeated blocks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_graphsurgeon as gs

from fusewright.graph.layout import Region, data_readers, region_behind
from fusewright.graph.walk import producer
from fusewright.plan.limits import layer_of
from fusewright.plan.plan import FLOAT, HEAVY_OPS, Group, Plan, node_index
from fusewright.search.arithmetic import weight_elements
from fusewright.search.variant import Baseline, Variant
from fusewright.target.table import SELDOM_PAYS_BELOW

# Twice the table's limit: half of such a kernel's tile is padding.
_FEW_CHANNELS = 2 * SELDOM_PAYS_BELOW
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# They compute in float, so what reads them quantized needs a kernel for it.
_POOLS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "Resize", "Upsample"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization"})


@dataclass(frozen=True)
class Choice:
    """One alternative to what the rules decided.

    Attributes:
        name: what it does, in words; unique.
        variant: what it changes.
        groups: the groups that it changes; the readers, where a tensor is.
        weights: elements of the weights that it makes float.
        is_class: what it changes is of one structure and size; repeated blocks are in it together.
    """

    name: str
    variant: Variant
    groups: tuple[str, ...]
    weights: int = 0
    is_class: bool = False


def find_choices(
    plan: Plan, baseline: Baseline, fixed: frozenset[str] = frozenset()
) -> list[Choice]:
    """Every choice, families of groups in one role first, then each class of repeated groups.

    Args:
        plan: as the rules decided it.
        baseline: the same, kept.
        fixed: names of groups that the user decided.
    """
    scene = _Scene(plan, fixed)
    found: dict[str, Choice] = {}
    for choice in (*_families(scene), *_classes(scene), *_skips(scene), *_streams(scene, baseline)):
        # A family of one class is that class.
        found.setdefault(choice.variant.key(), choice)
    return list(found.values())


class _Scene:
    """A plan and what its groups are in it."""

    def __init__(self, plan: Plan, fixed: frozenset[str]) -> None:
        self.plan, self.nodes = plan, node_index(plan.model.graph)
        self.free = [g for g in plan.groups if g.reads_quantized and g.name not in fixed]

    def in_float(self, what: str, groups: Iterable[Group]) -> Choice:
        chosen = list(groups)
        names = tuple(g.name for g in chosen)
        return Choice(
            f"{what} in float: {_named(names)}",
            Variant(tuple(sorted((name, FLOAT) for name in names))),
            names,
            sum(weight_elements(g, self.nodes) for g in chosen),
        )

    @cached_property
    def inputs(self) -> frozenset[int]:
        return frozenset(id(t) for t in self.plan.model.graph.inputs)

    @cached_property
    def outputs(self) -> frozenset[int]:
        return frozenset(id(t) for t in self.plan.model.graph.outputs)

    @cached_property
    def weighted(self) -> frozenset[int]:
        """`id` of the nodes that multiply by a weight."""
        layers = (self.nodes[m] for g in self.plan.groups if g.spec.weights for m in g.members)
        return frozenset(id(node) for node in layers if node.op in HEAVY_OPS)

    def behind(self, group: Group) -> Region:
        """What moves the tensors that its pairs round, and where they come from."""
        names = {group.inputs[i] for i in group.inputs_to_quantize}
        read = (t for m in group.members for t in self.nodes[m].inputs if t.name in names)
        return region_behind(list(read), self.plan.model.opset)


def _families(scene: _Scene) -> Iterator[Choice]:
    roles: tuple[tuple[str, Callable[[Group, _Scene], bool]], ...] = (
        ("layers on 1x1 maps", _on_one_element),
        ("the first layer", _is_first),
        ("the last layer", _is_last),
        (f"convolutions of less than {_FEW_CHANNELS} channels", _has_few_channels),
        ("layers behind pooling or Resize", lambda g, s: _is_behind(g, s, _POOLS)),
        ("layers behind Concat", _reads_concat),
        ("layers behind a norm", lambda g, s: _is_behind(g, s, _NORMS)),
        ("attention", lambda g, s: "head_size" in g.details),
    )
    for what, plays in roles:
        groups = [group for group in scene.free if plays(group, scene)]
        if groups:
            yield scene.in_float(what, groups)


def _classes(scene: _Scene) -> Iterator[Choice]:
    """Groups of one structure and one size: repeated blocks are tried once."""
    for (kind, *_), groups in _by(scene.free, lambda g: _class_key(g, scene)).items():
        shape = _weight_shape(groups[0], scene)
        size = "" if shape is None else f" {list(shape)}"
        yield replace(scene.in_float(f"{len(groups)} {kind}{size}", groups), is_class=True)


def _skips(scene: _Scene) -> Iterator[Choice]:
    """The skip of a residual Add read in float, by class."""
    reading = [g for g in scene.free if g.has_skip and g.inputs_to_quantize == (0, 1)]
    for (kind, *_), groups in _by(reading, lambda g: _class_key(g, scene)).items():
        names = tuple(group.name for group in groups)
        what = f"skips of {len(groups)} {kind} in float: {_named(names)}"
        yield Choice(what, Variant(skips=frozenset(names)), names, is_class=True)


def _streams(scene: _Scene, baseline: Baseline) -> Iterator[Choice]:
    """The residual stream, all of it and by the shape of its tensors."""
    graph = scene.plan.model.graph
    tensors = [t for t in _written(graph) if t.name in baseline.streams]
    by_shape = _by(tensors, lambda t: (str(t.shape),))
    for (shape,), found in ((("all",), tensors), *by_shape.items()):
        names = frozenset(t.name for t in found)
        if not names:
            continue
        form = "in float" if names <= baseline.residual else "quantized"
        what = f"residual stream {form}, {len(names)} tensors" + f" {shape}" * (shape != "all")
        readers = {n.name for t in found for n in data_readers(t)}
        groups = tuple(g.name for g in scene.plan.groups if readers & set(g.members))
        yield Choice(what, Variant(residual=names), groups, is_class=shape != "all")


def _written(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from (tensor for node in graph.nodes for tensor in node.outputs)


def _by(items: Iterable, key: Callable) -> dict:  # type: ignore[type-arg]
    """Items by key, in the order in which the keys come."""
    found: dict = {}  # type: ignore[type-arg]
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _class_key(group: Group, scene: _Scene) -> tuple[str, ...]:
    nodes, wanted = scene.nodes, set(group.inputs)
    shapes = [str(t.shape) for m in group.members for t in nodes[m].inputs if t.name in wanted]
    return (group.kind, *group.ops, group.decision, str(_weight_shape(group, scene)), *shapes)


def _weight_shape(group: Group, scene: _Scene) -> tuple[int, ...] | None:
    layer = layer_of(group, scene.nodes)
    return None if layer is None else tuple(layer.inputs[1].shape)


def _on_one_element(group: Group, scene: _Scene) -> bool:
    layer = layer_of(group, scene.nodes)
    if layer is None or layer.op not in _CONVOLUTIONS:
        return False
    shape = layer.outputs[0].shape
    return shape is not None and len(shape) > 2 and all(d == 1 for d in shape[2:])


def _is_first(group: Group, scene: _Scene) -> bool:
    sources = scene.behind(group).sources
    return bool(group.spec.weights) and any(id(t) in scene.inputs for t in sources)


def _is_last(group: Group, scene: _Scene) -> bool:
    """Whether it has weights, and no layer that has any comes behind it."""
    if not group.spec.weights:
        return False
    waiting = list(scene.nodes[group.members[-1]].outputs)
    seen: set[int] = set()
    reaches = False
    while waiting:
        tensor = waiting.pop()
        reaches |= id(tensor) in scene.outputs
        for node in tensor.outputs:
            if id(node) in scene.weighted:
                return False
            if id(node) not in seen:
                seen.add(id(node))
                waiting.extend(node.outputs)
    return reaches


def _has_few_channels(group: Group, scene: _Scene) -> bool:
    layer = layer_of(group, scene.nodes)
    if layer is None or layer.op not in _CONVOLUTIONS or _on_one_element(group, scene):
        return False
    return min(int(d) for d in layer.inputs[1].shape[:2]) < _FEW_CHANNELS


def _is_behind(group: Group, scene: _Scene, ops: frozenset[str]) -> bool:
    if not group.spec.weights:
        return False
    makers = (producer(t) for t in scene.behind(group).sources)
    return any(node is not None and node.op in ops for node in makers)


def _reads_concat(group: Group, scene: _Scene) -> bool:
    region = scene.behind(group)
    joins = len(region.sources) > 1 and any(node.op == "Concat" for node in region.nodes)
    return bool(group.spec.weights) and joins


def _named(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
