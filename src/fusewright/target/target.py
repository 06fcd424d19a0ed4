"""A target: an engine, perhaps on a GPU, and what the table says of the two together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewright.errors import UsageError
from fusewright.target.formats import FORMATS, HALF_SCALES_OPSET
from fusewright.target.precision import FP32, INT8, Precision
from fusewright.target.table import (
    ATTENTION,
    CONVOLUTION,
    ENGINES,
    GPUS,
    NEWEST,
    SUPPORT,
    WITHOUT_CONVOLUTIONS,
    WITHOUT_PRODUCTS,
    AttentionLimits,
    ConvLimits,
    Engine,
)

_ENGINES = {row.name: row for row in ENGINES}
_ALIASES = {"tensorrt": NEWEST, "tensorrt-rtx": "rtx", "tensorrt-8": "tensorrt-8.6"}
_SMS = {(row.engine, row.what): row.sms for row in SUPPORT}


@dataclass(frozen=True)
class Target:
    """What is built for.

    Attributes:
        engine: its row in the table.
        sm: compute capability; None leaves the GPU open: then what any GPU has is there.
        gpu: the GPU's name, where it was given by name.
        title: as reasons write the engine; empty is the title of its row.
        attention: what is fused, by format.
        convolution: what is run, by format.
    """

    engine: Engine
    sm: int | None = None
    gpu: str = ""
    title: str = ""
    attention: Mapping[str, AttentionLimits] = field(default_factory=lambda: ATTENTION)
    convolution: Mapping[str, ConvLimits] = field(default_factory=lambda: CONVOLUTION)

    def __str__(self) -> str:
        """As reasons cite it: `TensorRT 10 on SM 75`."""
        return self.label if self.sm is None else f"{self.label} on SM {self.sm}"

    @property
    def label(self) -> str:
        """The engine as reasons write it: `TensorRT 10`."""
        return self.title or self.engine.title

    @property
    def name(self) -> str:
        """As it is parsed: `tensorrt-10:t4`."""
        where = self.gpu or (f"sm{self.sm}" if self.sm is not None else "")
        return f"{self.engine.name}:{where}" if where else self.engine.name

    @property
    def default_precision(self) -> Precision:
        """INT8 with an FP16 rest; the rest is FP32 where FP16 is a flag of the builder."""
        text = "int8" if self.engine.opsets[1] < HALF_SCALES_OPSET else "int8+fp16"
        return Precision.parse(text)

    def sms(self, what: str) -> tuple[int, ...]:
        """Compute capabilities on which the engine has a format or type."""
        return _SMS.get((self.engine.name, what), ())

    def has(self, what: str) -> bool:
        """Whether a format or type is there; FP32 always is."""
        sms = self.sms(what)
        return what == FP32 or (bool(sms) if self.sm is None else self.sm in sms)

    def convolves(self, what: str) -> bool:
        """Whether convolutions run in a format that is there; for an open GPU, on any."""
        missing = {(row.engine, row.what): row.sms for row in WITHOUT_CONVOLUTIONS}
        return self.sm is None or self.sm not in missing.get((self.engine.name, what), ())

    def multiplies(self, what: str) -> bool:
        """Whether Linears run in a format that is there; for an open GPU, on any."""
        missing = {(row.engine, row.what): row.sms for row in WITHOUT_PRODUCTS}
        there = set(self.sms(what)) if self.sm is None else {self.sm}
        return not there <= set(missing.get((self.engine.name, what), ()))

    def lacks(self, what: str) -> str | None:
        """Why a format or type is not there, and what is; None where it is."""
        if self.has(what):
            return None
        there = [row.what for row in SUPPORT if row.engine == self.engine.name]
        shown = ", ".join(_title(known) for known in there if self.has(known))
        sms = self.sms(what)
        where = f" (it begins with SM {min(sms)})" if sms else ""
        return f"{self} has no {_title(what)}{where}; it has {shown}, FP32"

    def refusal(self, precision: Precision) -> str | None:
        """Why a file of this precision cannot run here; None where it can."""
        for what in (precision.quantized, precision.rest):
            reason = self.lacks(what) if what is not None else None
            if reason is not None:
                return reason
        newest = self.engine.opsets[1]
        if precision.quantized and precision.rest != FP32 and newest < HALF_SCALES_OPSET:
            return (
                f"{self} reads ONNX up to opset {newest}, and Q/DQ in {_title(precision.rest)}"
                f" needs {HALF_SCALES_OPSET}: take {precision.quantized}, and allow"
                f" {_title(precision.rest)} when building"
            )
        return None

    def needs(self, what: str) -> str | None:
        """Which GPUs a format asks for, where the target leaves the GPU open."""
        missing = set(self.sms(INT8)) - set(self.sms(what))
        if self.sm is not None or not missing or not self.sms(what):
            return None
        names = [gpu for gpu, sm in GPUS.items() if sm == min(self.sms(what))]
        return f"{_title(what)} needs SM {min(self.sms(what))} or newer ({', '.join(names)}, …)"


def find_target(text: str) -> Target:
    """Reads `tensorrt-10:l4`, `rtx:sm120`, an engine alone (`tensorrt-8.6`) or a GPU (`rtx4090`).

    A GPU alone is the newest TensorRT on it, an engine alone leaves the GPU open.

    Raises:
        UsageError: there is no such engine or GPU, or not the two together; it lists what there is.
    """
    first, colon, second = text.strip().lower().partition(":")
    if not colon and (first in GPUS or _SM.fullmatch(first)):
        first, second = "tensorrt", first
    engine = _ENGINES.get(_ALIASES.get(first, first))
    known = second in GPUS or _SM.fullmatch(second) is not None
    if engine is None or (colon and not known):
        raise UsageError(
            f"no target '{text}': take ENGINE, GPU or ENGINE:GPU of engines"
            f" tensorrt, {', '.join(_ENGINES)} and GPUs {', '.join(GPUS)}, or smNN"
        )
    title = "TensorRT" if first == "tensorrt" else ""
    if not second:
        return Target(engine, title=title)
    sm = GPUS.get(second) or int(second[2:])
    sms = _SMS[engine.name, INT8]
    if sm not in sms:
        raise UsageError(
            f"target '{text}': {title or engine.title} does not run on SM {sm}; it runs on"
            f" {', '.join(map(str, sms))}"
        )
    return Target(engine, sm, second if second in GPUS else "", title)


_SM = re.compile(r"sm\d{2,3}")


def _title(what: str) -> str:
    return FORMATS[what].title if what in FORMATS else what.upper()


TENSORRT = find_target("tensorrt")
"""The newest TensorRT on whatever GPU."""
