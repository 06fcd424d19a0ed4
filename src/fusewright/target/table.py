"""The table: which engine reads what, which GPU has what, and what bounds each format.

Every row names its source. [L] is a plan of TensorRT-RTX 1.7.1 built on a CPU and read back; the
others are NVIDIA's documents, release notes and change logs.
"""

from __future__ import annotations

from dataclasses import dataclass

_DOCS = "docs.nvidia.com/deeplearning"
_MATRIX_8 = f"{_DOCS}/tensorrt/archives/tensorrt-861/support-matrix"
_MATRIX_10 = f"{_DOCS}/tensorrt/latest/getting-started/support-matrix-10/10.14.1.html"
_MATRIX_11 = f"{_DOCS}/tensorrt/11.4.1/getting-started/support-matrix.html"
_MATRIX_RTX = f"{_DOCS}/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html"
_PARSER = "github.com/onnx/onnx-tensorrt docs/Changelog.md"
_ATTENTION = f"{_DOCS}/tensorrt/latest/inference-library/transformers-fused-attention.html"
_LIMITATIONS = "TensorRT release notes, limitations; github.com/NVIDIA/TensorRT/issues/4524"


@dataclass(frozen=True)
class Engine:
    """One line of TensorRT releases.

    Attributes:
        name: as users write it.
        title: as reasons write it.
        opsets: oldest and newest ONNX opset that its parser reads.
        local_functions: whether its parser reads model-local functions.
        typing: `flags` (precisions are allowed at build time), `strong` (what the ONNX says is
            what runs), or `either`.
        source: of the row.
    """

    name: str
    title: str
    opsets: tuple[int, int]
    local_functions: bool
    typing: str
    source: str


ENGINES = (
    # Local functions came with 9.0; 8.6 stops at opset 17.
    Engine("tensorrt-8.6", "TensorRT 8.6", (9, 17), False, "flags", f"{_PARSER}; operators.md 8.6"),
    Engine("tensorrt-10", "TensorRT 10", (9, 24), True, "either", f"{_PARSER}; operators.md 10.15"),
    Engine("tensorrt-11", "TensorRT 11", (9, 25), True, "strong", "onnx-opset-guide of 11.x"),
    Engine("rtx", "TensorRT-RTX", (9, 25), True, "strong", f"{_MATRIX_RTX}; [L]"),
)
NEWEST = "tensorrt-11"


@dataclass(frozen=True)
class Support:
    """A format that an engine has, and where.

    Attributes:
        what: `int8`, `fp8`, `int4`, `fp16`, `bf16`, `nvfp4` or `mxfp8`.
        engine: name of the engine's row.
        sms: compute capabilities that have it.
        source: of the row.
    """

    what: str
    engine: str
    sms: tuple[int, ...]
    source: str


