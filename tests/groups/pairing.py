"""From a small attention net to its Q/DQ pairs and its calls, as the pipeline does it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from attending import SIZE, Build, found_in, proto_of
from building import assert_equal
from onnx import numpy_helper

from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import DOMAIN, collapse
from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import Plan
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement, place
from fusewright.target import TENSORRT, Target
from fusewright.target.table import ATTENTION

# A target that fuses attention of the nets' head size.
SMALL = replace(
    TENSORRT, attention={**ATTENTION, "int8": replace(ATTENTION["int8"], sizes=(SIZE,))}
)


def planned(build: Build, target: Target = SMALL) -> Plan:
    plan, _ = found_in(proto_of(build))
    decide(plan, Rules(target=target))
    return plan


def slots(placement: Placement) -> dict[str, tuple[tuple[str, int], ...]]:
    """Tensor with a pair → who reads it behind the pair."""
    return {site.tensor: site.readers for site in placement.activations}


@dataclass(frozen=True)
class Quantized:
    """A quantized and collapsed net.

    Attributes:
        plan: its groups.
        placement: its pairs.
        proto: the file.
    """

    plan: Plan
    placement: Placement
    proto: onnx.ModelProto

    def call(self, kind: str) -> onnx.NodeProto:
        """The only call of a group of this kind."""
        (call,) = [n for n in self.proto.graph.node if n.domain == DOMAIN and self._kind(n) == kind]
        return call

    def body(self, kind: str) -> onnx.FunctionProto:
        """What that call runs."""
        name = self.call(kind).op_type
        (body,) = [f for f in self.proto.functions if f.name == name]
        return body

    def _kind(self, call: onnx.NodeProto) -> str:
        return str(call.op_type).split("_")[0]

    def flat_ops(self) -> list[str]:
        """Operators that are in no group."""
        return sorted(n.op_type for n in self.proto.graph.node if n.domain != DOMAIN)


def quantized(build: Build, target: Target = SMALL) -> Quantized:
    """With a threshold for every range, no two alike; collapsed it computes what it does flat."""
    plan = planned(build, target)
    placement = place(plan)
    graph = plan.model.graph
    thresholds = {scale: 2.0 + i / 7 for i, scale in enumerate(placement.observe)}
    insert_qdq(graph, placement, thresholds | placement.fixed)
    assert [str(violation) for violation in lint(graph)] == []
    collapsed = to_proto(collapse(graph, plan))
    onnx.checker.check_model(collapsed, full_check=True)
    assert_equal(to_proto(graph), collapsed)
    return Quantized(plan, placement, collapsed)


def stored_in(body: onnx.FunctionProto, name: str) -> np.ndarray:
    """The value of a constant of a body."""
    (node,) = [n for n in body.node if n.op_type == "Constant" and n.output[0] == name]
    array: np.ndarray = numpy_helper.to_array(node.attribute[0].t)
    return array
