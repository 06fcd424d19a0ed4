"""Two masks of -Inf may empty a row together of which neither does so alone."""

from __future__ import annotations

import numpy as np
from attending import BATCH, TOKENS, proto_of, scaled, self_attention
from building import Net, as_model, assert_equal, feeds

from fusewright.normalize import normalize

CAUSAL = np.where(np.tril(np.ones((TOKENS, TOKENS), bool)), 0, -np.inf).astype(np.float32)


def _masked(net: Net, y: str) -> str:
    y = net.op("Add", scaled(net, y), CAUSAL)
    keep = net.input("keep", BATCH, 1, TOKENS, TOKENS, dtype=bool)
    return net.op("Add", y, net.op("Where", keep, np.float32(0), np.float32(-np.inf)))


def _guard(net: Net, y: str) -> str:
    return net.op("Where", net.op("IsNaN", y), np.float32(0), y)


def test_guard_stays_where_it_is() -> None:
    proto = proto_of(lambda n: self_attention(n, between=_masked, behind=_guard))
    model = as_model(proto)
    outcomes = {outcome.rule: outcome for outcome in normalize(model)}
    assert not outcomes["NanGuardBehind"].applied
    reasons = {str(miss) for miss in outcomes["NanGuardBehind"].misses}
    assert any("in front of the mask a mask of -Inf" in reason for reason in reasons), reasons
    feed = feeds(proto)
    feed["keep"] = np.ones_like(feed["keep"])
    # The first row keeps the last key alone, which the causal mask takes away.
    feed["keep"][0, 0, 0] = np.arange(TOKENS) == TOKENS - 1
    assert_equal(proto, model, feed)