_SMS_8 = (70, 72, 75, 80, 86, 87, 89, 90)
# Volta in 10.0 to 10.4 only; Blackwell since 10.8.
_SMS_10 = (70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# Orin and Thor since 11.4.1.
_SMS_11 = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
_SMS_RTX = (75, 80, 86, 89, 120, 121)


def _since(sm: int, sms: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(known for known in sms if known >= sm)


SUPPORT = (
    Support("fp16", "tensorrt-8.6", _SMS_8, _MATRIX_8),
    Support("int8", "tensorrt-8.6", _SMS_8, _MATRIX_8),
    Support("fp16", "tensorrt-10", _SMS_10, _MATRIX_10),
    Support("bf16", "tensorrt-10", _since(80, _SMS_10), f"{_MATRIX_10}; {_PARSER} 9.0"),
    Support("int8", "tensorrt-10", _SMS_10, _MATRIX_10),
    Support("fp8", "tensorrt-10", _since(89, _SMS_10), f"{_MATRIX_10}; {_PARSER} 9.0"),
    Support("int4", "tensorrt-10", _since(80, _SMS_10), f"{_PARSER} 10.0; ModelOpt's matrix"),
    Support("nvfp4", "tensorrt-10", _since(100, _SMS_10), "release notes of 10.8"),
    Support("mxfp8", "tensorrt-10", _since(100, _SMS_10), f"{_PARSER} 10.12"),
    Support("fp16", "tensorrt-11", _SMS_11, _MATRIX_11),
    Support("bf16", "tensorrt-11", _since(80, _SMS_11), _MATRIX_11),
    Support("int8", "tensorrt-11", _SMS_11, _MATRIX_11),
    Support("fp8", "tensorrt-11", _since(89, _SMS_11), _MATRIX_11),
    Support("int4", "tensorrt-11", _since(80, _SMS_11), _MATRIX_11),
    Support("nvfp4", "tensorrt-11", _since(100, _SMS_11), _MATRIX_11),
    Support("mxfp8", "tensorrt-11", _since(100, _SMS_11), _MATRIX_11),
    Support("fp16", "rtx", _SMS_RTX, _MATRIX_RTX),
    Support("bf16", "rtx", _since(80, _SMS_RTX), _MATRIX_RTX),
    # The matrix lists INT8 for weights alone; INT8 activations build all the same.
    Support("int8", "rtx", _SMS_RTX, "[L]"),
    Support("fp8", "rtx", _since(89, _SMS_RTX), _MATRIX_RTX),
    Support("int4", "rtx", _since(80, _SMS_RTX), _MATRIX_RTX),
    Support("nvfp4", "rtx", _since(100, _SMS_RTX), _MATRIX_RTX),
    Support("mxfp8", "rtx", _since(100, _SMS_RTX), _MATRIX_RTX),
)

# What an engine has for matrices alone: its convolutions run in half precision there.
WITHOUT_CONVOLUTIONS = (
    # resnet18 in INT8: 20 Half convolutions, and 65 kernels instead of 41.
    Support("int8", "rtx", (75,), "[L]"),
)

# What an engine parses, restores to half at run time, and multiplies in half.
WITHOUT_PRODUCTS = (
    # deit_tiny in MXFP8 for SM 120: 49 Half GEMMs, and 86 kernels that restore their operands.
    Support("mxfp8", "rtx", (120, 121), "[L]"),
)

# Operators that ONNX has in a half type, and TensorRT's parser or builder has not.
WITHOUT_HALF = {
    "fp16": frozenset({"MeanVarianceNormalization"}),
    "bf16": frozenset(
        {
            "ConvTranspose", "GRU", "HardSwish", "LpNormalization", "LpPool",
            "MeanVarianceNormalization", "Mish",
        }
    ),
}  # fmt: skip
"""Rest → operators; [L], each tried alone. The parser of the other engines is the same."""

GPUS = {
    "v100": 70,
    "xavier": 72,
    "t4": 75,
    "rtx2080ti": 75,
    "a100": 80,
    "a30": 80,
    "a2": 86,
    "a10": 86,
    "a40": 86,
    "a6000": 86,
    "rtx3090": 86,
    "orin": 87,
    "l4": 89,
    "l40": 89,
    "l40s": 89,
    "rtx4090": 89,
    "rtx6000ada": 89,
    "h100": 90,
    "h200": 90,
    "gh200": 90,
    "b200": 100,
    "gb200": 100,
    "b300": 103,
    # 101 in the CUDA 12 of DRIVE OS.
    "thor": 110,
    "rtx5090": 120,
    "rtxpro6000": 120,
    "gb10": 121,
}
"""Name → compute capability (developer.nvidia.com/cuda-gpus)."""


@dataclass(frozen=True)
class AttentionLimits:
    """What of attention an engine fuses in one format.

    Attributes:
        smallest: head size, in elements per head.
        largest: likewise.
        multiple: head sizes are multiples of it.
        sizes: the only head sizes there are; empty where the three above say it all.
        shortest: sequence, in tokens.
        sequence: longest sequence, in tokens; None is no limit.
        min_sm: oldest compute capability.
        output_pair: whether its output must be quantized too.
        rests: types of the tensors between its pairs that it is fused with.
        source: of the row.
    """

    smallest: int
    largest: int
    multiple: int
    sizes: tuple[int, ...]
    shortest: int
    sequence: int | None
    min_sm: int
    output_pair: bool
    rests: tuple[str, ...]
    source: str

    def takes(self, head_size: int) -> bool:
        """Whether attention of this head size is fused."""
        if self.sizes:
            return head_size in self.sizes
        return self.smallest <= head_size <= self.largest and head_size % self.multiple == 0

    @property
    def shown(self) -> str:
        """The head sizes in words."""
        if self.sizes:
            return f"of sizes {', '.join(map(str, self.sizes))} only"
        return f"of sizes {self.smallest} to {self.largest} in steps of {self.multiple}"


ATTENTION = {
    # With BF16 between the pairs swin_t keeps 5 of its 12 and a BERT none of its 4; with FP32 there
    # and BF16 around them all are fused, and no kernel more than with FP16 is left.
    "int8": AttentionLimits(
        16, 64, 16, (16, 32, 64), 1, 512, 75, True, ("fp16", "fp32"), f"{_ATTENTION}; [L]"
    ),
    # Sequences of 4 to 31 tokens become five kernels, whatever the head size; from 32 on it is one.
    "fp8": AttentionLimits(
        16, 256, 8, (), 32, None, 89, False, ("fp16", "bf16", "fp32"), f"{_ATTENTION}; [L]"
    ),
    "fp16": AttentionLimits(16, 256, 8, (), 1, None, 75, False, ("fp16",), f"{_ATTENTION}; [L]"),
}


@dataclass(frozen=True)
class ConvLimits:
    """What of convolution an engine runs in one format.

    Attributes:
        group_multiple: channels per group, in and out, of a grouped convolution are multiples of
            it; None: no grouped convolution at all.
        kernel: most elements of a kernel over space, such as 49 for 7x7; None is no limit.
        transposed: whether ConvTranspose runs in it.
        source: of the row.
    """

    group_multiple: int | None
    kernel: int | None
    transposed: bool
    source: str


CONVOLUTION = {
    "int8": ConvLimits(4, None, True, "TensorRT's support matrix for grouped convolutions"),
    "fp8": ConvLimits(None, 32, False, _LIMITATIONS),
}

SELDOM_PAYS_BELOW = 16
"""Channels of a convolution, and rows or columns of a Linear, below which a quantized kernel seldom
beats FP16 (exclusions of github.com/NVIDIA/Model-Optimizer): a hint, not a decision."""
