"""Small files whose plan has one thing wrong each, as users write them by mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 19


class Graph:
    """A graph written node by node; every method returns the name of the tensor it made."""

    def __init__(self, float_type: type = np.float32) -> None:
        self.float_type = float_type
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._random = np.random.default_rng(0)
        self._count = 0

    def input(self, name: str, *shape: int) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.float_type))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        name = f"{op.lower()}_{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_y"], name, **attributes))
        return f"{name}_y"

    def store(self, array: np.ndarray) -> str:
        self._count += 1
        name = f"c_{self._count}"
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, quantized: bool = False) -> str:
        value = self._random.normal(size=shape).astype(self.float_type)
        return self.pair(self.store(value)) if quantized else self.store(value)

    def pair(self, tensor: str, scale: float = 0.1) -> str:
        """Q/DQ."""
        ends = [self.store(np.asarray(scale, self.float_type)), self.store(np.int8(0))]
        quantized = self.op("QuantizeLinear", tensor, *ends)
        return self.op("DequantizeLinear", quantized, *ends)

    def conv(self, x: str, channels: int, quantized: bool = True, **attributes: object) -> str:
        into = channels // int(attributes.get("group", 1))  # type: ignore[call-overload]
        weight = self.weight(channels, into, 3, 3, quantized=quantized)
        return self.op("Conv", x, weight, pads=[1, 1, 1, 1], **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        declared = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "wrong", self.inputs, declared, self.stored)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


@dataclass(frozen=True)
class Attention:
    """One attention, with what is done to it; all pairs in INT8 where nothing is said."""

    size: int = 32
    tokens: int = 64
    heads: int = 2
    quantized: bool = True
    softmax_pair: bool = True
    output_pair: bool = True
    value_pair: bool = True
    scaled_behind_pair: bool = False
    between: str = ""
    half: bool = False


def attention(case: Attention) -> onnx.ModelProto:
    """q, k and v are inputs; a Linear reads the result."""
    g = Graph(np.float16 if case.half else np.float32)
    shape = (1, case.heads, case.tokens, case.size)
    q, k, v = (g.input(name, *shape) for name in "qkv")
    # Something in front, so that the pairs are not the input's.
    q, k, v = (g.op("Add", t, g.weight(case.size)) for t in (q, k, v))
    paired = g.pair if case.quantized else (lambda tensor: tensor)
    q, k = paired(q), paired(k)
    v = paired(v) if case.value_pair else v
    if case.scaled_behind_pair:
        q = g.op("Mul", q, g.store(np.asarray(case.size**-0.5, g.float_type)))
    y = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if case.between:
        y = g.op(case.between, y)
    y = g.op("Softmax", y, axis=-1)
    if case.quantized and case.softmax_pair:
        y = g.pair(y, 1 / 127)
    y = g.op("MatMul", y, v)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    width = case.heads * case.size
    y = g.op("Reshape", y, g.store(np.array([case.tokens, width])))
    y = g.pair(y) if case.quantized and case.output_pair else y
    return g.model(g.op("MatMul", y, g.weight(width, width, quantized=case.quantized)))


def _net(write: Callable[[Graph, str], str], *shape: int) -> onnx.ModelProto:
    g = Graph()
    return g.model(write(g, g.input("x", *(shape or (1, 16, 16, 16)))))


def _resize(g: Graph, x: str) -> str:
    y = g.op("Relu", g.conv(g.pair(x), 16))
    scales = g.store(np.array([1, 1, 2, 2], np.float32))
    y = g.op("Resize", y, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    return g.conv(g.pair(y), 16)


def _average(g: Graph, x: str) -> str:
    y = g.op("Relu", g.conv(g.pair(x), 16))
    y = g.op("GlobalAveragePool", y)
    return g.op("Conv", g.pair(y), g.weight(32, 16, 1, 1, quantized=True))


def _concat(g: Graph, x: str) -> str:
    x = g.pair(x)
    sides = [g.pair(g.op("Relu", g.conv(x, 16)), scale) for scale in (0.1, 0.3)]
    return g.conv(g.pair(g.op("Concat", *sides, axis=1), 0.2), 32)


def _weight_only(g: Graph, x: str) -> str:
    return g.op("Relu", g.conv(g.op("Relu", g.conv(x, 16, quantized=False)), 16))


def _grouped(g: Graph, x: str) -> str:
    y = g.op("Relu", g.conv(g.pair(x), 16))
    return g.op("Relu", g.conv(g.pair(y), 16, group=8))


def _float_reader(g: Graph, x: str) -> str:
    y = g.pair(g.op("Relu", g.conv(g.pair(x), 16)))
    return g.op("Softmax", g.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), axis=1)


def _shared(g: Graph, x: str) -> str:
    y = g.op("Relu", g.conv(g.pair(x), 16))
    z = g.conv(g.pair(y), 16)
    return g.op("Softmax", g.op("Add", z, y), axis=1)


def _output(g: Graph, x: str) -> str:
    return g.pair(g.op("Relu", g.conv(g.pair(x), 16)))


def _squeeze(g: Graph, x: str) -> str:
    y = g.op("GlobalAveragePool", g.op("Relu", g.conv(g.pair(x), 16)))
    for into, out in ((16, 4), (4, 96)):
        y = g.op("Conv", g.pair(y), g.weight(out, into, 1, 1, quantized=True))
    return g.op("Sigmoid", y)


def _transposed(g: Graph, x: str) -> str:
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    return g.op("Sin", g.op("MatMul", y, g.weight(16, 64)))


def _normed(g: Graph, x: str) -> str:
    """ConvNeXt: a LayerNorm over channels, between two Transposes."""
    y = g.op("Transpose", g.op("Relu", g.conv(x, 16, quantized=False)), perm=[0, 2, 3, 1])
    return g.op("LayerNormalization", y, g.weight(16), g.weight(16), axis=-1)


def _norm_before(g: Graph, x: str, quantized: bool = False) -> str:
    y = _normed(g, x)
    y = g.op("Transpose", g.pair(y) if quantized else y, perm=[0, 3, 1, 2])
    return g.op("Relu", g.conv(y, 16, quantized))


def _partitioned(g: Graph, x: str) -> str:
    """Swin: a LayerNorm in front of windows."""
    y = g.op("MatMul", x, g.weight(32, 32))
    y = g.op("LayerNormalization", y, g.weight(32), g.weight(32), axis=-1)
    y = g.op("Reshape", y, g.store(np.array([1, 2, 8, 2, 8, 32])))
    return g.op("MatMul", g.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), g.weight(32, 32))


FILES: dict[str, Callable[[], onnx.ModelProto]] = {
    "resize": lambda: _net(_resize),
    "average": lambda: _net(_average),
    "concat": lambda: _net(_concat),
    "weight only": lambda: _net(_weight_only),
    "grouped": lambda: _net(_grouped),
    "float reader": lambda: _net(_float_reader),
    "shared": lambda: _net(_shared),
    "output": lambda: _net(_output),
    "squeeze": lambda: _net(_squeeze),
    "transposed": lambda: _net(_transposed),
    "norm": lambda: _net(lambda g, x: g.op("MatMul", _normed(g, x), g.weight(16, 16))),
    "norm before conv": lambda: _net(_norm_before),
    "norm before int8": lambda: _net(lambda g, x: _norm_before(g, x, quantized=True)),
    "norm before windows": lambda: _net(_partitioned, 1, 16, 16, 32),
}
ATTENTIONS = {
    "fused": Attention(),
    "head size": Attention(size=40),
    "sequence": Attention(tokens=600),
    "softmax": Attention(softmax_pair=False),
    "output": Attention(output_pair=False),
    "mixed": Attention(value_pair=False),
    "scale": Attention(scaled_behind_pair=True),
    "float": Attention(quantized=False),
    "half": Attention(quantized=False, half=True),
    "half head size": Attention(quantized=False, half=True, size=320),
    "mask": Attention(between="Sigmoid"),
    "half mask": Attention(between="Sigmoid", quantized=False, half=True),
}
