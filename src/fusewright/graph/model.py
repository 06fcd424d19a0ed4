"""The model as every stage sees it: a gs.Graph, where its nodes come from, what was noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.collector import without_gc
from fusewright.graph.session import TensorSpec
from fusewright.graph.walk import toposort

_HALF = (np.float16, ml_dtypes.bfloat16)


@dataclass
class Model:
    """A graph on its way through the stages.

    Attributes:
        path: the input file.
        graph: the graph; stages edit it in place. Node names in it are unique.
        origins: node name in `graph` → names of the input file's nodes it stands for. An unnamed
            node of the file goes by its first output.
        interface: the file's true inputs and outputs, which no stage may change.
        frozen: names of nodes that no rewrite may touch: custom operators and what follows them.
        fingerprint: SHA-256 of the file (and of its external data).
        notes: what the user should know of how the file was read.
        file_ops: operator type of each node of the input file, by its name there.
    """

    path: Path
    graph: gs.Graph
    origins: dict[str, tuple[str, ...]]
    interface: Interface
    frozen: frozenset[str] = frozenset()
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)
    file_ops: Mapping[str, str] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        return int(self.graph.opset)

    def origin(self, node: gs.Node) -> tuple[str, ...]:
        """Names in the input file of what `node` stands for."""
        return self.origins.get(node.name, ())

    def merge_origins(self, into: gs.Node, nodes: Iterable[gs.Node]) -> None:
        """Records that `into` now also stands for `nodes`."""
        merged = dict.fromkeys(self.origins.get(into.name, ()))
        for node in nodes:
            merged.update(dict.fromkeys(self.origins.get(node.name, ())))
        self.origins[into.name] = tuple(merged)

    def sort(self, names: Sequence[str]) -> None:
        """Brings the nodes into the order of the file as far as their inputs allow.

        onnxruntime's optimizer turns parallel branches round.

        Args:
            names: of the file's nodes, in its order.
        """
        index = {name: i for i, name in enumerate(names)}
        place, latest = {}, 0
        for node in self.graph.nodes:
            latest = min((index[o] for o in self.origin(node) if o in index), default=latest)
            place[id(node)] = latest
        with without_gc():
            self.graph.nodes = toposort(sorted(self.graph.nodes, key=lambda node: place[id(node)]))


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a model: names, order, types and declared shapes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def half(self) -> tuple[str, ...]:
        """Names of those that are FP16 or BF16."""
        return tuple(s.name for s in (*self.inputs, *self.outputs) if s.dtype in _HALF)


def trace_origins(
    nodes: Iterable[gs.Node], names: set[str], producers: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Where the nodes of a rewritten file come from, by the names that survived.

    A node that kept its name is itself. A new one (a function's body after inlining, HardSwish
    written out by onnxruntime) stands for the file's producer of the tensor it writes, or, for
    an interior tensor, for what its consumers stand for.

    Args:
        nodes: the new nodes, in topological order.
        names: node names in the file.
        producers: tensor name → node name in the file.
    """
    origins: dict[str, tuple[str, ...]] = {}
    for node in reversed(list(nodes)):
        if node.name in names:
            origins[node.name] = (node.name,)
            continue
        known = [producers[t.name] for t in node.outputs if t.name in producers]
        if not known:
            known = [o for t in node.outputs for c in t.outputs for o in origins.get(c.name, ())]
        origins[node.name] = tuple(dict.fromkeys(known))
    return origins
