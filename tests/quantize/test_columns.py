"""Factors per channel of a layer's input, and what rounding costs, beside the layer itself."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net, feeds, run

from fusewright.quantize.columns import by_channel, channels_of, noise_of_rounding, signal

LAYERS = {
    "conv": ("Conv", (6, 4, 3, 3), (1, 4, 9, 9), {"pads": [1, 1, 1, 1]}),
    "conv of groups": ("Conv", (6, 2, 3, 3), (1, 4, 9, 9), {"group": 2}),
    "conv of one dimension": ("Conv", (6, 4, 3), (1, 4, 9), {}),
    "transposed": ("ConvTranspose", (4, 6, 2, 2), (1, 4, 9, 9), {"strides": [2, 2]}),
    "transposed of groups": ("ConvTranspose", (4, 3, 2, 2), (1, 4, 9, 9), {"group": 2}),
    "linear": ("MatMul", (4, 6), (2, 5, 4), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_factors_move_between_input_and_weight(name: str) -> None:
    op, of_weight, of_input, attrs = LAYERS[name]
    net = Net()
    x, w = net.input("x", *of_input), net.draw(*of_weight)
    model = net.model(net.op(op, x, w, **attrs))
    (node,) = model.graph.nodes
    channels, axis = channels_of(node, model.opset)
    assert channels == 4
    assert of_input[-axis] == 4
    factors = 2.0 ** np.array([0, 3, -2, 5])

    divided = Net()
    weight = net.stored[w] / by_channel(factors, node, model.opset)
    y = divided.op(op, divided.input("x", *of_input), divided.store(weight), **attrs)
    feed = feeds(divided.proto(y))
    scaled = np.asarray(feed["x"] * factors.reshape(-1, *(1,) * (axis - 1)), np.float32)
    (got,), (exact,) = (
        run(divided.proto(y), {"x": scaled}),
        run(net.proto(model.graph.outputs[0].name), feed),
    )
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)


def test_the_noise_is_that_of_rounding() -> None:
    net, random = Net(), np.random.default_rng(0)
    x, w = net.input("x", 4000, 32), net.draw(32, 16)
    model = net.model(net.op("MatMul", x, w))
    (node,) = model.graph.nodes
    rows, weight = random.standard_normal((4000, 32)), net.stored[w].astype(np.float64)
    step = np.abs(rows).max() / 127
    steps = np.abs(weight).max(axis=0) / 127
    rounded = (np.rint(rows / step) * step) @ (np.rint(weight / steps) * steps)
    noise = np.square(rounded - rows @ weight).mean(axis=0).sum()
    power = np.square(rows).mean(axis=0)
    told = noise_of_rounding(node, weight, (np.ones(32), power, float(step)), model.opset)
    assert told == pytest.approx(noise, rel=0.25)
    assert signal(node, weight, power, model.opset) == pytest.approx(
        np.square(rows @ weight).mean(axis=0).sum(), rel=0.1
    )
