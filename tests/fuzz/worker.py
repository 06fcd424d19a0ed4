"""Looks at cases: reads a seed and whether to make a failure small, writes one line of JSON.

A process of its own, because native code may end it: the parent sees that, and goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main(kind: str, option: str) -> None:
    # What native code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    if kind == "graphs":
        from graph_cases import look
    elif kind == "files":
        from file_cases import look
    else:
        from data_cases import look
    from cases import Outcome

    for line in sys.stdin:
        seed, shrink = (int(text) for text in line.split())
        try:
            outcome = look(seed, option or None, shrink=bool(shrink))
        except Exception as error:  # noqa: BLE001 - of the case's own making
            outcome = Outcome(seed, skipped=f"not made: {type(error).__name__}: {error}")
        answers.write(f"{outcome.line()}\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
