"""Pad in front of a convolution: Conv(Pad(x, p), pads=q) → Conv(x, pads=p+q)."""

from __future__ import annotations

from fusewright.graph.walk import attribute, input_at, scalar, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, optional, var
from fusewright.normalize.rule import Edit, Rule


def _merge(match: Match, edit: Edit) -> str | None:
    pad, conv = match.named["pad"], match.named["conv"]
    if attribute(pad, "mode", edit.opset) != "constant":
        return "a Pad that is not constant"
    fill = input_at(pad, 2)
    if fill is not None and scalar(fill) != 0:
        return "a Pad with another value than 0"
    if attribute(conv, "auto_pad", edit.opset) not in ("NOTSET", "VALID"):
        return f"auto_pad {conv.attrs['auto_pad']}"
    amounts = [int(p) for p in values(match.tensors["pads"]).reshape(-1)]
    rank = match.tensors["w"].values.ndim
    if input_at(pad, 3) is not None or len(amounts) != 2 * rank:
        return "a Pad of selected axes"
    begin, end = amounts[:rank], amounts[rank:]
    if any(begin[:2]) or any(end[:2]) or min(amounts) < 0:
        return "a Pad of batch or channels, or one that crops"
    own = attribute(conv, "pads", edit.opset) or [0] * 2 * (rank - 2)
    conv.attrs["pads"] = [a + b for a, b in zip(own, begin[2:] + end[2:], strict=True)]
    conv.attrs.pop("auto_pad", None)
    conv.inputs[0] = match.tensors["x"]
    edit.replace(match, [conv])
    return None


_PAD = op("Pad", var("x"), const("pads"), optional(const()), optional(const("axes")), name="pad")

RULES = (
    # Keras and MobileNet ports pad explicitly in front of strided convolutions.
    Rule(
        "PadIntoConv",
        "Conv(Pad(x, p), pads=q) → Conv(x, pads=p+q)",
        op("Conv", _PAD, const("w"), optional(const("b")), name="conv"),
        _merge,
    ),
)
