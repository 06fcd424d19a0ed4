"""Puts one graph through the tool and looks for anything that must not be."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from asking import Asked
from building import run
from measuring import LEVELS, decibels, open_at
from naive import faked, rounded_to_bf16
from pairs import poor_pairs
from proving import fits_half, is_fault, is_half, plain_kind
from recipe import Drawn

import fusewright
from fusewright.errors import FusewrightError, UsageError
from fusewright.plan.file import write_plan

Feeds = list[dict[str, np.ndarray]]
Outputs = list[list[np.ndarray]]
CALIBRATION, UNSEEN = 8, 4
# Decibels. A rewrite in float may cost what another order of additions costs; a level of
# onnxruntime's optimizer may cost little against none; below `LOW` someone has to look.
EXACT, LEVEL_LOSS, LEVEL_ENOUGH = 94.0, 6.0, 30.0
# An FP16 file is computed in FP32; and what plain fake quantization loses too is no fault.
OF_HALF, MARGIN = 45.0, 4.0
LOW = {"": 40.0, "int8": 12.0, "fp8": 8.0, "int4": 5.0, "nvfp4": 3.0}
LOW_BF16 = 22.0
# Refusals that are right: the model is at fault, or the settings are idle for it.
EXPECTED = (
    r"matches no group",
    r"opset .* does not keep the model's results",
    r"converting opset|opset conversion",
    r"samples? .*(NaN|Inf)",
    r"no longer finite in FP16, which --io-types asks for",
)


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    kind: str
    detail: str


@dataclass
class Verdict:
    """All that came of one graph.

    Attributes:
        skipped: why it was not judged: an invalid graph, an expected refusal.
        decibels: of the worst output on the worst unseen sample.
    """

    findings: list[Finding] = field(default_factory=list)
    skipped: str = ""
    decibels: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, detail: object) -> None:
        self.findings.append(Finding(kind, " ".join(str(detail).split())[:400]))


def reference(drawn: Drawn) -> Outputs:
    """What the model gives on the unseen samples.

    Raises:
        Exception: it is no valid model, or onnxruntime does not run it.
    """
    onnx.checker.check_model(drawn.proto, full_check=not drawn.proto.graph.sparse_initializer)
    session = open_at(drawn.proto.SerializeToString(), "off")
    for feed in drawn.feeds[:CALIBRATION]:
        session.run(None, feed)
    return [session.run(None, feed) for feed in unseen(drawn)]


def unseen(drawn: Drawn) -> Feeds:
    return drawn.feeds[CALIBRATION : CALIBRATION + UNSEEN]


def judge(drawn: Drawn, asked: Asked, folder: Path) -> Verdict:
    """Runs the tool on one valid model and checks the result."""
    verdict = Verdict()
    try:
        expected = reference(drawn)
    except Exception as error:  # noqa: BLE001 - of any of three libraries: the graph is no good
        verdict.skipped = f"invalid: {str(error).splitlines()[0][:120]}"
        return verdict
    if not all(
        np.isfinite(a).all() for outputs in expected for a in outputs if a.dtype.kind == "f"
    ):
        verdict.skipped = "not finite"
        return verdict
    model, out = folder / "m.onnx", folder / "o.onnx"
    apart = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 64}
    copy = onnx.ModelProto.FromString(drawn.proto.SerializeToString())  # saving moves tensors out
    onnx.save(copy, model, **(apart if asked.apart else {}))
    calibration = drawn.feeds[:CALIBRATION]
    try:
        result = fusewright.optimize(
            model, out, calibration, precision=asked.precision, **asked.settings
        )
    except FusewrightError as error:
        if isinstance(error, UsageError) or any(re.search(p, str(error)) for p in EXPECTED):
            verdict.skipped = f"refused: {error}"
        else:
            verdict.add("refused", error)
        return verdict
    except Exception:  # noqa: BLE001 - what must not come out
        verdict.add("exception", _last_lines())
        return verdict
    _checks(drawn, asked, folder, result, expected, verdict)
    return verdict


def _last_lines() -> str:
    lines = traceback.format_exc().splitlines()
    places = [line.strip() for line in lines if "fusewright/" in line]
    return f"{lines[-1]} | {' < '.join(places[-2:])}"


def _checks(
    drawn: Drawn, asked: Asked, folder: Path, result: Any, expected: Outputs, verdict: Verdict
) -> None:
    undone = result.trace.undone()
    for event in undone:
        if is_fault(event, drawn, result.trace):
            verdict.add("undone", f"{event.stage} {event.name} {event.detail}")
    model, out = folder / "m.onnx", folder / "o.onnx"
    made = onnx.load(out)
    _interface(drawn.proto, made, asked, verdict)
    _accuracy(drawn, asked, folder, expected, result, verdict)
    _parsed(model, out, verdict)
    steps = {"twice": _twice, "plan": _planned, "inspect": _inspected, "strip": _stripped}
    for name in asked.checks:
        if undone and name == "plan":
            continue  # it is of the groups that there are with all rewrites
        try:
            steps[name](drawn, asked, folder, result, expected, verdict)
        except Exception:  # noqa: BLE001 - as above
            verdict.add(f"{name} exception", _last_lines())


def _interface(
    before: onnx.ModelProto, after: onnx.ModelProto, asked: Asked, verdict: Verdict
) -> None:
    stored = {t.name for t in before.graph.initializer}
    stored |= {t.values.name for t in before.graph.sparse_initializer}
    for what in ("input", "output"):
        old = [v for v in getattr(before.graph, what) if what == "output" or v.name not in stored]
        new = list(getattr(after.graph, what))
        if [v.name for v in old] != [v.name for v in new]:
            verdict.add("interface", f"{what}s {[v.name for v in old]} → {[v.name for v in new]}")
            continue
        for a, b in zip(old, new, strict=True):
            one, other = a.type.tensor_type, b.type.tensor_type
            same_type = one.elem_type == other.elem_type or "io_types" in asked.settings
            dims = [(d.dim_value, d.dim_param) for d in one.shape.dim]
            others = [(d.dim_value, d.dim_param) for d in other.shape.dim]
            if not same_type or (what == "input" and dims != others) or len(dims) != len(others):
                verdict.add("interface", f"{a.name}: {one} → {other}".replace("\n", " "))


def _accuracy(
    drawn: Drawn, asked: Asked, folder: Path, expected: Outputs, result: Any, verdict: Verdict
) -> None:
    feeds, out = unseen(drawn), (folder / "o.onnx").read_bytes()
    if _runs_elsewhere(asked):
        verdict.decibels = _compared(drawn, folder, feeds)
    else:
        by_level = {}
        for level in LEVELS:
            try:
                session = open_at(out, level)
                by_level[level] = decibels(drawn, expected, [session.run(None, f) for f in feeds])
            except Exception as error:  # noqa: BLE001 - onnxruntime's own
                verdict.add(f"level {level}", error)
        verdict.facts["levels"] = by_level
        verdict.decibels = by_level.get("off")
        if verdict.decibels is not None:
            low = _low_levels(by_level)
            # Few samples may be bad luck.
            more = {} if not low else _on_all_samples(drawn, out, ("off", *low))
            if low and (low := _low_levels(more)):
                verdict.add("level loss", f"off {more['off']:.1f}, {low}")
    if asked.is_lossy:
        return
    _floor(drawn, asked, folder, expected, verdict)
    # In a poor result each scale sees values that calibration did not: that is judged above.
    good = verdict.decibels is not None and verdict.decibels >= LOW_BF16
    if asked.quantized == "int8" and good and "off" in verdict.facts.get("levels", {}):
        for text in poor_pairs(out, drawn.feeds[:CALIBRATION]):
            verdict.add("poor scale", text)


def _low_levels(found: dict[str, float]) -> dict[str, float]:
    need = min(found["off"] - LEVEL_LOSS, LEVEL_ENOUGH)
    return {level: round(d, 1) for level, d in found.items() if d < need}


def _on_all_samples(drawn: Drawn, out: bytes, levels: Sequence[str]) -> dict[str, float]:
    feeds = [*drawn.feeds[CALIBRATION:], *drawn.more()]
    expected = [run(drawn.proto, feed) for feed in feeds]
    sessions = {level: open_at(out, level) for level in levels}
    return {
        level: decibels(drawn, expected, [session.run(None, feed) for feed in feeds])
        for level, session in sessions.items()
    }


def _floor(drawn: Drawn, asked: Asked, folder: Path, expected: Outputs, verdict: Verdict) -> None:
    if verdict.decibels is None:
        return
    if asked.precision == "fp32":
        floor = exact_floor(drawn, expected)
    else:
        floor = LOW_BF16 if asked.precision == "bf16" else LOW[asked.quantized]
    if verdict.decibels >= floor:
        return
    if asked.precision == "fp32":
        verdict.add("wrong", f"{verdict.decibels:.1f} dB, floor {floor:.1f}")
        return
    # Four samples may be bad luck.
    feeds = [*drawn.feeds[CALIBRATION:], *drawn.more()]
    if "io_types" in asked.settings:
        feeds = [feed for feed in feeds if fits_half(drawn.proto, feed)]
    found = _all_decibels(drawn, asked, folder, feeds)
    if found < floor and drawn.plain is not None and asked.precision != "fp16":
        floor = min(floor, naive_decibels(drawn, asked, feeds) - MARGIN)
    if found < floor:
        verdict.add(f"low {asked.precision}", f"{found:.1f} dB, floor {floor:.1f}")


def _all_decibels(drawn: Drawn, asked: Asked, folder: Path, feeds: Feeds) -> float:
    if _runs_elsewhere(asked):
        return _compared(drawn, folder, feeds)
    models = (drawn.proto.SerializeToString(), (folder / "o.onnx").read_bytes())
    first, second = (open_at(model, "off") for model in models)
    return decibels(
        drawn, [first.run(None, f) for f in feeds], [second.run(None, f) for f in feeds]
    )


def _runs_elsewhere(asked: Asked) -> bool:
    """Whether onnxruntime does not run the result as it is."""
    return "bf16" in asked.precision or "fp4" in asked.precision or "io_types" in asked.settings


def _compared(drawn: Drawn, folder: Path, feeds: Feeds) -> float:
    """By the tool's own measure; it says infinity of what is zero, or a sum of zero."""
    compared = fusewright.compare(folder / "m.onnx", folder / "o.onnx", feeds)
    sums = {v.name: 0.0 for v in drawn.proto.graph.output}
    for feed in feeds:
        for name, array in zip(sums, run(drawn.proto, feed), strict=True):
            sums[name] += float(np.square(array.astype(np.float64)).mean()) if array.size else 0.0
    left_out = drawn.rough | {name for name, total in sums.items() if total < 1e-12 * len(feeds)}
    found = [o.sqnr_db for o in compared.outputs if o.name not in left_out]
    return min((d for d in found if d is not None), default=np.inf)


