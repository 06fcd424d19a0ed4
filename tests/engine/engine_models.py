"""Tiny Q/DQ models, written by hand, that show one thing each in an engine plan."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 19
CONV = "ConvAct_0"


class Writer:
    """Collects the nodes and initializers of one small graph; every method returns a tensor name.

    Convs write 32 channels; input `x` is [batch, 16, 16, 16].
    """

    def __init__(self, collapsed: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [
            numpy_helper.from_array(np.float32(0.1), "scale"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ]
        self._collapsed = collapsed
        self._random = np.random.default_rng(0)

    def op(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        output = f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def qdq(self, tensor: str, name: str) -> str:
        quantized = self.op("QuantizeLinear", [tensor, "scale", "zero"], f"{name}_q")
        return self.op("DequantizeLinear", [quantized, "scale", "zero"], f"{name}_dq")

    def weight(self, name: str, *shape: int) -> str:
        array = self._random.normal(size=shape).astype(np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv_relu(self, tensor: str, name: str, quantized: bool = True, channels: int = 16) -> str:
        """Conv 3x3 and Relu, as two nodes or as one call named `name`."""
        weight = self.weight(f"{name}_w", 32, channels, 3, 3)
        if quantized:
            weight = self.qdq(weight, weight)
        inputs = [tensor, weight, self.weight(f"{name}_b", 32)]
        if self._collapsed:
            return self.op(CONV, inputs, name, domain="fusewright")
        conv = self.op("Conv", inputs, f"{name}/conv", pads=[1, 1, 1, 1])
        return self.op("Relu", [conv], f"{name}/relu")

    def model(self, output: str, shape: list[int | str] | None = None) -> onnx.ModelProto:
        batch, *rest = shape or [1, 16, 16, 16]
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *rest])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        functions = []
        if self._collapsed:
            opsets.append(helper.make_opsetid("fusewright", 1))
            functions.append(_conv_function())
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)
        onnx.checker.check_model(model)
        return model


def parallel_convs(collapsed: bool) -> onnx.ModelProto:
    """Two quantized ConvAct side by side, `left` and `right`, flat or as calls.

    Their quantized outputs are concatenated and feed a third, `after`: the builder runs the
    two on two streams.
    """
    writer = Writer(collapsed)
    tensor = writer.qdq("x", "x")
    sides = [
        writer.qdq(writer.conv_relu(tensor, name), f"{name}_out") for name in ("left", "right")
    ]
    both = writer.op("Concat", sides, "concat", axis=1)
    return writer.model(writer.conv_relu(both, "after", channels=64))


def one_conv(
    quantized: bool = True, shape: list[int | str] | None = None, op: str = "Relu"
) -> onnx.ModelProto:
    """`x` → [Q/DQ] → Conv → Relu → `op`."""
    writer = Writer()
    tensor = writer.qdq("x", "x") if quantized else "x"
    last = writer.op(op, [writer.conv_relu(tensor, "only", quantized)], "last")
    return writer.model(last, shape)


def weight_only() -> onnx.ModelProto:
    """A conv whose weight has Q/DQ and whose input has none: it cannot run in Int8."""
    writer = Writer()
    return writer.model(writer.conv_relu("x", "only", quantized=True))


def matrix_vector() -> onnx.ModelProto:
    """A float classifier at batch 1: [1, 1, 1, 8] times [8, 10]."""
    writer = Writer()
    product = writer.op("MatMul", ["x", writer.weight("w", 8, 10)], "classifier")
    return writer.model(product, [1, 1, 1, 8])


def _conv_function() -> onnx.FunctionProto:
    body = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function("fusewright", CONV, ["x", "w", "b"], ["y"], body, opsets)
