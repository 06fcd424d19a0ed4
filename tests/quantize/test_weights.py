"""Scales of weights, against brute force; what is quantized beside them and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantizing import node, pairs, planned, quantized

from fusewright.quantize.weights import scale_of, weight_scale

_FLOATS = st.floats(-1e6, 1e6, width=32)


def _brute_force(values: np.ndarray, axis: int) -> list[float]:
    found = []
    for channel in range(values.shape[axis]):
        largest = max((abs(float(v)) for v in values.take(channel, axis).reshape(-1)), default=0.0)
        found.append((largest or 1.0) / 127)
    return found


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 4), elements=_FLOATS), st.data())
def test_per_channel_is_the_largest_magnitude_over_127(values: np.ndarray, data) -> None:
    axis = data.draw(st.integers(0, 3))
    scale = weight_scale(values, axis)
    assert (scale.dtype, scale.shape) == (np.float32, (values.shape[axis],))
    np.testing.assert_allclose(scale, _brute_force(values, axis), rtol=1e-6, atol=1.2e-38)
    assert np.all(scale >= np.finfo(np.float32).tiny)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=_FLOATS))
def test_rounding_is_within_half_a_step(values: np.ndarray) -> None:
    scale = weight_scale(values, 0)[:, None].astype(np.float64)
    steps = np.clip(np.rint(values / scale), -128, 127)
    assert np.all(np.abs(steps) <= 127)
    assert np.all(np.abs(steps * scale - values) <= scale * 0.50001)


def test_per_tensor_is_a_scalar() -> None:
    scale = weight_scale(np.float32([[1, -254], [3, 4]]), None)
    assert scale.shape == ()
    assert float(scale) == 2.0


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    values = np.zeros((3, 2, 1, 1), np.float32)
    values[1] = 12.7
    np.testing.assert_allclose(weight_scale(values, 0), [1 / 127, 0.1, 1 / 127], rtol=1e-6)
    assert float(weight_scale(np.zeros(4, np.float32), None)) == np.float32(1 / 127)


@pytest.mark.parametrize("threshold", [1e-44, 1e-40, 1.2e-38])
def test_a_subnormal_scale_is_never_written(threshold: float) -> None:
    assert float(scale_of(threshold)) >= np.finfo(np.float32).tiny


def _net(batchnorm: bool = False) -> tuple[Net, str]:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 8, 4)
    x = net.op("Relu", net.batchnorm(x, 8) if batchnorm else x)
    return net, net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", x)), net.draw(8, 10))


def test_inserted_weight_scales_are_per_channel() -> None:
    net, y = _net()
    graph = quantized(net, y)
    for op, axis in (("Conv", 0), ("MatMul", 1)):
        dq = node(graph, op).inputs[1].inputs[0]
        q = dq.inputs[0].inputs[0]
        weight = q.inputs[0].values
        assert q.attrs["axis"] == dq.attrs["axis"] == axis
        np.testing.assert_allclose(q.inputs[1].values, _brute_force(weight, axis), rtol=1e-6)
        assert q.inputs[1] is dq.inputs[1]
        assert q.inputs[2].values.shape == (weight.shape[axis],)
        assert q.inputs[2].values.dtype == np.int8
        assert not q.inputs[2].values.any()


def test_bias_stays_float() -> None:
    net, y = _net()
    bias = node(quantized(net, y), "Conv").inputs[2]
    assert not bias.inputs
    assert bias.values.dtype == np.float32


def test_batchnorm_is_folded_before_its_weights_are_quantized() -> None:
    net, y = _net(batchnorm=True)
    weight, *_ = [a for n, a in net.stored.items() if a.ndim == 4]
    gamma, variance = (
        next(a for n, a in net.stored.items() if n.startswith(p)) for p in ("gamma", "variance")
    )
    graph = quantized(net, y)
    assert "BatchNormalization" not in [n.op for n in graph.nodes]
    folded = weight * (gamma / np.sqrt(variance + 1e-5)).reshape(-1, 1, 1, 1)
    scale = node(graph, "Conv").inputs[1].inputs[0].inputs[1].values
    np.testing.assert_allclose(scale, _brute_force(folded, 0), rtol=1e-5)


def test_zero_points_are_shared_and_zero() -> None:
    net, y = _net()
    graph = quantized(net, y)
    zeros = {id(q.inputs[2]): q.inputs[2].values for q, _ in pairs(graph)}
    assert sorted(z.shape for z in zeros.values()) == [(), (8,), (10,)]
    assert not any(z.any() for z in zeros.values())


def test_the_weight_in_front_of_its_pair_is_the_float_one() -> None:
    net, y = _net()
    before = {
        t.name: t.values.copy()
        for n in planned(*_net()).model.graph.nodes
        for t in n.inputs
        if hasattr(t, "values")
    }
    graph = quantized(net, y)
    for q, _ in pairs(graph):
        if "axis" in q.attrs:
            assert np.array_equal(q.inputs[0].values, before[q.inputs[0].name])
