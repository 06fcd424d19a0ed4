"""Names of the number formats that a builder is asked for."""

from __future__ import annotations

INT8, FP16, BF16, FP8, INT4, FP4 = "int8", "fp16", "bf16", "fp8", "int4", "fp4"