def exact_floor(drawn: Drawn, expected: Outputs) -> float:
    """What a model that is rewritten alone has to reach."""
    return min(OF_HALF if is_half(drawn.proto) else EXACT, noise_of(drawn, expected) - 20)


def naive_decibels(drawn: Drawn, asked: Asked, test: Feeds) -> float:
    """What plain rounding of the same graph comes to, on these samples."""
    assert drawn.plain is not None
    kinds = {v.name: v.type.tensor_type.elem_type for v in drawn.plain.graph.input}
    calibration, test = (
        [
            {n: a.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[n])) for n, a in f.items()}
            for f in feeds
        ]
        for feeds in (drawn.feeds[:CALIBRATION], test)
    )
    names = {v.name for v in drawn.plain.graph.output}
    plain = replace(drawn, proto=drawn.plain, rough=drawn.rough & names)
    per_tensor = bool(asked.settings.get("per_tensor_weights"))
    if asked.quantized:
        rounded = faked(drawn.plain, calibration, asked.quantized, per_tensor)
    else:
        rounded = rounded_to_bf16(drawn.plain)
    before, after = ([run(m, f) for f in test] for m in (drawn.plain, rounded))
    return decibels(plain, before, after)


def noise_of(drawn: Drawn, expected: Outputs) -> float:
    """What another order of additions does to the original."""
    session = open_at(drawn.proto.SerializeToString(), "all")
    return decibels(drawn, expected, [session.run(None, f) for f in unseen(drawn)])


