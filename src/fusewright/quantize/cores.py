"""What is done about attention that its format loses: between fixed steps, or by large logits.

Where rounding q and k alone loses too much of the core, it stays float, and what makes them: it is
as far off. Where the steps of the probabilities do, they are finer, if no probability comes near 1:
the scale of the pair behind the Softmax is free (TENSORRT.md, "Attention"), and 1/127 wastes most
of its range on 197 keys that are all alike. ViT-B with random weights: 22.1 dB with steps of 1/127,
31.8 with 1/2032, 31.9 with float attention, and the same kernels. Else, where too much of the core
is lost, it stays float as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log2

from fusewright.graph.families import CONTRACTIONS
from fusewright.graph.walk import producer
from fusewright.plan.decide import settle
from fusewright.plan.plan import Group, Plan
from fusewright.quantize.probabilities import Loss, lossy_cores
from fusewright.target import FORMATS

# -34 dB: what rounding q, k and v to INT8 costs a core. Above it the probabilities are the worst of
# the four. (Trained models of 16 to 65 keys lose 1 to 9 %, and most have some near 1.)
_FINER_FROM = 0.02
# -20 dB: a hundredth of the core's power is noise, and every block adds its own. A MaxViT-T of 22
# cores off by 14 % each has 14 dB at its output, and 26 with all of them float.
LOST = 0.1
# Of q and k: what they are made of, x and the weight, is rounded as well, each by as much.
# Trained ViTs and Swins of the corpus: up to 1 % in INT8, 3 % in FP8.
LOST_LOGITS = LOST / 3**0.5
# Samples that calibration does not see may have a larger probability than those that it does.
_MARGIN = 2.0
# A scale of 1/(127·128) is the least power of two that FP16 holds without losing bits.
_LEAST = 2.0**-7


def settle_cores(plan: Plan, losses: Mapping[str, Loss]) -> tuple[str, ...]:
    """Leaves each core float that loses too much, or gives it finer steps; in place.

    A decision that the user asked for stays.

    Args:
        losses: group name → what it loses with the steps of its contract.

    Returns:
        The names of those that it left float.
    """
    floated = []
    for group in _cores(plan):
        error = _of_logits(group, losses)
        if error > LOST_LOGITS and not group.asked:
            title = FORMATS[group.decision].title
            group.leave_float(
                f"{title} loses its logits: they are large, and rounding q and k alone would put"
                f" its output off by {error:.0%}"
            )
            floated.append(group.name)
            _leave_makers(plan, group)
    for group in lossy_cores(plan):
        loss = losses.get(group.name)
        if loss is None or loss.error <= _FINER_FROM:
            continue
        if has_known_keys(group):
            _set_steps(group, loss.largest)
        if left(group, loss) > LOST and not group.asked:
            title = FORMATS[group.decision].title
            group.leave_float(
                f"{title} loses its probabilities: its output would be off by"
                f" {left(group, loss):.0%}"
            )
            floated.append(group.name)
    if floated:
        settle(plan)
    return tuple(floated)


def _cores(plan: Plan) -> list[Group]:
    return [group for group in plan.groups if group.is_quantized and group.fixed]


def _of_logits(group: Group, losses: Mapping[str, Loss]) -> float:
    return losses[group.name].logits if group.name in losses else 0.0


def _leave_makers(plan: Plan, core: Group) -> None:
    """Leaves the layers float that q and k of a core come from, in place.

    Rounding what they read, and their weights, is seen in the logits as rounding q and k is.
    """
    owners = {name: group for group in plan.groups if group.spec.weights for name in group.members}
    reads = {node.name: node.inputs for node in plan.model.graph.nodes}
    first = {t.name: t for name in core.members for t in reads[name]}
    waiting, seen = [first[name] for name in core.inputs[:2]], set[int]()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        layer = owners.get(node.name)
        if layer is None and node.op not in CONTRACTIONS:
            waiting += node.inputs
        elif layer is not None and layer.reads_quantized and not layer.asked:
            layer.leave_float(
                f"makes q or k of '{core.name}', whose large logits"
                f" {FORMATS[layer.decision].title} would lose"
            )


def has_known_keys(group: Group) -> bool:
    """Whether the largest probability seen says what others will be.

    With fewer keys, or more of them masked, each of the rest is more probable.
    """
    return isinstance(group.details["sequence"][-1], int) and len(group.inputs) == 3


def finer_cores(plan: Plan) -> list[Group]:
    """The quantized cores whose steps rest on what was seen."""
    return [group for group in lossy_cores(plan) if group.fixed[0].threshold < 1.0]


def fit_steps(plan: Plan, largest: Mapping[str, float]) -> None:
    """Steps that hold the largest probability of all samples, in place.

    Args:
        largest: name of each of the `finer_cores` → the largest that calibration saw.
    """
    for group in finer_cores(plan):
        _set_steps(group, largest[group.name])


def left(group: Group, loss: Loss) -> float:
    """The error that is left with the steps that the group has: it shrinks as they do."""
    return loss.error * group.fixed[0].threshold


def _set_steps(group: Group, largest: float) -> None:
    # A power of two: blocks alike keep one function body, and the plan its bits.
    enough = 2.0 ** ceil(log2(max(_MARGIN * largest, _LEAST)))
    group.fixed = (group.fixed[0]._replace(threshold=min(enough, 1.0)),)


def core_notes(plan: Plan, losses: Mapping[str, Loss], floated: Sequence[str]) -> list[str]:
    """What the user should know of the cores that lose too much; nothing where none does.

    Args:
        losses: group name → what it loses with the steps of its contract.
        floated: the groups that `settle_cores` left float.
    """
    notes = []
    logits = [n for n in floated if losses[n].logits > LOST_LOGITS]
    probabilities = [n for n in floated if n not in logits]
    if probabilities:
        worst = max(probabilities, key=lambda name: losses[name].error)
        notes.append(
            f"{len(probabilities)} attentions stay float: INT8 loses their probabilities (the"
            f" output of '{worst}' would be off by {losses[worst].error:.0%}); --group-precision"
            f" '{worst}=int8' takes that"
        )
    if logits:
        worst = max(logits, key=lambda name: losses[name].logits)
        notes.append(
            f"{len(logits)} attentions stay float, and what makes their q and k: the logits are"
            f" large, and rounding is seen in them (that of q and k alone would put the output of"
            f" '{worst}' off by {losses[worst].logits:.0%})"
        )
    still = {g.name: left(g, losses[g.name]) for g in lossy_cores(plan) if g.name in losses}
    if lost := {name: error for name, error in still.items() if error > LOST}:
        worst, options = _worst_of(plan, lost)
        notes.append(
            f"the probabilities of {len(lost)} attentions are lost between the steps of INT8 (the"
            f" output of '{worst}' is off by {lost[worst]:.0%}): {options} keeps them float"
        )
    still = {group.name: _of_logits(group, losses) for group in _cores(plan)}
    if lost := {name: error for name, error in still.items() if error > LOST_LOGITS}:
        worst, options = _worst_of(plan, lost)
        notes.append(
            f"the logits of {len(lost)} attentions are large, and rounding is seen in them (that of"
            f" q and k alone puts the output of '{worst}' off by {lost[worst]:.0%}): {options}"
            " keeps them float"
        )
    return notes


def _worst_of(plan: Plan, lost: Mapping[str, float]) -> tuple[str, str]:
    """The one that loses most, and the options that keep all of them float."""
    kinds = sorted({plan.group(name).kind for name in lost})
    options = " ".join(f"--exclude 'op:{kind}'" for kind in kinds)
    return max(lost, key=lost.__getitem__), options
