"""What a run gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from fusewright.calibrate import Ranges
from fusewright.engine.ranges import ShapeRange
from fusewright.graph.workspace import Workspace, embed
from fusewright.pipeline.trace import Trace
from fusewright.plan.plan import HEAVY_OPS, Plan
from fusewright.precision import HalfPlan
from fusewright.quantize.placement import Placement
from fusewright.verify import Comparison

if TYPE_CHECKING:
    from fusewright.search import SearchResult


@dataclass(frozen=True)
class Result:
    """The outcome of `optimize` or `apply`.

    Attributes:
        light: the written model, its large weights in the workspace.
        workspace: the folder that these lie in, as long as the result is there.
        path: where it was written; None where no output was asked for.
        plan: the groups with their decisions.
        placement: every Q/DQ site; None where nothing is quantized.
        ranges: what calibration found for each scale; None likewise.
        half: what became half and what stayed float32, where the rest is half.
        proofs: comparison with the original by stage; `verify` holds the accuracy.
        trace: every pass, match and miss, in order.
        search: what was tried on the builder; None where nothing was.
        samples: how many samples calibrated it.
        peak_bytes: largest memory of the process.
        notes: what the user should know of data and result, a line each.
        sizes: smallest, middle and largest values in the samples, of inputs that may hold sizes.
    """

    light: onnx.ModelProto
    workspace: Workspace
    path: Path | None
    plan: Plan
    placement: Placement | None
    ranges: Ranges | None
    half: HalfPlan | None
    proofs: dict[str, Comparison]
    trace: Trace
    samples: int = 0
    peak_bytes: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)
    search: SearchResult | None = None
    sizes: Mapping[str, ShapeRange] = field(default_factory=dict)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The written model, whole."""
        whole = onnx.ModelProto()
        whole.CopyFrom(self.light)
        return embed(whole, self.workspace)

    @property
    def accuracy(self) -> Comparison | None:
        """The written model against the original; None where both are float32."""
        return self.proofs.get("verify")

    @property
    def overflows(self) -> tuple[str, ...]:
        """Half tensors of the written model that were not finite on a sample."""
        events = (event for event in self.trace if event.what == "overflow")
        return tuple(event.name for event in events)

    def heavy_ops(self) -> list[dict[str, Any]]:
        """Every heavy op with what was decided for it and why."""
        rows = []
        for group in self.plan.groups:
            entry = group.to_dict()  # a group switched off says so
            decided = {key: entry[key] for key in ("name", "decision", "reason")}
            rows += [{"op": op, **decided} for op in group.ops if op in HEAVY_OPS]
        return rows + [
            {"op": u.op, "name": u.name, "decision": "float", "reason": u.reason}
            for u in self.plan.unclaimed
        ]

    def _selections(self) -> list[dict[str, Any]]:
        found = () if self.accuracy is None else self.accuracy.selections
        return [selected.to_dict() for selected in found]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            **self.plan.to_dict(),
            "output": None if self.path is None else str(self.path),
            "heavy_ops": self.heavy_ops(),
            "placement": [] if self.placement is None else self.placement.lines(),
            "ranges": None if self.ranges is None else self.ranges.to_dict(),
            "half": None if self.half is None else self.half.to_dict(),
            "overflows": list(self.overflows),
            "search": None if self.search is None else self.search.to_dict(),
            "proofs": {stage: proof.to_dict() for stage, proof in self.proofs.items()},
            "selections": self._selections(),
            "undone": [event.to_dict() for event in self.trace.undone()],
            "samples": self.samples,
            "seconds": dict(self.trace.seconds),
            "peak_bytes": self.peak_bytes,
            "notes": list(self.notes),
            "trace": self.trace.to_list(),
        }
