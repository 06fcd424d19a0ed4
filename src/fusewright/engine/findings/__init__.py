"""What of a plan could be better: one finding per kernel, the reasons in `advice`."""

from __future__ import annotations

from fusewright.engine.findings.attention import attention_findings
from fusewright.engine.findings.moves import move_findings
from fusewright.engine.findings.norms import norm_findings
from fusewright.engine.findings.precision import precision_findings
from fusewright.engine.findings.qdq import qdq_findings
from fusewright.engine.findings.view import View
from fusewright.engine.report import Finding

__all__ = ["View", "find_all"]


def find_all(view: View) -> tuple[Finding, ...]:
    """Every finding of a plan, in the order of its kernels."""
    parts = (
        attention_findings,
        precision_findings,
        qdq_findings,
        norm_findings,
        move_findings,
    )
    found = [finding for part in parts for finding in part(view)]
    return tuple(sorted(found, key=lambda finding: finding.kernels[:1]))
