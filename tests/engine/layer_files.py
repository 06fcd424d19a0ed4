"""Layer files in the forms of trtexec 8.4, 8.6, 10 and 11.

Written by hand after public files: the examples of github.com/NVIDIA/TensorRT under
tools/experimental/trt-engine-explorer (8.4), issue 4020 (8.6), issue 4397 (10), and the migration
guide of IEngineInspector to 11.x. One network: a Conv with a residual, quantized, on 32 channels.
"""

from __future__ import annotations

from typing import Any

_WIDE = "Thirty-two wide channel vectorized row major Int8 format"


def _tensor_8(name: str, form: str, *shape: int) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": list(shape), "Format/Datatype": form}


def _tensor_10(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"Name": name, "Dimensions": list(shape), "Format/Datatype": dtype}


def _tensor_11(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    form = "Row major linear format"
    return {"Name": name, "Dimensions": list(shape), "Datatype": dtype, "Format": form}


IMAGE, MAP = (1, 3, 8, 8), (1, 32, 8, 8)

VERSION_8_4: dict[str, Any] = {
    "Layers": [
        {
            "Name": "QuantizeLinear_2",
            "LayerType": "Reformat",
            "Inputs": [_tensor_8("input.1", "Row major linear FP32", *IMAGE)],
            "Outputs": [_tensor_8("q", "Row major Int8 format", *IMAGE)],
            "ParameterType": "Reformat",
            "Origin": "QDQ",
            "TacticValue": "0x00000000000003ea",
        },
        {
            "Name": "conv1.weight + QuantizeLinear_7 + Conv_9 + Add_12 + Relu_13",
            "LayerType": "CaskConvolution",
            "Inputs": [_tensor_8("q", "Row major Int8 format", *IMAGE)],
            "Outputs": [_tensor_8("y", _WIDE, *MAP)],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 864},
            "Bias": {"Type": "Float", "Count": 32},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        },
        {
            "Name": "PWN(PWN(Sigmoid_14), Mul_15)",
            "LayerType": "PointWiseV2",
            "Inputs": [_tensor_8("y", _WIDE, *MAP)],
            "Outputs": [_tensor_8("z", "Channel major FP16 format where channel % 8 == 0", *MAP)],
        },
    ],
    "Bindings": ["input.1", "z"],
}

VERSION_8_6: dict[str, Any] = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
            "LayerType": "Reformat",
            "Inputs": [_tensor_8("data", "Row major linear FP32", *IMAGE)],
            "Outputs": [_tensor_8("Reformatted", "Row major linear FP16 format", *IMAGE)],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
            "StreamId": 0,
            "Metadata": "",
        },
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvActPool",
            "Inputs": [_tensor_8("Reformatted", "Row major linear FP16 format", *IMAGE)],
            "Outputs": [_tensor_8("y", "Row major linear FP16 format", *MAP)],
            "ConvWeights": {"Type": "Half", "Count": 864},
            "StreamId": 0,
            "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu1]",
        },
        {"Name": "c", "LayerType": "Constant", "Inputs": [], "Outputs": [], "Metadata": ""},
    ],
    "Bindings": ["data", "y"],
}

VERSION_10: dict[str, Any] = {
    "Layers": [
        {
            "Name": "__myl_MulMinMaxRounCast_myl0_0",
            "LayerType": "kgen",
            "Inputs": [_tensor_10("x", "Half", *MAP)],
            "Outputs": [_tensor_10("xq", "Int8", *MAP)],
            "TacticName": "__myl_MulMinMaxRounCast_0xf2",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: x_q]",
        },
        {"Name": "sync", "LayerType": "signal", "Inputs": [], "Outputs": [], "Metadata": ""},
        {
            "Name": "__myl_FcCastAddErf_myl0_1",
            "LayerType": "fusion",
            "Inputs": [_tensor_10("xq", "Int8", *MAP)],
            "Outputs": [_tensor_10("y", "Half", *MAP)],
            "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: LinearAct.MatMul_0 | /mlp/MatMul (LinearAct)]"
            "\u001f[ONNX Layer: x_dq]",
        },
        {
            "Name": "_gemm_mha_v2_myl0_2",
            "LayerType": "kgen",
            "Inputs": [_tensor_10(n, "Int8", 2, 49, 32) for n in "qkv"],
            "Outputs": [_tensor_10("o", "Int8", 2, 49, 32)],
            "StreamId": 0,
            "Metadata": "[ONNX Layer: MatMul_0 | /attn/Softmax (ScaledDotProductAttention_2)]",
        },
    ],
    "Bindings": ["x", "o"],
}

VERSION_11: dict[str, Any] = {
    "Layers": [
        {
            "Name": "conv1",
            "LayerType": "correlation",
            "Inputs": [_tensor_11("x", "FP8", *MAP)],
            "Constants": [_tensor_11("w", "FP8", 32, 32, 3, 3)],
            "Outputs": [_tensor_11("y", "BFloat16", *MAP)],
            "Metadata": "[ONNX Layer: Conv_0 | /conv1/Conv (ConvBN_2)]",
        }
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "FP8", "Dimensions": list(MAP)}],
}

PROFILE: list[dict[str, Any]] = [
    {"count": 11},
    {
        "name": "QuantizeLinear_2",
        "timeMs": 1.1,
        "averageMs": 0.1,
        "medianMs": 0.09,
        "percentage": 20.0,
    },
    {
        "name": "conv1.weight + QuantizeLinear_7 + Conv_9 + Add_12 + Relu_13",
        "timeMs": 4.4,
        "averageMs": 0.4,
        "medianMs": 0.4,
        "percentage": 80.0,
    },
]