def _parsed(model: Path, out: Path, verdict: Verdict) -> None:
    from parsing import refusal

    why = refusal(out)
    if why is not None and refusal(model) is None:
        verdict.add("parser", why)


def _twice(
    drawn: Drawn, asked: Asked, folder: Path, result: Any, expected: Outputs, verdict: Verdict
) -> None:
    again = folder / "again.onnx"
    fusewright.optimize(
        folder / "m.onnx",
        again,
        drawn.feeds[:CALIBRATION],
        precision=asked.precision,
        **asked.settings,
    )
    if again.read_bytes() != (folder / "o.onnx").read_bytes():
        verdict.add("twice", "another run gives other bytes")


def _planned(
    drawn: Drawn, asked: Asked, folder: Path, result: Any, expected: Outputs, verdict: Verdict
) -> None:
    deciding = ("group_precision", "per_tensor_weights", "block_size", "pool_head")
    write_plan(
        fusewright.inspect(
            folder / "m.onnx",
            precision=asked.precision,
            **{k: v for k, v in asked.settings.items() if k in deciding},
        ),
        folder / "p.yaml",
    )
    again = folder / "again.onnx"
    more = {k: v for k, v in asked.settings.items() if k != "group_precision"}
    fusewright.optimize(
        folder / "m.onnx",
        again,
        drawn.feeds[:CALIBRATION],
        precision=asked.precision,
        plan=folder / "p.yaml",
        **more,
    )
    if again.read_bytes() != (folder / "o.onnx").read_bytes():
        verdict.add("plan", "the plan file gives other bytes")


def _inspected(
    drawn: Drawn, asked: Asked, folder: Path, result: Any, expected: Outputs, verdict: Verdict
) -> None:
    seen = fusewright.inspect(folder / "o.onnx")
    one, other = (
        Counter((plain_kind(g.kind), g.decision) for g in plan.groups if g.is_quantized)
        for plan in (result.plan, seen)
    )
    more, less = (
        {key for key in a - b if key[0] != "Linear" or key not in b}
        for a, b in ((one, other), (other, one))
    )
    if one and asked.quantized != "int4" and (more or less):
        verdict.add("inspect", f"{dict(one - other)} → {dict(other - one)}")


def _stripped(
    drawn: Drawn, asked: Asked, folder: Path, result: Any, expected: Outputs, verdict: Verdict
) -> None:
    stripped = fusewright.strip_qdq(folder / "o.onnx")
    if asked.precision not in ("int8", "fp8"):
        return
    found = decibels(drawn, expected, [run(stripped, feed) for feed in unseen(drawn)])
    floor = exact_floor(drawn, expected)
    if found < floor:
        verdict.add("strip", f"{found:.1f} dB, floor {floor:.0f}")
