"""LayerNorms in two kernels: statistics and result apart, with a float copy between them."""

from __future__ import annotations

from collections.abc import Iterator

from fusewright.engine.findings.view import FLOATS, QUANTIZED, View
from fusewright.engine.operations import CONV
from fusewright.engine.report import Finding

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


def norm_findings(view: View) -> Iterator[Finding]:
    """One finding per norm whose second kernel reads the statistics that its first one writes."""
    for name, owners in view.owners.items():
        if view.op(name) not in _NORMS:
            continue
        pairs = ((i, j) for i in owners for j in owners if _hands_statistics(view, i, j))
        first, second = next(pairs, (None, None))
        if first is None or second is None:
            continue
        readers = (view.rows[i] for i in view.kernels_after(second))
        quantized = any(row.operation == CONV and row.dtype in QUANTIZED for row in readers)
        cause = "norm-before-quantized-conv" if quantized else "norm-moved"
        yield view.finding(cause, (first, second), (name,))


def _hands_statistics(view: View, first: int, second: int) -> bool:
    """Whether one kernel writes one float value a row, and the other reads it."""
    read = {tensor.name for tensor in view.rows[second].kernel.inputs}
    return any(
        tensor.name in read and tensor.dtype in FLOATS and tensor.shape[-1:] == (1,)
        for tensor in view.rows[first].kernel.outputs
    )
