"""A small net with a residual, a depthwise conv, a Concat and a head."""

from __future__ import annotations

import onnx
from building import Net


def small_net() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.batchnorm(net.conv(net.input("x", "batch", 4, 8, 8), 8, 4), 8))
    y = net.op("Relu", net.op("Add", net.conv(x, 8, 8), x), name="residual")
    deep = net.op("Relu", net.conv(y, 8, 8, group=8), name="depthwise")
    z = net.op("Concat", y, deep, axis=1)
    z = net.op("GlobalAveragePool", net.op("Relu", net.conv(z, 8, 16), name="mixed"))
    return net.proto(net.op("Gemm", net.op("Flatten", z), net.draw(8, 5), net.draw(5), name="head"))
