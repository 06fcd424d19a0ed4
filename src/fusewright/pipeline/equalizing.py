"""The stage that gives parts of unlike range in one tensor steps of their own, and proves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.calibrate.power import ChannelPower, WholePower
from fusewright.calibrate.runner import watch
from fusewright.graph.convert import to_proto
from fusewright.graph.edit import sweep
from fusewright.graph.save import save
from fusewright.graph.walk import captured, producer
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.stages import Job, with_outputs
from fusewright.plan.decide import settle
from fusewright.plan.plan import Plan
from fusewright.quantize.equalize import equalize
from fusewright.quantize.rows import find_joined, lost_part
from fusewright.quantize.unlike import Site, Verdict, find_sites, judge

# In place of a channel axis, which counts from 1.
_WHOLE = 0


def equalize_parts(plan: Plan, job: Job) -> None:
    """Equalizes where one step would lose a part of a tensor, in place; taken back where the
    results change. Layers that cannot have it, and lose it, stay float.

    Raises:
        DataError: the model fails on a sample.
        VerifyError: it changed the results, and strict proof was asked for.
    """
    sites, joined = find_sites(plan), find_joined(plan)
    if not sites and not joined:
        return
    of_rows = dict.fromkeys((name, _WHOLE) for one in joined for name in one.sources)
    seen = _measure(plan, [*((site.tensor, site.axis) for site in sites), *of_rows], job)
    verdicts = [(site, judge(site, seen[site.tensor, site.axis], plan)) for site in sites]
    lossy = [(site, verdict) for site, verdict in verdicts if verdict is not None]
    rows = {name: power for (name, axis), power in seen.items() if axis == _WHOLE}
    lost = [(one, part) for one in joined if (part := lost_part(one, rows)) is not None]
    if not lossy and not lost:
        return
    with job.trace.stage("equalize") as details:
        for one, (name, left) in lost:
            text = f"one step for all leaves '{name}' {left:.0f} dB"
            _keep_float(plan, one.groups, text, "they are joined along no channels", job)
        able = [(s, v) for s, v in lossy if v.factors is not None and _may(s, job) is None]
        done = able if able and _apply(plan, able, job) else []
        for site, verdict in lossy:
            if not any(site is other for other, _ in done):
                why = _may(site, job) or "no factors of its parts help"
                _keep_float(plan, site.groups, verdict.text, why, job)
        settle(plan)
        details.append(f"{len(done)} of {len(sites)} tensors of several parts")


def _may(site: Site, job: Job) -> str | None:
    """Why a site cannot have factors, or None where it can."""
    # The proof by regions compares tensors by name; here what lies between the two changes.
    by_regions = "the model is proven by regions" if job.proof.by_regions else None
    return site.problem or by_regions


def _measure(
    plan: Plan, tensors: Sequence[tuple[str, int]], job: Job
) -> Mapping[tuple[str, int], ChannelPower]:
    """One look at tensors, by an axis each or as a whole, on the first samples.

    It runs the part of the model in front of them.
    """
    found: dict[tuple[str, int], ChannelPower] = {
        (name, axis): WholePower() if axis == _WHOLE else ChannelPower(axis)
        for name, axis in tensors
    }
    feeds = list(job.samples.preview(job.options.verify_samples))
    fed = {t.name for t in plan.model.graph.inputs}
    watching: dict[str, list[ChannelPower]] = {}
    for (name, _), power in found.items():
        if name not in fed:
            watching.setdefault(name, []).append(power)
            continue
        for feed in feeds:
            power.update(np.asarray(feed[name], np.float32), name)
    if watching:
        proto = runnable(to_proto(plan.model.graph), job.source)
        _cut(proto, _ancestors(plan.model.graph, watching))
        path = job.workspace.folder / "parts.onnx"
        save(with_outputs(proto, watching), path)
        watch(path, watching, feeds, job.options.calibration)
    return found


def _ancestors(graph: gs.Graph, wanted: Mapping[str, object]) -> set[str]:
    """Names of the nodes that some tensors rest on."""
    tensors = graph.tensors()
    waiting, found = [tensors[name] for name in wanted], set[str]()
    while waiting:
        node = producer(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += [*node.inputs, *captured(node)]
    return found


def _cut(proto: onnx.ModelProto, kept: set[str]) -> None:
    """Leaves these nodes and what they read; no output."""
    nodes = [node for node in proto.graph.node if node.name in kept]
    read = {name for node in nodes for name in node.input}
    inner = any(a.HasField("g") for node in nodes for a in node.attribute)
    stored = [t for t in proto.graph.initializer if inner or t.name in read]
    part = onnx.GraphProto(name=proto.graph.name)
    part.node.extend(nodes)
    part.initializer.extend(stored)
    part.input.extend(proto.graph.input)
    proto.graph.CopyFrom(part)


def _apply(plan: Plan, able: Sequence[tuple[Site, Verdict]], job: Job) -> bool:
    factors = [(s, v.factors) for s, v in able if v.factors is not None]
    applied = equalize(plan, factors, job.workspace)
    after = runnable(to_proto(plan.model.graph), job.source)
    if not job.proof.holds("equalize", after, after):
        applied.undo(plan.model.graph)
        job.proof.undo("equalize", "UnlikeRanges", f"{len(able)} tensors keep one step")
        return False
    sweep(plan.model.graph)
    job.flat = None
    for site, verdict in able:
        most = 0.0 if verdict.factors is None else float(verdict.factors.max())
        detail = f"{verdict.text}: factors of up to {most:g} in front of {', '.join(site.layers)}"
        job.trace.add("equalize", "match", "UnlikeRanges", site.groups[0], detail)
    return True


def _keep_float(plan: Plan, groups: Sequence[str], lost: str, why: str, job: Job) -> None:
    reason = f"its parts have unlike ranges: {lost}, and {why}"
    for name in groups:
        group = plan.group(name)
        job.trace.add("equalize", "miss", "UnlikeRanges", name, reason)
        if not group.asked:
            group.leave_float(reason)
