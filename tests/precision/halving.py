"""From a small net to its half form, as the pipeline does it, and how far that is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from building import Net, as_model, feeds, run

from fusewright.graph.convert import to_proto
from fusewright.graph.model import Model
from fusewright.precision import HalfOptions, HalfPlan, apply_half, measure, plan_half
from fusewright.precision.kinds import HALF_TYPES
from fusewright.precision.twin import rounding_twin

Feed = Mapping[str, np.ndarray]
SAMPLES = 3
DEFAULT = HalfOptions()


@dataclass(frozen=True)
class Halved:
    """A model before and after, with the plan and the samples it was measured on."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    model: Model
    plan: HalfPlan
    samples: Sequence[Feed]

    @property
    def ops(self) -> str:
        return " ".join(node.op for node in self.model.graph.nodes)

    @property
    def casts(self) -> int:
        return sum(node.op == "Cast" for node in self.model.graph.nodes)

    @property
    def kept(self) -> str:
        """Operators kept float32, in the order of the graph."""
        by_name = {node.name: node.op for node in self.model.graph.nodes}
        return " ".join(op for name, op in by_name.items() if name in self.plan.float_nodes)

    def reason(self, op: str) -> str:
        """Why the only node of an operator stays float32."""
        names = {n.name for n in self.model.graph.nodes if n.op == op}
        (reason,) = [why for name, why in self.plan.float_nodes.items() if name in names]
        return reason

    def error(self) -> float:
        """Relative error of the worst output on the rounding twin."""
        values = (*self.before.graph.input, *self.before.graph.output)
        half = [v.name for v in values if v.type.tensor_type.elem_type in HALF_TYPES]
        return worst_error(self.before, rounding_twin(self.after, half), self.samples)


def worst_error(before: onnx.ModelProto, after: onnx.ModelProto, samples: Sequence[Feed]) -> float:
    """Infinite where the second gives NaN or Inf and the first does not."""
    worst = 0.0
    for feed in samples:
        for old, new in zip(run(before, feed), run(after, feed), strict=True):
            assert old.dtype == new.dtype and old.shape == new.shape
            assert np.isfinite(old).all(), "the reference is not finite"
            if not np.isfinite(new).all():
                return np.inf
            norm = np.linalg.norm(old.astype(np.float64))
            assert norm > 0, "the reference is all zeros"
            worst = max(worst, float(np.linalg.norm(old.astype(np.float64) - new) / norm))
    return worst


def halved(
    net: Net,
    *outputs: str,
    kind: str = "fp16",
    samples: Sequence[Feed] = (),
    options: HalfOptions = DEFAULT,
) -> Halved:
    """Measured on `samples`, or random ones, decided and applied; the result is a valid model."""
    return halved_proto(net.proto(*outputs), kind, samples, options)


def halved_proto(
    proto: onnx.ModelProto,
    kind: str = "fp16",
    samples: Sequence[Feed] = (),
    options: HalfOptions = DEFAULT,
) -> Halved:
    samples = samples or [feeds(proto, seed) for seed in range(SAMPLES)]
    model = as_model(proto)
    plan = plan_half(model.graph, measure(model.graph, samples, kind), kind, options)
    apply_half(model.graph, plan)
    after = to_proto(model.graph)
    onnx.checker.check_model(after, full_check=True)
    return Halved(proto, after, model, plan, samples)


def naive(proto: onnx.ModelProto, kind: str = "fp16") -> onnx.ModelProto:
    """Everything half that can be, whatever it holds: what the decision has to be better than."""
    from fusewright.precision.flow import Flow
    from fusewright.precision.kinds import KINDS

    model = as_model(proto)
    flow = Flow(model.graph, KINDS[kind])
    able = frozenset(n.name for n in model.graph.nodes if flow.slots(n).follows)
    apply_half(model.graph, HalfPlan(kind, {}, {}, able))
    return rounding_twin(to_proto(model.graph))
