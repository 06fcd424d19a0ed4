"""Outputs in half are compared in front of their last rounding."""

from __future__ import annotations

import numpy as np
import onnx
from building import Net
from onnx import TensorProto

from fusewright.verify import Reference
from fusewright.verify.outputs import with_float_outputs

FEEDS = [{"x": np.linspace(0.5, 2.0, 1000, dtype=np.float32).reshape(1, 1000)}]


def _net(factor: float, cast: bool = True) -> onnx.ModelProto:
    net = Net(19)
    y = net.op("Mul", net.input("x", 1, 1000), np.float32(factor), name="y")
    return net.proto(net.op("Cast", y, to=TensorProto.FLOAT16, name="last") if cast else y)


def test_the_last_cast_alone_is_left_out() -> None:
    model = _net(1.0)
    before = model.SerializeToString()
    wide = with_float_outputs(model)
    assert wide.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert wide.graph.node[-1].attribute[0].i == TensorProto.FLOAT
    assert model.SerializeToString() == before
    plain = _net(1.0, cast=False)
    assert with_float_outputs(plain) is plain


def test_a_cast_that_is_read_stays() -> None:
    net = Net(19)
    y = net.op("Cast", net.input("x", 1, 1000), to=TensorProto.FLOAT16)
    model = net.proto(y, net.op("Neg", y))
    assert with_float_outputs(model) is model


def test_a_difference_in_the_last_bits_stays_one() -> None:
    """Rounded to half, a few of the thousand fall on the other side: 1e-5 and more."""
    reference = Reference(_net(1.0), FEEDS)
    assert 1e-7 < reference.compare(_net(1.0 + 2e-6)).worst.relative < 1e-5
    rounded = [
        (FEEDS[0]["x"] * np.float32(f)).astype(np.float16).astype(float) for f in (1, 1 + 2e-6)
    ]
    assert np.linalg.norm(rounded[0] - rounded[1]) / np.linalg.norm(rounded[0]) > 1e-5


def test_an_output_that_a_rewrite_stores_is_rounded_alike() -> None:
    """Folded away, the last Cast leaves an output that is half for good."""

    def net(stored: bool, value: float = 0.1) -> onnx.ModelProto:
        net = Net(19)
        y = net.op("Neg", net.input("x", 1, 1000))
        if stored:
            z = net.op("Identity", net.store([value] * 3, dtype=np.float16))
        else:
            z = net.op("Cast", net.store([value] * 3), to=TensorProto.FLOAT16)
        model = net.proto(y, z)
        model.graph.node[-1].output[0] = model.graph.output[1].name = "constant"
        return model

    reference = Reference(net(stored=False), FEEDS)
    assert reference.compare(net(stored=True)).is_within(1e-6)
    assert not reference.compare(net(stored=True, value=0.2)).is_within(1e-2)
