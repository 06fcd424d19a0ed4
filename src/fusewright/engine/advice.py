"""What can keep an engine from the plan that was hoped for, and what mends it: one table.

Rows that cite no document and no public issue were seen in plans of TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What is known of one cause.

    Attributes:
        title: in a few words; findings of one cause are listed under it.
        broke: why the kernel is there.
        mend: what would take it away.
        inherent: nothing in the file would; it is listed, and no fault.
    """

    title: str
    broke: str
    mend: str
    inherent: bool = False


ADVICE = {
    # A Q/DQ that is a kernel of its own.
    "quantizes-input": Advice(
        "the model's input is quantized",
        "the input arrives in float, and the first layer reads it quantized",
        "one pass over the input; a caller that has INT8 data can feed it",
        inherent=True,
    ),
    "dequantizes-output": Advice(
        "the model's output is dequantized",
        "the output is declared float and is written quantized",
        "take the pair at the output away (--exclude its group)",
    ),
    "does-not-commute": Advice(
        "a pair behind an op that cannot take it in",
        "average pooling, Resize and the like compute in float and are requantized after; a Q/DQ"
        " cannot be moved through them",
        "quantizing in front of the op does not help; leave its consumers in float if they are"
        " small (--exclude), or pool with a conv (--pool-head)",
    ),
    "concat-scales": Advice(
        "inputs of a Concat are requantized",
        "the inputs of a Concat have different scales, so each is rescaled into the common one",
        "give all inputs of the Concat one scale; fusewright optimize does",
    ),
    "shared-in-float": Advice(
        "a tensor is needed quantized and in float",
        "the tensor is also read in float, so the kernel that writes it cannot write it quantized"
        " alone",
        "quantize its other readers too (the skip input of a residual Add, say), or none",
    ),
    "float-reader": Advice(
        "a quantized tensor is turned back to float",
        "its reader runs in float",
        "quantize the reader on all sides, or take the pair away (--exclude its group)",
    ),
    "weight-dequantized": Advice(
        "a weight is dequantized by a kernel of its own",
        "the weight is quantized and what it meets is not, so it is expanded at run time",
        "quantize the layer's input too, or leave the weight in float",
    ),
    "block-scales": Advice(
        "scales of blocks are found at run time",
        "NVFP4 and MXFP8 scale each block by what is in it: a kernel quantizes, and for NVFP4 one"
        " brings the scales to where the GEMM reads them",
        "nothing in the file; FP8 has stored scales, and its pairs fuse",
        inherent=True,
    ),
    "alone": Advice(
        "a pair that did not fuse",
        "the op in front of it and the builder's fusion did not take it in",
        "try the pair elsewhere (--search plan), or leave its group in float (--exclude)",
    ),
    # Conv, GEMM or attention that missed its precision.
    "weight-only": Advice(
        "a quantized weight and a float activation",
        "the weight has Q/DQ and the activation has none, so the kernel computes in float",
        "quantize the layer's input too (--include its group)",
    ),
    "grouped-conv": Advice(
        "a grouped conv that cannot be quantized",
        "quantized grouped convolutions need channels per group, in and out, in multiples of 4"
        " (TensorRT's support matrix; FP8 has none at all, NVIDIA/TensorRT issue 4524)",
        "leave it in float, weights included: fusewright optimize does",
    ),
    "generated": Advice(
        "a product inside a pointwise kernel",
        "at batch 1 a matrix-vector product, or a conv on a 1x1 map, is computed by a generated"
        " kernel, not by a GEMM",
        "nothing where batch 1 is meant; else build for the batch that will run",
        inherent=True,
    ),
    "dequantized-before": Advice(
        "quantized in the file, float in the engine",
        "an op between the pair and this layer does not commute with Q/DQ: the layer reads float",
        "put the pair directly in front of the layer",
    ),
    "missed": Advice(
        "quantized in the file, float in the engine",
        "the builder found no quantized kernel for this shape, or chose not to take it",
        "see the row of the target's table (fusewright optimize --target); leave it in float",
    ),
    "attention-float": Advice(
        "attention is not fused: it is FP32",
        "fused attention exists in FP16, BF16, INT8 and FP8, not in FP32",
        "optimize with --precision int8+fp16 or fp16",
    ),
    "attention-head-size": Advice(
        "attention is not fused: head size",
        "fused attention takes FP16 heads of 16 to 256 in steps of 8, and INT8 heads of 16, 32 or"
        " 64 only",
        "FP8 (--precision fp8+fp16) or float attention takes other sizes; pad the heads with zeros",
    ),
    "attention-sequence": Advice(
        "attention is not fused: sequence too long for INT8",
        "INT8 attention is fused up to 512 tokens",
        "keep this attention in float, or use FP8, which has no such limit",
    ),
    "attention-softmax": Advice(
        "attention is not fused: Softmax has no pair",
        "quantized attention needs Q/DQ behind Softmax (INT8: scale 1/127, FP8: 1/448)",
        "fusewright optimize adds it; or leave the attention's inputs in float",
    ),
    "attention-output": Advice(
        "attention is not fused: its output has no pair",
        "INT8 attention needs a QuantizeLinear behind its second product",
        "quantize the projection that reads it, or leave the attention in float",
    ),
    "attention-scale": Advice(
        "attention is not fused: an op between pair and product",
        "DequantizeLinear must feed the MatMul directly; here a scale or a cast stands between",
        "put the scale in front of the pair, or into the projection's weights: fusewright optimize"
        " does",
    ),
    "attention-mixed": Advice(
        "attention is not fused: quantized in part",
        "of q, k, Softmax and v some are quantized and some are not",
        "quantize all four, or none",
    ),
    "attention-mask": Advice(
        "attention is not fused: what stands between its products",
        "only a scale, and added biases and masks, may stand between the first product and Softmax",
        "add the mask once, in float, without a pair on it",
    ),
    "attention-unknown": Advice(
        "attention is not fused",
        "nothing that is known to prevent it was found",
        "compare with TensorRT's list of fused attention; report it with the model",
    ),
    # Data that is only moved.
    "type-change": Advice(
        "a kernel only changes the data type",
        "two neighbours read and write different types",
        "give both one precision, or quantize at this point in the file",
    ),
    "layout-change": Advice(
        "a kernel only changes the layout",
        "two neighbours want the elements in different order",
        "nothing, where one of them is a convolution with few channels; else compare the plan with"
        " one neighbour in float",
    ),
    "layout-at-border": Advice(
        "the layout changes at the model's border",
        "the input or output is declared row by row, and its layer wants channels last",
        "declare the engine's input and output formats (trtexec --inputIOFormats)",
        inherent=True,
    ),
    "moved-by-node": Advice(
        "a Transpose, Slice, Concat … became a kernel",
        "the model moves data, and no neighbour took it in",
        "move it to where a neighbour can, or export the model without it",
    ),
    # One layer in two kernels.
    "norm-before-quantized-conv": Advice(
        "a LayerNorm in two kernels, in front of a quantized conv",
        "the quantized conv reads its input channels first and the LayerNorm works channels last:"
        " one kernel writes float statistics, a second one the result in the other order",
        # convnext_tiny, the three downsampling convs: 125 kernels, 100.3 MB become 119 and 95.0.
        "leave that conv in float (--exclude its group), which reads channels last as it is; or"
        " --search plan",
    ),
    "norm-moved": Advice(
        "a LayerNorm in two kernels",
        "its result is moved or reduced before it is used (channels first, a window partition, a"
        " mean): one kernel writes float statistics, a second one the result",
        "nothing in the file; it is so in FP16 too",
        inherent=True,
    ),
    "split-epilogue": Advice(
        "a quantized conv or GEMM writes float and a second kernel requantizes",
        "TensorRT-RTX plans it so ahead of time; full TensorRT requantizes in the conv itself",
        "nothing in the file",
        inherent=True,
    ),
}
"""Cause of a finding → what broke and what would mend it."""
