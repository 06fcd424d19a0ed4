"""What is asked for a graph: precision and options, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = (
    "int8", "int8", "int8+fp16", "int8+fp16", "int8+bf16", "fp8", "fp8+fp16", "int4", "int4+fp16",
    "nvfp4+fp16", "fp16", "bf16", "fp32",
)  # fmt: skip
METHODS = ("mse", "minmax", "percentile", "entropy")


@dataclass(frozen=True)
class Asked:
    """Settings of one run.

    Attributes:
        checks: which of the dear ones are made.
        apart: the model's weights lie in a file beside it.
    """

    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    apart: bool = False

    @property
    def quantized(self) -> str:
        """`int8` of `int8+fp16`; empty where nothing is."""
        first = self.precision.partition("+")[0]
        return "" if first in ("fp16", "bf16", "fp32") else first

    @property
    def rest(self) -> str:
        return self.precision.rpartition("+")[2] if not self.is_float_rest else "fp32"

    @property
    def is_lossy(self) -> bool:
        """Whether a poor result is what was asked for.

        Entropy cuts off much of few samples; one pair serves q, k and v of unlike ranges, and so
        does one step of their weights; the residual stream carries everything.
        """
        given = self.settings
        asked = given.get("method") == "entropy" or given.get("balance") is False
        asked |= "int8_residual" in given or "per_tensor_weights" in given
        return asked and self.quantized == "int8"

    @property
    def is_float_rest(self) -> bool:
        return not self.precision.endswith(("fp16", "bf16"))


def draw_asked(seed: int, precision: str | None = None) -> Asked:
    """Settings from one number."""
    draw = random.Random(seed * 7 + 3)
    chosen = draw.choice(PRECISIONS)
    asked = Asked(precision or chosen)
    settings: dict[str, Any] = {}

    def maybe(name: str, one_in: int, *options: Any) -> None:
        if draw.randrange(one_in) == 0:
            settings[name] = draw.choice(options)

    maybe("flat", 4, True)
    maybe("pool_head", 6, True)
    if asked.quantized == "int8":
        maybe("smooth", 4, 0.5, "off")
        maybe("int8_residual", 6, True)
        maybe("per_tensor_weights", 8, True)
        maybe("balance", 8, False)
    if asked.quantized in ("int8", "fp8"):
        maybe("method", 3, *METHODS)
        maybe("group_precision", 10, ("op:Conv=float",), ("op:MatMul=float",), ("op:Add=float",))
    if asked.quantized == "int4":
        maybe("int4_method", 2, "awq", "rtn")
        maybe("block_size", 2, 32, 64)
    if not asked.is_float_rest:
        maybe("io_types", 8, "half")
    checks = tuple(c for c in ("twice", "plan", "inspect", "strip") if draw.randrange(4) == 0)
    return Asked(asked.precision, settings, checks, draw.randrange(6) == 0)
