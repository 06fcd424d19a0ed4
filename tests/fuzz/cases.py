"""What came of one case, as workers report it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        findings: (kind, detail) of each thing that must not be.
        skipped: why it says nothing.
        tag: what it was one of, for counting: the precision, the kind of damage.
        smallest: the shortest case that fails alike.
    """

    seed: int
    findings: list[tuple[str, str]] = field(default_factory=list)
    skipped: str = ""
    tag: str = ""
    smallest: str = ""

    def line(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(line: str) -> Outcome:
        return Outcome(**json.loads(line))
