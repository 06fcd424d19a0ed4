"""What a kernel computes, and in which data type: convolution, GEMM, attention, or none of them."""

from __future__ import annotations

import re

from fusewright.engine.kernels import Kernel, TensorType

CONV, GEMM, ATTENTION = "conv", "gemm", "attention"

# A fused attention by name: TensorRT-RTX and 10.x print `_gemm_mha_v2_myl0_7`, others fMHA.
_FUSED_ATTENTION = re.compile(r"_gemm_mha|_mha_v\d|fmha", re.IGNORECASE)
# TensorRT-RTX: `correlation`, `deconv`; 8.6: CaskConvolution, CaskConvActPool, CaskGemmConvolution;
# conv first, for the last of these is a convolution (NVIDIA/TensorRT issues 3737, 4020).
_BY_TYPE = (
    (CONV, re.compile(r"correlation|conv", re.IGNORECASE)),
    (GEMM, re.compile(r"gemm|matmul|matrixmultiply|fullyconnected|^fc$", re.IGNORECASE)),
)
# TensorRT-RTX and 10.x: the name lists what was fused, `__myl_CorrSilu`, `__myl_FcAddDivErf`.
_FUSIONS = frozenset({"runtime_fusion", "fusion"})


def operation_of(kernel: Kernel) -> str | None:
    """`conv`, `gemm` or `attention`; None for everything else."""
    if _FUSED_ATTENTION.search(kernel.name) or _FUSED_ATTENTION.search(kernel.tactic):
        return ATTENTION
    if kernel.type in _FUSIONS:
        if "Corr" in kernel.name:
            return CONV
        return GEMM if "Fc" in kernel.name or "gemm" in kernel.tactic else None
    return next((name for name, pattern in _BY_TYPE if pattern.search(kernel.type)), None)


def operand_dtype(kernel: Kernel, operation: str) -> str:
    """Data type of the activation and of the weight (or second activation) together.

    `Float*Int8` where they differ, `?` where the plan does not say.
    """
    operands = kernel.inputs[:1] + _second_operand(kernel, operation)
    return "*".join(dict.fromkeys(t.dtype for t in operands)) or "?"


def _second_operand(kernel: Kernel, operation: str) -> tuple[TensorType, ...]:
    if operation == ATTENTION:
        return kernel.inputs[1:2]  # k; a mask or position bias is a constant, and stays float
    # A weight that is dequantized by a kernel of its own arrives as the second input, and then
    # the largest constant is the bias, [1, C, 1, 1] or [1, N]. A fused skip is also an input.
    constants = [t for t in kernel.constants if len(t.shape) > 1]
    largest = max(constants, key=lambda t: t.elements or 0, default=None)
    if largest is not None and not (len(kernel.inputs) > 1 and _is_bias(largest)):
        return (largest,)
    return kernel.inputs[1:2]


def _is_bias(tensor: TensorType) -> bool:
    return tensor.shape[0] == 1 and all(dim == 1 for dim in tensor.shape[2:])
