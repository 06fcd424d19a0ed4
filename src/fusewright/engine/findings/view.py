"""A plan beside the file it came from: what findings are read off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from fusewright.engine.outline import HEAVY, LAYOUT, QDQ, Outline, OutlineNode
from fusewright.engine.report import Finding, KernelReport, total

FLOATS = frozenset({"Float", "Half", "BFloat16"})
QUANTIZED = frozenset({"Int8", "UInt8", "FP8", "Int4", "FP4"})

# Where the file is not at hand, the operator is read off the node's name: `/layer1/conv1/Conv`,
# `ConvBNAct.Conv_0`, `Conv_22`, `features.0.weight_QuantizeLinear`.
_OP_IN_NAME = re.compile(r"(?:^|[/._])([A-Z][A-Za-z]+\d*?)(?:_\d+)*$")


class View:
    """The rows of a plan, who writes and reads each tensor, and the outline of the file."""

    def __init__(self, rows: Sequence[KernelReport], outline: Outline | None) -> None:
        """`outline` is None where only the plan is at hand; then operators are read off names."""
        self.rows, self.outline = tuple(rows), outline
        self.writers = {t.name: i for i, row in enumerate(rows) for t in row.kernel.outputs}
        self.readers: dict[str, list[int]] = {}
        self.owners: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            for tensor in row.kernel.inputs:
                self.readers.setdefault(tensor.name, []).append(index)
            for node in row.kernel.nodes:
                self.owners.setdefault(node, []).append(index)

    def node(self, name: str) -> OutlineNode | None:
        """The node of that name in the file."""
        return None if self.outline is None else self.outline.nodes.get(name)

    def op(self, name: str) -> str:
        """The operator of a node; empty where neither the file nor the name tells."""
        node = self.node(name)
        if node is not None:
            return node.op
        for op in ("DequantizeLinear", "QuantizeLinear"):
            if op in name:
                return op
        found = _OP_IN_NAME.search(name.split(" | ")[0])
        return found[1] if found else ""

    def home(self, name: str) -> int | None:
        """The position of the conv, GEMM or attention kernel that computes a heavy node."""
        found = (i for i in self.owners.get(name, ()) if self.rows[i].operation is not None)
        return next(found, None)

    def own_nodes(self, index: int) -> tuple[str, ...]:
        """The nodes a kernel computes: without heavy ones that another kernel is the home of.

        TensorRT-RTX also lists a conv under the kernel that adds its bias, or pads its input.
        """
        row = self.rows[index]
        return tuple(
            name
            for name in row.kernel.nodes
            if self.op(name) not in HEAVY or self.home(name) in (None, index)
        )

    def is_pair_alone(self, index: int) -> bool:
        """Whether a kernel does nothing but quantize, dequantize, and move what it does that to.

        One that also lists the conv or GEMM in front of it is that one's epilogue: it rescales and
        adds the bias.
        """
        row = self.rows[index]
        if row.operation is not None or not row.kernel.nodes:
            return False
        names = row.kernel.nodes if self.is_epilogue(index) else self.own_nodes(index)
        ops = {self.op(name) for name in names}
        return bool(ops & QDQ) and ops <= QDQ | LAYOUT | {"Cast", "Constant"}

    def is_epilogue(self, index: int) -> bool:
        """Whether it ends what a conv or GEMM kernel began: rescales, adds the bias."""
        before = set(self.kernels_before(index))
        homes = {self.home(n) for n in self.rows[index].kernel.nodes if self.op(n) in HEAVY}
        return bool(before & (homes - {None}))

    def kernels_before(self, index: int) -> Iterator[int]:
        """Positions of the kernels that write what this one reads."""
        inputs = self.rows[index].kernel.inputs
        yield from (self.writers[t.name] for t in inputs if t.name in self.writers)

    def kernels_after(self, index: int) -> Iterator[int]:
        """Positions of the kernels that read what this one writes."""
        for tensor in self.rows[index].kernel.outputs:
            yield from self.readers.get(tensor.name, ())

    def finding(
        self, cause: str, kernels: Iterable[int], nodes: Iterable[str] = (), detail: str = ""
    ) -> Finding:
        """A finding on these kernels, with their groups and bytes."""
        positions = tuple(dict.fromkeys(kernels))
        names = tuple(nodes)
        owners = [node.group for node in map(self.node, names) if node is not None and node.group]
        groups = owners or [group for i in positions for group in self.rows[i].groups]
        size = total(self.rows[i].activation_bytes for i in positions)
        return Finding(cause, positions, tuple(dict.fromkeys(groups)), names, detail, size)
