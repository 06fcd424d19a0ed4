"""One walk over a graph that finds the shape of every tensor in terms of the inputs' dimensions.

Shapes and the values of small tensors go together: a Reshape needs the value of its target, which
is computed from other shapes. onnx's own inference loses what it cannot write as one name; here a
dimension is a polynomial (`64*batch`), or unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import onnx_graphsurgeon as gs

from fusewright.graph.dims import Dim, Shape
from fusewright.graph.facts import MOST_VALUES, Facts
from fusewright.graph.model import Model
from fusewright.graph.symbolic.shapes import shapes_of
from fusewright.graph.symbolic.values import values_of
from fusewright.graph.symbols import Symbols
from fusewright.graph.walk import STANDARD_DOMAINS, toposort

_Found = TypeVar("_Found")


def annotate(model: Model) -> Facts:
    """Writes what is known of each tensor's shape into the graph: `['64*batch', 49, 96]`.

    A dimension is a number, a text that `dims.parse` reads, or None where it is unknown. Inputs
    and outputs keep what the file declares.
    """
    facts = propagate(model.graph)
    write_shapes(model.graph, facts)
    return facts


def propagate(graph: gs.Graph) -> Facts:
    """What is known of the tensors of a graph, which stays as it is."""
    facts = Facts(Symbols.of(graph.inputs), int(graph.opset))
    for tensor in graph.inputs:
        facts.shapes[id(tensor)] = facts.symbols.shapes.get(tensor.name)
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in toposort(graph.nodes):
        _visit(node, facts, outputs)
    return facts


def write_shapes(graph: gs.Graph, facts: Facts) -> None:
    """Writes the shapes that are known into the tensors between inputs and outputs."""
    declared = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        for tensor in node.outputs:
            if id(tensor) not in declared:
                write_shape(tensor, facts.shapes.get(id(tensor)))


def write_shape(tensor: gs.Tensor, shape: Shape | None) -> None:
    """Writes a shape into the tensor, where it is known."""
    if shape is not None:
        tensor.shape = [str(d) if isinstance(d, Dim) else d for d in shape]


def _visit(node: gs.Node, facts: Facts, outputs: set[int]) -> None:
    standard = node.domain in STANDARD_DOMAINS
    shapes = _attempt(shapes_of, node, facts) if standard else ()
    for i, tensor in enumerate(node.outputs):
        shape = shapes[i] if i < len(shapes) else None
        if shape is None and id(tensor) not in outputs:
            # Not of an output: its names are those that the exporter's caller chose.
            shape = facts.annotated(tensor)
        facts.shapes[id(tensor)] = shape
    values = _attempt(values_of, node, facts) if standard else ()
    for tensor, value in zip(node.outputs, values, strict=False):
        if value is not None and value.size <= MOST_VALUES:
            facts.values[id(tensor)] = value
            facts.shapes[id(tensor)] = value.shape


def _attempt(
    function: Callable[[gs.Node, Facts], Sequence[_Found]], node: gs.Node, facts: Facts
) -> Sequence[_Found]:
    try:
        return function(node, facts)
    except (ArithmeticError, LookupError, ValueError):
        # The node breaks its operator's rules, which is for onnxruntime to say: nothing is known.
        return ()
