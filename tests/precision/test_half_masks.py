"""Attention masks: as exact in half as in float32, without a node kept float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from halving import Feed, Halved, halved, naive, worst_error

from fusewright.precision.plan import SPARES

LENGTH, SIZE = 6, 16
LOWEST = float(np.finfo(np.float32).min)


def _scores(net: Net) -> tuple[str, str]:
    x = net.input("x", 2, LENGTH, SIZE)
    q, k = (net.op("MatMul", x, net.draw(SIZE, SIZE)) for _ in range(2))
    return net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), x


def _attended(net: Net, scores: str, x: str) -> str:
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), x)


def _causal(value: float) -> np.ndarray:
    return np.triu(np.full((LENGTH, LENGTH), value, np.float32), 1)


def added(value: float) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        scores, x = _scores(net)
        return _attended(net, net.op("Add", scores, _causal(value)), x)

    return build


def selected(value: float) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        scores, x = _scores(net)
        blocked = np.triu(np.ones((LENGTH, LENGTH), bool), 1)
        return _attended(net, net.op("Where", blocked, np.float32(value), scores), x)

    return build


def from_tokens(value: float, twice: bool = False) -> Callable[[Net], str]:
    """(1 − attention_mask) · value, as BERT has it; `twice` adds the causal mask as well."""

    def build(net: Net) -> str:
        scores, x = _scores(net)
        mask = net.op("Cast", net.input("mask", 2, 1, LENGTH, dtype=np.int64), to=1)
        mask = net.op("Mul", net.op("Sub", 1.0, mask), np.float32(value))
        if twice:
            mask = net.op("Add", mask, _causal(value))
        return _attended(net, net.op("Add", scores, mask), x)

    return build


def _samples() -> list[Feed]:
    random = np.random.default_rng(5)
    mask = np.ones((2, 1, LENGTH), np.int64)
    mask[1, :, -2:] = 0
    return [
        {"x": random.standard_normal((2, LENGTH, SIZE)).astype(np.float32), "mask": mask}
        for _ in range(3)
    ]


def _halved(build: Callable[[Net], str], kind: str = "fp16") -> Halved:
    net = Net()
    output = build(net)
    names = {value.name for value in net.inputs}
    samples = [{k: v for k, v in s.items() if k in names} for s in _samples()]
    return halved(net, output, kind=kind, samples=samples)


MASKS = {
    "-1e9": added(-1e9),
    "-inf": added(-np.inf),
    "lowest": added(LOWEST),
    "-1e4 fits": added(-1e4),
    "where -1e9": selected(-1e9),
    "where -inf": selected(-np.inf),
    "where lowest": selected(LOWEST),
    "tokens": from_tokens(-1e9),
    "tokens lowest": from_tokens(LOWEST),
    "twice": from_tokens(-1e9, twice=True),
}


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str, kind: str) -> None:
    found = _halved(MASKS[name], kind)
    assert found.error() < (1e-2 if kind == "fp16" else 3e-2)
    assert found.kept == ""


def _padded(value: float, pool: str = "MaxPool") -> Callable[[Net], str]:
    """TensorFlow's SAME pooling."""

    def build(net: Net) -> str:
        x = net.conv(net.input("x", 2, LENGTH, SIZE, SIZE), 4, LENGTH)
        pads = net.store([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64)
        y = net.op("Pad", x, pads, net.store(value))
        if pool == "ReduceMax":
            return net.op("ReduceMax", net.op("Transpose", y, perm=[0, 2, 3, 1]), axes=[1, 2])
        return net.op(pool, y, kernel_shape=[3, 3])

    return build


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e9, -1e5])
@pytest.mark.parametrize("pool", ["MaxPool", "ReduceMax"])
def test_what_a_maximum_ignores(pool: str, value: float, kind: str) -> None:
    net = Net()
    found = halved(net, _padded(value, pool)(net), kind=kind)
    assert found.error() < (1e-2 if kind == "fp16" else 3e-2)
    # Opset 17 has no BF16 Conv: what is behind it may spare a Cast.
    assert found.kept == "" or kind == "bf16"
    assert set(found.plan.float_nodes.values()) <= {SPARES}


def test_a_row_that_is_masked_whole_stays_finite() -> None:
    """Naively −1e9 becomes −∞, and Softmax of nothing but −∞ is NaN."""
    net = Net()
    scores, x = _scores(net)
    mask = np.zeros((LENGTH, LENGTH), np.float32)
    mask[2] = -1e9
    found = halved(net, _attended(net, net.op("Add", scores, mask), x), samples=_some(net))
    assert worst_error(found.before, naive(found.before), found.samples) == np.inf
    assert found.error() < 1e-2 and not found.kept


def _some(net: Net) -> list[Feed]:
    names = {value.name for value in net.inputs}
    return [{k: v for k, v in s.items() if k in names} for s in _samples()]


def _also_an_output(net: Net) -> tuple[str, ...]:
    scores, x = _scores(net)
    masked = net.op("Add", scores, _causal(-1e9))
    return _attended(net, masked, x), masked


def _of_fractions(net: Net) -> tuple[str, ...]:
    """0.001 · −1e9 is a mask, 0.001 · −16376 would be a bias."""
    scores, x = _scores(net)
    part = net.op("Sigmoid", net.op("ReduceMean", x, axes=[-1], keepdims=1))
    return (_attended(net, net.op("Add", scores, net.op("Mul", part, -1e9)), x),)


def _log_probability(net: Net) -> tuple[str, ...]:
    scores, _ = _scores(net)
    return (net.op("LogSoftmax", net.op("Add", scores, _causal(-1e9)), axis=-1),)


def _no_softmax(net: Net) -> tuple[str, ...]:
    scores, _ = _scores(net)
    return (net.op("Mul", net.op("Add", scores, _causal(-1e9)), 1e-6),)


def _averaged(net: Net) -> tuple[str, ...]:
    return (net.op("Mul", _padded(-1e9, "AveragePool")(net), 1e-9),)


def _above(net: Net) -> tuple[str, ...]:
    """Every maximum at the border is this number."""
    return (net.op("Mul", _padded(1e9)(net), 1e-9),)


NO_MASKS = [_also_an_output, _of_fractions, _log_probability, _no_softmax, _averaged, _above]


@pytest.mark.parametrize("build", NO_MASKS)
def test_huge_numbers_that_are_no_masks(build: Callable[[Net], tuple[str, ...]]) -> None:
    net = Net()
    outputs = build(net)
    of_map = any(node.op_type == "Conv" for node in net.nodes)
    found = halved(net, *outputs, samples=() if of_map else _some(net))
    assert not found.plan.rewrites
    assert "beyond FP16" in " ".join(found.plan.float_nodes.values())
    assert found.error() < 1e-2
