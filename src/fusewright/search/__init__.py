"""Placements tried on the engine: for groups where the rules leave a choice."""

from fusewright.search.bench import Made, Workshop
from fusewright.search.journal import Journal
from fusewright.search.judge import (
    Figures,
    Judge,
    LatencyJudge,
    PlanJudge,
    latency_judge,
    plan_judge,
)
from fusewright.search.result import Outcome, SearchResult, Trial
from fusewright.search.scales import Scales
from fusewright.search.search import SearchOptions, search_placement
from fusewright.search.variant import Variant, observed

__all__ = [
    "Figures",
    "Journal",
    "Judge",
    "LatencyJudge",
    "Made",
    "Outcome",
    "PlanJudge",
    "Scales",
    "SearchOptions",
    "SearchResult",
    "Trial",
    "Variant",
    "Workshop",
    "latency_judge",
    "observed",
    "plan_judge",
    "search_placement",
]
