"""Small nets with norms and Linears, and where they can be smoothed."""

from __future__ import annotations

import numpy as np
from building import Net
from quantizing import planned

from fusewright.plan.decide import Rules
from fusewright.plan.plan import Plan
from fusewright.quantize.smooth import Skip, Smoothing, plan_smoothing

C, OUT = 8, 12


def norm(net: Net, x: str, channels: int = C, name: str = "norm") -> str:
    """LayerNormalization with drawn scale and bias."""
    gamma, beta = net.positive(channels, name="gamma"), net.draw(channels, name="beta")
    return net.op("LayerNormalization", x, gamma, beta, axis=-1, name=name)


def linear(net: Net, x: str, into: int = C, out: int = OUT, name: str = "fc") -> str:
    product = net.op("MatMul", x, net.draw(into, out), name=name)
    return net.op("Add", product, net.draw(out, name="b"))


def places(net: Net, *outputs: str, rules: Rules | None = None) -> list[Smoothing | Skip]:
    return plan_smoothing(planned(net, *outputs, rules=rules or Rules()))


def scales_of(plan: Plan, seed: int = 5) -> tuple[list[Smoothing], dict[str, np.ndarray]]:
    """Every place of a plan with random scales from 1/20 to 20."""
    sites = [site for site in plan_smoothing(plan) if isinstance(site, Smoothing)]
    random = np.random.default_rng(seed)
    scales = {
        site.source: np.exp(random.uniform(-3, 3, site.channels)).astype(np.float32)
        for site in sites
    }
    return sites, scales
