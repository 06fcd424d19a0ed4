"""Precisions as users write them: `<quantized>+<rest>`, such as `int8+fp16`."""

from __future__ import annotations

from dataclasses import dataclass

from fusewright.errors import UsageError

INT8, FP8, INT4, NVFP4, MXFP8 = "int8", "fp8", "int4", "nvfp4", "mxfp8"
QUANTIZED = (INT8, FP8, INT4, NVFP4, MXFP8)
"""Formats that groups are quantized to."""

FP32, FP16, BF16 = "fp32", "fp16", "bf16"
RESTS = (FP32, FP16, BF16)
"""Types of everything that is not quantized."""


@dataclass(frozen=True)
class Precision:
    """What a model is made of.

    Attributes:
        quantized: the format of quantized groups, one of `QUANTIZED`; None quantizes nothing.
        rest: the type of all other float tensors, one of `RESTS`.
    """

    quantized: str | None
    rest: str = FP32

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Reads `int8+fp16`, `fp8` (with an FP32 rest) or `fp16` (no Q/DQ), in any case.

        Raises:
            UsageError: it is none of them; the message lists all there are.
        """
        known = {form.text: form for form in _FORMS}
        known |= {f"{name}+{FP32}": cls(name, FP32) for name in QUANTIZED}
        form = known.get(text.strip().lower())
        if form is None:
            raise UsageError(f"precision '{text}' is not one of {', '.join(PRECISIONS)}")
        return form

    @property
    def text(self) -> str:
        """As it is parsed: `int8+fp16`; an FP32 rest goes without saying."""
        if self.quantized is None:
            return self.rest
        return self.quantized if self.rest == FP32 else f"{self.quantized}+{self.rest}"


_FORMS = (
    *(Precision(name, rest) for name in QUANTIZED for rest in (FP16, BF16, FP32)),
    *(Precision(None, rest) for rest in (FP16, BF16, FP32)),
)
PRECISIONS = tuple(form.text for form in _FORMS)
"""Every precision there is, in its text form."""
