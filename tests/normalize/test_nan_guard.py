"""PyTorch's guard behind a Softmax: gone where it does nothing, behind the product elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net, as_model, ops, run
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule, rewrite

from fusewright.graph.convert import to_proto

LOWEST = float(np.finfo(np.float32).min)
_Q, _K, _V = ("b", 2, 4, 8), ("b", 2, 8, 5), ("b", 2, 5, 8)


def _guarded(mask=None, *, scale: bool = False):
    """Guarded attention; `mask` builds what is added to the scores."""

    def build(net: Net) -> str:
        scores = net.op("MatMul", net.input("q", *_Q), net.input("k", *_K))
        if scale:
            scores = net.op("Mul", scores, 0.3)
        if mask is not None:
            scores = net.op("Add", scores, mask(net))
        p = net.op("Softmax", scores, name="softmax")
        p = net.op("Where", net.op("IsNaN", p), 0.0, p)
        return net.op("MatMul", p, net.input("v", *_V))

    return build


def _chosen(fill: float, *, when_kept: bool = True):
    def mask(net: Net) -> str:
        keep = net.op("Greater", net.input("m", "b", 1, 4, 5), 0.0)
        first, second = (0.0, fill) if when_kept else (fill, 0.0)
        return net.op("Where", keep, np.float32(first), np.float32(second))

    return mask


def _stored(fill: float):
    return lambda net: net.store(np.where(np.tri(4, 5) > 0, 0.0, fill))


_BEHIND = "MatMul Greater Where Add Softmax MatMul Cast ReduceMax Cast Where"
DROPPED = {
    "NanGuard": {
        "no mask": Row(_guarded(), "MatMul Softmax MatMul"),
        "no mask, scaled": Row(_guarded(scale=True), "MatMul Mul Softmax MatMul"),
        "lowest number": Row(_guarded(_chosen(LOWEST)), "MatMul Greater Where Add Softmax MatMul"),
        "stored mask": Row(_guarded(_stored(-1e9)), "MatMul Add Softmax MatMul"),
    },
    "NanGuardBehind": {
        "-Inf where not kept": Row(_guarded(_chosen(-np.inf)), _BEHIND),
        "-Inf where not kept, opset 18": Row(_guarded(_chosen(-np.inf)), _BEHIND, opset=18),
        "-Inf where dropped": Row(
            _guarded(_chosen(-np.inf, when_kept=False)), _BEHIND.replace("Cast Re", "Not Cast Re")
        ),
    },
}
LEFT = {
    "NanGuard": {
        "a stored mask of -Inf": Row(_guarded(_stored(-np.inf)), "a mask of -Inf"),
        "a computed mask": Row(
            _guarded(lambda n: n.op("Floor", n.input("m", "b", 1, 4, 5))), "a computed mask"
        ),
    },
    "NanGuardBehind": {
        "another fill": Row(_guarded(lambda n: _half_masked(n)), "a mask of"),
        "a computed mask": Row(
            _guarded(lambda n: n.op("Floor", n.input("m", "b", 1, 4, 5))), "no mask that is chosen"
        ),
    },
}


def _half_masked(net: Net) -> str:
    keep = net.op("Greater", net.input("m", "b", 1, 4, 5), 0.0)
    return net.op("Where", keep, np.float32(1.0), np.float32(-np.inf))


@pytest.mark.parametrize(("rule", "row"), by_rule(DROPPED))
def test_rewritten(rule: str, row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(("rule", "row"), by_rule(LEFT))
def test_left_alone(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


@pytest.mark.parametrize("when_kept", [True, False])
def test_rows_that_keep_nothing_are_zero(when_kept: bool) -> None:
    row = Row(_guarded(_chosen(-np.inf, when_kept=when_kept)), "")
    proto = row.proto()
    model, _ = rewrite(proto)
    random = np.random.default_rng(0)
    feed = {n: random.standard_normal((3, *s[1:])).astype(np.float32) for n, s in _named().items()}
    keep = random.random((3, 1, 4, 5)) < 0.4
    keep[1] = False
    keep[2, 0, 1] = False
    feed["m"] = np.where(keep == when_kept, 1.0, -1.0).astype(np.float32)
    (expected,), (found,) = run(proto, feed), run(to_proto(model.graph), feed)
    assert not np.isnan(expected).any() and (expected[1] == 0).all() and (found[1] == 0).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def _named() -> dict[str, tuple]:
    return {"q": _Q, "k": _K, "v": _V}


def test_core_is_found_with_its_zeroed_rows() -> None:
    model = as_model(Row(_guarded(_chosen(-np.inf)), "").proto(), clean=True)
    assert "IsNaN" not in ops(model)
