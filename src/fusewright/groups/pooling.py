"""Global average pooling: it does not commute with Q/DQ, so its contract is empty."""

from __future__ import annotations

from fusewright.groups.kind import GroupKind
from fusewright.match.pattern import op, var

ADAPTIVE_AVG_POOL = GroupKind(
    kind="AdaptiveAvgPool",
    formula="mean of x over space",
    pattern=op("GlobalAveragePool", var("x"), name="layer"),
)
