"""Fusewright: ONNX in, fused and quantized ONNX and TensorRT engine out, with proof."""

__version__ = "0.1.0"
