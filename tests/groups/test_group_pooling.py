"""AdaptiveAvgPool."""

from __future__ import annotations

import pytest
from building import Net
from recognising import Row, assert_kinds, recognised


def _x(net: Net) -> str:
    return net.input("x", "n", 4, 5, 6)


MATCHES = {
    "GlobalAveragePool": Row(lambda n: n.op("GlobalAveragePool", _x(n)), "AdaptiveAvgPool"),
    "ReduceMean": Row(lambda n: n.op("ReduceMean", _x(n), axes=[-1, -2]), "AdaptiveAvgPool"),
    "ReduceMean, flat": Row(
        lambda n: n.op("ReduceMean", _x(n), axes=[2, 3], keepdims=0), "AdaptiveAvgPool"
    ),
    "AveragePool over the map": Row(
        lambda n: n.op("AveragePool", _x(n), kernel_shape=[5, 6]), "AdaptiveAvgPool"
    ),
    "AveragePool over less": Row(lambda n: n.op("AveragePool", _x(n), kernel_shape=[5, 5]), ""),
    "GlobalMaxPool": Row(lambda n: n.op("GlobalMaxPool", _x(n)), ""),
    "ReduceMean over channels": Row(lambda n: n.op("ReduceMean", _x(n), axes=[1]), ""),
    "ReduceMax": Row(lambda n: n.op("ReduceMax", _x(n), axes=[2, 3]), ""),
}


@pytest.mark.parametrize("row", MATCHES.values(), ids=list(MATCHES))
def test_kinds(row: Row) -> None:
    assert_kinds(row)


def test_asks_for_no_pairs() -> None:
    plan, _ = recognised(MATCHES["ReduceMean"].build)
    assert plan.groups[0].inputs_to_quantize == ()
