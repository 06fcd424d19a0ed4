"""Tied weights: an output head that is the embedding table, transposed, is stored once.

Cleaning folds the Transpose in front of the head, and the table lies in the file twice. Here the
head reads the table again. Measured on TensorRT-RTX 1.7.1, a table of 8000 × 128 and an FP16 rest:

    head float, own copy              file 4.1 MB   engine 5.4 MB
    head float, Transpose(table)           2.1             3.4
    head INT8, own copy                    4.2             4.5
    head INT8, table float → Q → DQ        2.1             1.6, the table is transposed at run time
    head INT8, table stored in INT8        1.1             1.5, the kernels of the first

In INT8 both read the stored codes: the embedding is rounded as the head is, a row by its own scale.
Steps of the other formats are too coarse for an embedding: there the head stays float (`decide`),
unless it is asked for, and then at least the file holds the table once.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names, detach, put_in_front, redirect
from fusewright.graph.tied import picks_rows, tied_tables
from fusewright.graph.walk import captured, peek, toposort
from fusewright.graph.workspace import Workspace
from fusewright.quantize.insert import QUANTIZE
from fusewright.quantize.weights import INT8_MAX


def share_tables(graph: gs.Graph, workspace: Workspace | None = None) -> list[str]:
    """Makes heads read the embedding table that their weight is a copy of, in place.

    Args:
        graph: flat, with its pairs and types as they are to be.
        workspace: where large stored tensors are to lie.

    Returns:
        One note for each table that is stored in INT8.
    """
    notes = []
    outputs = {id(t) for t in graph.outputs}
    fixed = outputs | {id(t) for node in graph.nodes for t in captured(node)}
    tied = list(tied_tables(graph))
    for table, weight in tied:
        if id(weight) in fixed:
            continue
        pairs = [node for node in weight.outputs if node.op == QUANTIZE]
        if not pairs:
            _transpose(graph, table, weight.name, weight)
        elif len(pairs) == len(weight.outputs) == 1 and _one_reader(pairs[0]):
            _share_pair(graph, table, weight, pairs[0])
            codes = None if id(table) in fixed else _as_codes(table, pairs[0])
            if codes is not None:
                stored = gs.Constant(Names(graph).fresh(f"{table.name}_int8"), codes)
                if workspace is not None:
                    workspace.put(stored, codes)
                _store(graph, table, stored, pairs[0])
                notes.append(_note(table))
    if tied:
        graph.nodes = toposort(graph.nodes)
    return notes


def _note(table: gs.Constant) -> str:
    return (
        f"the embedding '{table.name}' is the head's weight as well: both read one INT8 table, a"
        " scale for each row"
    )


def _one_reader(quantize: gs.Node) -> bool:
    return len(quantize.outputs[0].outputs) == 1


def _transpose(graph: gs.Graph, table: gs.Tensor, name: str, weight: gs.Tensor) -> None:
    """Puts Transpose(table) in place of a stored tensor or a pair's result, under `name`."""
    turned = gs.Variable(name, table.dtype, list(table.shape)[::-1])
    redirect(weight, turned)
    names = Names(graph)
    node = gs.Node("Transpose", names.fresh(f"{name}_Transpose"), {"perm": [1, 0]}, [table])
    node.outputs.append(turned)
    put_in_front(graph, [(node,)])


def _share_pair(
    graph: gs.Graph, table: gs.Constant, weight: gs.Constant, quantize: gs.Node
) -> None:
    """Moves a head's pair in front of the Transpose, to the table."""
    (dequantize,) = quantize.outputs[0].outputs
    restored = dequantize.outputs[0]
    name, weight.name = weight.name, ""
    restored.shape = quantize.outputs[0].shape = table.shape
    _transpose(graph, restored, name, restored)
    for node in (quantize, dequantize):
        if "axis" in node.attrs:
            node.attrs["axis"] = 0
    quantize.inputs[0] = table


def _as_codes(table: gs.Constant, quantize: gs.Node) -> np.ndarray | None:
    """The table in INT8; None where it is quantized otherwise, or read by more than Gathers."""
    scale, zero = quantize.inputs[1], quantize.inputs[2]
    whole = all(picks_rows(node, table) for node in table.outputs if node is not quantize)
    if zero.dtype != np.int8 or scale.dtype != table.dtype or not whole:
        return None
    steps = peek(scale).astype(np.float32)
    steps = steps[:, None] if steps.ndim else steps
    rounded = np.rint(peek(table).astype(np.float32) / steps)
    return np.asarray(np.clip(rounded, -INT8_MAX - 1, INT8_MAX), np.int8)


def _store(graph: gs.Graph, table: gs.Constant, codes: gs.Constant, quantize: gs.Node) -> None:
    """Makes the head and the embedding read these codes in place of the table."""
    (dequantize,) = quantize.outputs[0].outputs
    dequantize.inputs[0] = codes
    detach(quantize)
    graph.nodes = [node for node in graph.nodes if node is not quantize]
    redirect(table, dequantize.outputs[0])
