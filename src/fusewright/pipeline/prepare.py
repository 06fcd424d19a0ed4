"""The first half of the road: load → clean → normalize, each step proven where data is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx

from fusewright.errors import ModelError
from fusewright.graph.attributes import import_graph
from fusewright.graph.clean import clean, clean_again, rename_taken
from fusewright.graph.convert import to_model, to_proto
from fusewright.graph.fold_shapes import computes_shapes, fold_shapes
from fusewright.graph.half import has_half_bodies, keep_own_casts, written_out
from fusewright.graph.light import is_small_external, with_weights, without_weights
from fusewright.graph.load import Source, inline_functions, load_weights
from fusewright.graph.model import Model
from fusewright.graph.opset import (
    INT8_OPSET,
    LAYERNORM_OPSET,
    convert_opset,
    has_layer_norm_chain,
)
from fusewright.graph.runnable import out_of_reach, read_beyond, runnable_part
from fusewright.graph.session import naming
from fusewright.graph.unfuse import is_fused, write_out
from fusewright.graph.widen import holds_half, widen
from fusewright.graph.workspace import Workspace, store_large
from fusewright.match.matcher import Miss
from fusewright.normalize import RULES, Outcome, Rule, normalize
from fusewright.pipeline.proof import WHOLE_UP_TO, Proof
from fusewright.pipeline.trace import Trace


class Preparation:
    """Carries one model from its file to the normalized graph."""

    def __init__(
        self,
        source: Source,
        trace: Trace,
        proof: Proof | None = None,
        workspace: Workspace | None = None,
        opset: int = INT8_OPSET,
    ) -> None:
        """Without a `proof` nothing is run: that is what `inspect` does.

        `opset` is the least that the result needs. With a `workspace` the weights stay in its
        files. `normalized` holds what was proven last, for a proof that continues from there.
        """
        self.source, self.trace, self.proof = source, trace, proof
        self.misses: list[Miss] = []
        self.normalized: onnx.ModelProto | None = None
        self.workspace = workspace
        self.opset = opset

    def run(self, rules: Sequence[Rule] = RULES) -> Model:
        """Returns the normalized model.

        Raises:
            ModelError: the file cannot be handled.
            VerifyError: a rewrite changed the results, and strict proof was asked for.
        """
        with self.trace.stage("clean") as details:
            proto = self._cleaned()
            rename_taken(proto.graph)
            details.append(f"{len(self.source.names)} → {len(proto.graph.node)} nodes")
        with self.trace.stage("normalize") as details:
            model, outcomes = self._normalized(proto, rules)
            model.sort(self.source.names)
            self._record(outcomes)
            count = sum(len(outcome.applied) for outcome in outcomes)
            if self.workspace is not None:
                store_large(model.graph, self.workspace)
            details.append(f"{count} rewrites, {len(model.graph.nodes)} nodes")
        return model

    def _cleaned(self) -> onnx.ModelProto:
        proto = self._optimized()
        at_once = self._proven_at_once(proto)
        if at_once is not None:
            return at_once
        if not self._holds("clean", lambda: plain(self.source), proto):
            self._undo("clean", "onnxruntime's optimizer", "kept the file's own nodes")
            proto = plain(self.source)
        proto = self._converted(proto)
        folded = self._without_shape_arithmetic(proto)
        if folded is None or self._holds("clean", lambda: proto, folded, "shape arithmetic"):
            return proto if folded is None else folded
        self._undo("clean", "shape arithmetic", "it stays as it is computed")
        return proto

    @property
    def _needs_own_folding(self) -> bool:
        """Whether onnxruntime's optimizer cannot load the model, or would change its types."""
        return bool(self.source.custom) or has_half_bodies(self.source.proto)

    def _optimized(self) -> onnx.ModelProto:
        if self._needs_own_folding:
            return _folded(self._written_out())
        with naming(self.source.path):
            as_it_is = is_plain(self.source) and not written_out(self.source.proto)
            fused = any(map(is_fused, self.source.proto.graph.node))
            whole = self.source.path if as_it_is and not fused else self._written_out()
            return clean(whole, self.workspace)

    def _written_out(self) -> onnx.ModelProto:
        """The file's nodes, with standard operators for what onnxruntime has fused in it."""
        proto = plain(self.source)
        if not any(map(is_fused, proto.graph.node)):
            return proto
        count = len([node for node in proto.graph.node if is_fused(node)])
        proto = write_out(proto)
        left = len([node for node in proto.graph.node if is_fused(node)])
        detail = f"{count - left} fused operators of onnxruntime written out"
        self.trace.add("clean", "pass", "fused operators", detail=detail)
        return proto

    def _proven_at_once(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        """Cleaned and folded under one proof, for a graph that is a fraction of the first.

        None where there is nothing to fold, or the two have to be proven one by one.
        """
        if self.proof is None or self.source.opset < max(LAYERNORM_OPSET, self.opset):
            return None
        folded = self._without_shape_arithmetic(proto)
        holds = folded is not None and self._holds("clean", lambda: plain(self.source), folded)
        return folded if holds else None

    def _converted(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        chains = self.source.opset < LAYERNORM_OPSET and has_layer_norm_chain(proto)
        if chains and self.opset < LAYERNORM_OPSET:
            raised = self._raised_for_layer_norm(proto)
            if raised is not None:
                return raised
        converted = convert_opset(proto, self.opset)
        if converted is not proto and not self._keeps_results(proto, converted, self.opset):
            raise ModelError(
                f"{self.source.path}: converting opset {self.source.opset} → {self.opset} does not"
                f" keep the model's results: {self.trace.events[-1].detail}"
            )
        return converted

    def _raised_for_layer_norm(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        try:
            converted = convert_opset(proto, LAYERNORM_OPSET)
        except ModelError as error:
            kept = f"LayerNorm stays a chain: {error}"
            self.trace.add("clean", "note", "opset conversion", detail=kept)
            return None
        if not self._keeps_results(proto, converted, LAYERNORM_OPSET):
            self._undo("clean", "opset conversion", "LayerNorm stays a chain")
            return None
        return converted

    def _keeps_results(
        self, proto: onnx.ModelProto, converted: onnx.ModelProto, opset: int
    ) -> bool:
        detail = f"{self.source.opset} → {opset}"
        self.trace.add("clean", "pass", "opset conversion", detail=detail)
        return self._holds("clean", lambda: proto, converted, "opset")

    def _without_shape_arithmetic(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        """What is known of dynamic shapes folded, and by a second cleaning what follows from it.

        None where nothing is.
        """
        if not computes_shapes(proto):
            return None
        if len(self.source.names) > WHOLE_UP_TO or (self.proof and self.proof.by_regions):
            # A region that is fed random shapes proves nothing.
            self.trace.add("clean", "note", "shape arithmetic", detail="left: a graph too large")
            return None
        model = self._imported(without_weights(proto))
        count = fold_shapes(model)
        if not count:
            return None
        light = to_proto(model.graph)
        try:
            folded = (
                _folded(with_weights(light, proto))
                if self._needs_own_folding
                else clean_again(light, proto, self.workspace)
            )
        except ModelError as error:
            self.trace.add("clean", "note", "shape arithmetic", detail=f"left: {error}")
            return None
        detail = f"{count} changes, {len(proto.graph.node)} → {len(folded.graph.node)} nodes"
        self.trace.add("clean", "pass", "shape arithmetic", detail=detail)
        return folded

    def _normalized(
        self, proto: onnx.ModelProto, rules: Sequence[Rule]
    ) -> tuple[Model, list[Outcome]]:
        while True:
            model = self._imported(proto)
            outcomes = normalize(model, rules)
            suspects = [r for r, o in zip(rules, outcomes, strict=True) if o.applied]
            if self.proof is None or not suspects:
                return model, outcomes
            after = to_proto(model.graph)
            if self._holds("normalize", lambda: proto, after):
                self.normalized = after if self.proof.by_regions else None
                return model, outcomes
            culprits = self._culprits(proto, suspects)
            # Without one rule another may apply that did not before: once more over all the rest.
            rules = [rule for rule in rules if rule not in culprits]

    def _culprits(self, proto: onnx.ModelProto, suspects: Sequence[Rule]) -> list[Rule]:
        """The rules without which the others leave the results as they were; named as undone."""
        good: list[Rule] = []
        culprits: list[Rule] = []
        for rule in suspects:
            model = self._imported(proto)
            applied = normalize(model, [*good, rule])[-1].applied
            if self._holds("normalize", lambda: proto, to_proto(model.graph), rule.name):
                good.append(rule)
            else:
                culprits.append(rule)
                self._undo("normalize", rule.name, f"at {len(applied)} nodes: {applied[:1]}")
        if not culprits:
            # Each holds behind those before it, all together do not: the last one goes.
            culprits = [suspects[-1]]
            self._undo("normalize", suspects[-1].name, "together with the others")
        return culprits

    def _imported(self, proto: onnx.ModelProto) -> Model:
        model = to_model(proto, self.source, self.workspace)
        lost = out_of_reach(model.graph, frozenset(self.source.custom))
        model.frozen = frozenset(node.name for node in lost)
        return model

    def _holds(
        self,
        stage: str,
        before: Callable[[], onnx.ModelProto],
        after: onnx.ModelProto,
        name: str = "",
    ) -> bool:
        if self.proof is None:
            return True
        # Only the proof by regions looks at what was there before.
        earlier = before() if self.proof.by_regions else after
        return self.proof.holds(
            stage, runnable(earlier, self.source), runnable(after, self.source), name
        )

    def _undo(self, stage: str, name: str, detail: str) -> None:
        if self.proof is not None:
            self.proof.undo(stage, name, detail)

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            for node in outcome.applied:
                self.trace.add("normalize", "match", outcome.rule, node)
            for miss in outcome.misses:
                self.trace.add("normalize", "miss", miss.pattern, miss.node, str(miss))
            self.misses += outcome.misses


def is_plain(source: Source) -> bool:
    """Whether onnxruntime can be given the file as it is, to optimize or to run."""
    stored = {t.name for t in source.proto.graph.initializer}
    listed = any(v.name in stored for v in source.proto.graph.input)
    # Exporters that move every tensor out: onnxruntime infers no shapes from external scales.
    scattered = any(is_small_external(t) for t in source.proto.graph.initializer)
    whole = source.on_disk and not source.proto.functions and not scattered
    return whole and not listed and not source.custom


def in_float32(source: Source) -> Source:
    """The file, in float32 where it has FP16 or BF16 tensors; its interface as it is.

    One with custom operators stays as it is, since what they take is not known; so does an FP16
    one with bodies (If, Loop, Scan), which would come out in float32.
    """
    if source.custom or has_half_bodies(source.proto) or not holds_half(source.proto):
        return source
    proto = plain(source)
    widen(proto)
    keep_own_casts(proto)
    return replace(source, proto=proto, on_disk=False, holds_weights=True, was_half=True)


def plain(source: Source) -> onnx.ModelProto:
    """The file with functions inlined, and its initializers no longer listed as inputs.

    IR versions before 4 list every weight as an input, and onnxruntime folds nothing that a
    caller could override.
    """
    proto = inline_functions(load_weights(source), source.path)
    stored = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in stored]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, 4)
    return proto


def runnable(proto: onnx.ModelProto, source: Source) -> onnx.ModelProto:
    """What onnxruntime can run of a model: all of it, unless there are custom operators.

    Raises:
        ModelError: everything depends on custom operators.
    """
    if not source.custom:
        return proto
    part = runnable_part(import_graph(proto), frozenset(source.custom))
    if not part.nodes:
        raise ModelError(
            f"{source.path}: everything in it depends on custom operators"
            f" ({', '.join(source.custom)}), so nothing can be run"
        )
    return to_proto(part)


def beyond_reach(source: Source) -> dict[str, str]:
    """Tensors in front of custom operators → the node; outputs of the model are not among them."""
    if not source.custom:
        return {}
    found = read_beyond(import_graph(source.proto), frozenset(source.custom))
    outputs = {spec.name for spec in source.interface.outputs}
    return {name: node for name, node in found.items() if name not in outputs}


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Constant folding by graphsurgeon, for a model that onnxruntime's optimizer is not for."""
    graph = import_graph(proto)
    graph.fold_constants()
    graph.cleanup(remove_unused_graph_inputs=False)
    return to_proto(graph)
