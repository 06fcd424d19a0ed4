"""Whether a graph means the same at an older opset."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import onnx_type
from fusewright.graph.walk import STANDARD_DOMAINS

# The last one whose QuantizeLinear says its type by the zero-point alone. onnxruntime (seen with
# 1.32) moves pairs and makes them UINT8, but not their `output_dtype`, and cannot open the model.
PLAIN_PAIRS_OPSET = 20
# From there to this one, operators took more types and attributes; these mean something else, too.
_REVIEWED = 26
_OTHERWISE = frozenset({"GroupNormalization"})
# BF16 came to most operators in 22; types of four bits and fewer, and E8M0, from 21 on.
_BF16, _FOUR_BITS = 16, 21


def means_the_same_at(graph: gs.Graph, opset: int) -> bool:
    """Whether a graph and its bodies, at most at opset 26, compute the same at an older opset.

    Args:
        opset: 20 or above.
    """
    if int(graph.opset) > _REVIEWED:
        return False
    graphs = [graph, *graph.subgraphs(recursive=True)]
    tensors = [t for inner in graphs for t in inner.tensors().values() if t.dtype is not None]
    kinds = {onnx_type(tensor.dtype) for tensor in tensors}
    if _BF16 in kinds or max(kinds, default=0) >= _FOUR_BITS:
        return False
    return all(_is_the_same_at(node, opset) for inner in graphs for node in inner.nodes)


def set_opset(graph: gs.Graph, opset: int) -> None:
    """Says another standard opset, in place, of a graph that `means_the_same_at` it."""
    graph.opset = opset
    others = [entry for entry in graph.import_domains or () if entry.domain not in STANDARD_DOMAINS]
    graph.import_domains = [onnx.helper.make_opsetid("", opset), *others]


def _is_the_same_at(node: gs.Node, opset: int) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return True
    if node.op in _OTHERWISE or not onnx.defs.has(node.op):
        return False
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError:
        return False
    return set(node.attrs) <= set(schema.attributes)
