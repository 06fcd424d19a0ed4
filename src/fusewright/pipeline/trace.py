"""What happened, in order: every pass, match and miss, and every proof."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        stage: `load`, `clean`, `normalize`, `recognise`, `plan`, `smooth`, `collapse`, `calibrate`,
            `quantize`, `write`.
        what: `pass`, `match`, `miss`, `proof`, `undone` or `note`.
        name: the rule, group kind or check.
        where: the node or group it happened at.
        detail: counts, the reason of a miss, the error of a proof.
    """

    stage: str
    what: str
    name: str = ""
    where: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, str]:
        """For the JSON report."""
        return {k: v for k, v in vars(self).items() if v}


class Watcher(Protocol):
    """Told of progress while a job runs; the command line draws it."""

    def stage(self, name: str, detail: str, seconds: float) -> None:
        """A stage is done."""

    def samples(self, done: int, total: int | None) -> None:
        """Calibration has seen `done` samples, of `total` where that is known."""


class Silent:
    """Watches nothing."""

    def stage(self, name: str, detail: str, seconds: float) -> None:
        """Does nothing."""

    def samples(self, done: int, total: int | None) -> None:
        """Does nothing."""


@dataclass
class Trace:
    """Events in order, and the seconds each stage took."""

    watcher: Watcher = field(default_factory=Silent)
    events: list[Event] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def add(self, stage: str, what: str, name: str = "", where: str = "", detail: str = "") -> None:
        """Appends one event."""
        self.events.append(Event(stage, what, name, where, detail))

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Times a stage; what is put in the list becomes its progress line."""
        start, details = time.perf_counter(), list[str]()
        yield details
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.add(name, "pass", detail=", ".join(details))
        self.watcher.stage(name, ", ".join(details), seconds)

    def undone(self) -> list[Event]:
        """Rewrites that changed the results and were taken back."""
        return [event for event in self.events if event.what == "undone"]

    def to_list(self) -> list[dict[str, Any]]:
        """For the JSON report."""
        return [event.to_dict() for event in self.events]


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
