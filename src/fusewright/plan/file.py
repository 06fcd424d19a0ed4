"""The plan file: YAML that a person reads, edits, diffs and applies again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fusewright
from fusewright.errors import PlanError, UsageError
from fusewright.graph.save import Pending, save_text
from fusewright.plan.decide import details_refusal, refusal, settle
from fusewright.plan.demand import last_readers
from fusewright.plan.document import read_document
from fusewright.plan.plan import DECISIONS, OFF, Group, Plan, Smooth, node_index, smooth_setting
from fusewright.target import FORMATS, Precision

_HEADER = """\
# Fusewright plan. Edit a group's `decision` and apply the file with `optimize --plan`:
#   int8   Q/DQ pairs by the group's contract
#   fp8    the same in FP8 (E4M3)
#   int4   its weights in blocks of INT4; Linears only
#   nvfp4  inputs and weights in blocks of FP4 (Blackwell); Linears only
#   mxfp8  the same in blocks of FP8
#   float  no pairs, still collapsed into one call
#   off    left alone: neither quantized nor collapsed
# A decision that you change holds. Of the others, calibration may find that a layer loses too much
# and leave it float, as without the file; a line `asked: true` keeps it.
# A quantized Linear may have a line `smooth:` (off, auto, or an alpha from 0 to 1): how much of its
# input's outliers SmoothQuant moves into its weights. Without it, --smooth says.
# `inputs_to_quantize` of a convolution with a residual Add may be [0]: the skip stays float.
# A search adds `prepared_as:`, what smoothing and balancing still take it for, and
# `residual:`, the tensors of a transformer's residual stream that get a pair.
# `reason`, `nodes`, `inputs` and `unclaimed` are for reading; editing them changes nothing.
"""


def plan_beside(target: Path) -> Path:
    """Where the plan file of what a search finds for this output is written."""
    return target.with_name(f"{target.name}.plan.yaml")


def plan_text(plan: Plan) -> str:
    """The plan as YAML, the same text for the same plan."""
    data = {
        "fusewright": fusewright.__version__,
        "model": {"file": plan.model.path.name, "sha256": plan.model.fingerprint},
        "precision": plan.precision,
        **({} if plan.residual is None else {"residual": sorted(plan.residual)}),
        "groups": [_group(group) for group in plan.groups],
        "unclaimed": [entry.to_dict() for entry in plan.unclaimed],
    }
    import yaml  # only where a plan file is: it takes as long to load as the stages of a small job

    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return _HEADER + body


def write_plan(plan: Plan, path: Path, pending: Pending | None = None) -> None:
    """Writes the plan file, whole or not at all; with `pending`, when that is committed.

    Raises:
        OutputError: it cannot be written.
    """
    save_text(plan_text(plan), path, pending)


def formats_in(path: Path) -> frozenset[str]:
    """The formats that a plan file asks for, before there is a plan to apply it to.

    Raises:
        PlanError: it cannot be read.
    """
    asked = {entry.decision for entry in _entries(read_document(path), path)}
    return frozenset(asked & FORMATS.keys())


def precision_in(path: Path) -> str | None:
    """The precision that a plan file was made for; None where it does not say.

    Raises:
        PlanError: it cannot be read, or there is no such precision.
    """
    told = read_document(path).get("precision")
    try:
        return None if told is None else Precision.parse(str(told)).text
    except UsageError as error:
        raise PlanError(f"{path}: {error}") from error


def apply_plan_file(plan: Plan, path: Path) -> None:
    """Takes the decisions of a plan file over into `plan`, in place.

    Raises:
        PlanError: it cannot be read, is of another model, names a group that is not there, or
            asks for a decision that cannot be.
    """
    data = read_document(path)
    _check_model(data, plan, path)
    by_name = {group.name: group for group in plan.groups}
    nodes, seen = node_index(plan.model.graph), set[str]()
    for entry in _entries(data, path):
        if entry.name in seen:
            raise PlanError(f"{path}: names group '{entry.name}' twice")
        if entry.name not in by_name:
            raise PlanError(f"{path}: the model has no group '{entry.name}'")
        seen.add(entry.name)
        group = by_name.pop(entry.name)
        inputs = group.inputs_to_quantize if entry.inputs is None else entry.inputs
        problem = refusal(group, entry.decision, nodes, plan, (*DECISIONS, OFF))
        problem = problem or details_refusal(group, inputs, entry.prepared_as, nodes, plan)
        if problem is not None:
            raise PlanError(f"{path}: {problem}")
        group.asked = group.asked or entry.asked or entry.decision != group.decision
        group.apply = entry.decision != OFF
        if not group.apply:
            continue
        reason = entry.reason or group.reason
        if entry.decision != group.decision and not entry.prepared_as:
            reason = f"the plan file says {entry.decision}"
        group.decision, group.reason, group.smooth = entry.decision, reason, entry.smooth
        group.inputs_to_quantize, group.prepared_as = inputs, entry.prepared_as
    if by_name:
        raise PlanError(f"{path}: says nothing of group '{next(iter(by_name))}'")
    plan.residual = _residual(data, path)
    _check_settled(plan, path)


def _check_model(data: Mapping[str, Any], plan: Plan, path: Path) -> None:
    found = data.get("model")
    digest = found.get("sha256") if isinstance(found, Mapping) else None
    if digest != plan.model.fingerprint:
        name = found.get("file") if isinstance(found, Mapping) else None
        raise PlanError(
            f"{path}: is the plan of another model ('{name}', {str(digest)[:12]}…), not of"
            f" {plan.model.path} ({plan.model.fingerprint[:12]}…)"
        )


def _group(group: Group) -> dict[str, Any]:
    entry = group.to_dict()
    return {
        "name": entry["name"],
        "kind": entry["kind"],
        "decision": group.decision if group.apply else OFF,
        "reason": entry["reason"],
        "nodes": entry["nodes"],
        "inputs": entry["inputs"],
        "inputs_to_quantize": entry["inputs_to_quantize"],
        **({"asked": True} if group.asked else {}),
        **{key: entry[key] for key in ("smooth", "prepared_as") if key in entry},
    }


@dataclass(frozen=True)
class _Entry:
    """What a file says of a group; None where it says nothing."""

    name: str
    decision: str
    reason: str
    smooth: Smooth | None
    inputs: tuple[int, ...] | None
    asked: bool
    prepared_as: str | None


def _entries(data: Mapping[str, Any], path: Path) -> Iterator[_Entry]:
    for entry in data["groups"]:
        # YAML reads a bare `off` as false.
        decision = OFF if entry["decision"] is False else str(entry["decision"]).lower()
        prepared_as = entry.get("prepared_as")
        yield _Entry(
            str(entry["name"]),
            decision,
            str(entry.get("reason", "")),
            _smooth(entry, path),
            _inputs(entry, path),
            _asked(entry, path),
            None if prepared_as is None else str(prepared_as).lower(),
        )


def _inputs(entry: Mapping[str, Any], path: Path) -> tuple[int, ...] | None:
    found = entry.get("inputs_to_quantize")
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(number) is int for number in found):
        raise PlanError(
            f"{path}: group '{entry['name']}' has inputs_to_quantize: {found}; it is a list of"
            " positions"
        )
    return tuple(found)


def _asked(entry: Mapping[str, Any], path: Path) -> bool:
    found = entry.get("asked", False)
    if not isinstance(found, bool):
        raise PlanError(f"{path}: group '{entry['name']}' has asked: {found}; it is true or false")
    return found


def _residual(data: Mapping[str, Any], path: Path) -> frozenset[str] | None:
    found = data.get("residual")
    if found is None:
        return None
    if not isinstance(found, list):
        raise PlanError(f"{path}: `residual` is not a list of tensors")
    return frozenset(map(str, found))


def _smooth(entry: Mapping[str, Any], path: Path) -> Smooth | None:
    if "smooth" not in entry:
        return None
    found = smooth_setting(OFF if entry["smooth"] is False else entry["smooth"])
    if found is None:
        raise PlanError(
            f"{path}: group '{entry['name']}' has smooth: {entry['smooth']}; it is off, auto or a"
            " number from 0 to 1"
        )
    return found


def _check_settled(plan: Plan, path: Path) -> None:
    wanted = {id(g): g.decision for g in plan.groups}
    settle(plan)
    changed = [group for group in plan.groups if group.decision != wanted[id(group)]]
    if not changed:
        return
    # The last of them stands in front of what the user changed; the others follow from it.
    last, names = changed[-1], ", ".join(f"'{group.name}'" for group in changed)
    title = wanted[id(last)]
    behind = _readers_not_in(title, last, plan)
    behind = behind and f"; behind it {behind} is not"
    raise PlanError(
        f"{path}: group '{last.name}' cannot be {title}: {last.reason}{behind}: set {names} to"
        " float"
    )


def _readers_not_in(decision: str, group: Group, plan: Plan) -> str:
    """Names of the groups that read a group's output in another format; empty where none does."""
    written = node_index(plan.model.graph)[group.members[-1]].outputs[0]
    owners = {name: other for other in plan.groups for name in other.members}
    readers = [owners.get(node.name) for node in last_readers(written, plan.model.opset)]
    names = [g.name for g in readers if g and not (g.apply and g.decision == decision)]
    return " and ".join(f"'{name}'" for name in dict.fromkeys(names))
