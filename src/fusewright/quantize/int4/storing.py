"""Four-bit weights in the graph: INT4 initializer → DequantizeLinear(axis, block_size) → Linear.

Not float → Q → DQ: the file is to shrink. NumPy has no four-bit type, and graphsurgeon writes an
array of ml_dtypes' one a byte per value; so the stored tensor holds its packed proto, as a weight
that was never loaded does, and is exported as it is.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fusewright.errors import ModelError
from fusewright.graph.edit import Names, put_in_front
from fusewright.plan.plan import node_index
from fusewright.quantize.int4.blocks import BlockWeight
from fusewright.quantize.int4.sites import Int4Site

INT4_OPSET = 21
_INT4_IR = 10


def int4_tensor(name: str, codes: np.ndarray) -> onnx.TensorProto:
    """Codes from −8 to 7 as an INT4 tensor: two in a byte, the first in the low half."""
    nibbles = np.ascontiguousarray(codes, np.int8).reshape(-1).view(np.uint8) & 15
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed = nibbles[0::2] | (nibbles[1::2] << 4)
    return onnx.TensorProto(
        name=name, dims=codes.shape, data_type=onnx.TensorProto.INT4, raw_data=packed.tobytes()
    )


class Storing:
    """Puts rounded weights into a graph, in place."""

    def __init__(self, graph: gs.Graph) -> None:
        """Looks up the nodes of `graph`.

        Raises:
            ModelError: its opset is too old for blocks.
        """
        if int(graph.opset) < INT4_OPSET:
            raise ModelError(f"INT4 weights need opset {INT4_OPSET}, the graph has {graph.opset}")
        self._graph = graph
        self._tensors = graph.tensors()
        self._nodes = node_index(graph)
        self._names = Names(graph)
        self._new: list[list[gs.Node]] = []

    def store(self, site: Int4Site, weight: BlockWeight) -> None:
        """Lets the site's readers read `weight`; `close` puts the new nodes in their place.

        The INT4 tensor takes over the float one's name where nobody else reads that.
        """
        old = self._tensors[site.tensor]
        codes, scales = weight.codes, weight.scales
        if site.axis:
            codes, scales = codes.T, np.ascontiguousarray(scales.T)
        readers = [(self._nodes[name], slot) for name, slot in site.readers]
        restored = gs.Variable(
            self._names.fresh(f"{site.tensor}_DequantizeLinear_Output"), np.float32, codes.shape
        )
        for node, slot in readers:
            node.inputs[slot] = restored
        is_free = not old.outputs and all(t is not old for t in self._graph.outputs)
        name = site.tensor if is_free else self._names.fresh(f"{site.tensor}_int4")
        inputs = [
            gs.Constant(name, LazyValues(int4_tensor(name, codes))),
            gs.Constant(self._names.fresh(f"{site.tensor}_scale"), scales),
        ]
        restore = gs.Node(
            "DequantizeLinear",
            self._names.fresh(f"{site.tensor}_DequantizeLinear"),
            {"axis": site.axis, "block_size": weight.block},
            inputs,
            [restored],
        )
        self._new.append([restore])

    def close(self) -> None:
        """Sorts the new nodes in, each in front of the first one that reads it."""
        put_in_front(self._graph, self._new)
        self._graph.ir_version = max(int(self._graph.ir_version or 0), _INT4_IR)
