"""Tied weights: a stored tensor that is an embedding table, transposed.

Language models use the table as the weight of their output head. The exporter writes a Transpose,
which cleaning folds, or a Gemm with transB: then the same numbers are stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, peek

# Smaller ones are not worth a Transpose.
_LEAST = 1 << 12


def tied_tables(graph: gs.Graph) -> Iterator[tuple[gs.Constant, gs.Constant]]:
    """Tables [rows, width] that a Gather picks rows of, each with a stored [width, rows] of it."""
    stored = {id(t): t for n in graph.nodes for t in n.inputs if is_constant(t) and _is_large(t)}
    for table in stored.values():
        if not any(picks_rows(node, table) for node in table.outputs):
            continue
        for other in stored.values():
            if other is not table and _is_transpose(table, other):
                yield table, other


def picks_rows(node: gs.Node, table: gs.Constant) -> bool:
    """Whether a node is a Gather of the table's rows."""
    return node.op == "Gather" and node.inputs[0] is table and node.attrs.get("axis", 0) in (0, -2)


def _is_large(tensor: gs.Constant) -> bool:
    return len(tensor.shape) == 2 and prod(tensor.shape) >= _LEAST


def _is_transpose(table: gs.Constant, other: gs.Constant) -> bool:
    if tuple(table.shape) != tuple(other.shape)[::-1] or table.dtype != other.dtype:
        return False
    return bool(np.array_equal(peek(table).T, peek(other)))
