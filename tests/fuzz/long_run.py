"""tools/fuzz: many cases in worker processes, the findings grouped by kind."""

from __future__ import annotations

import argparse
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from cases import Outcome  # noqa: E402 - found by the line above

KINDS = ("graphs", "files", "data")
# Seconds that one case may take before it counts as hanging, its shrinking included.
PATIENCE = 180.0
# Cases after which a worker is replaced, so that what libraries keep does not add up.
SERVICE = 250
_SHOWN = 5


class Worker:
    """One process that answers seeds."""

    def __init__(self, kind: str, option: str) -> None:
        self.command = [sys.executable, str(FOLDER / "worker.py"), kind, option]
        self.process: subprocess.Popen[bytes] | None = None
        self.served = 0

    def ask(self, seed: int, shrink: bool = False) -> Outcome:
        """What came of a case; a crash or a hang is a finding."""
        if self.process is None or self.served >= SERVICE:
            self.stop()
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_quiet()
            )
            self.served = 0
        self.served += 1
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{seed} {int(shrink)}\n".encode())
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if ready else b""
        if line:
            return Outcome.read(line.decode())
        self.stop(kill=not ready)
        what = "crash" if ready else "hang"
        how = f"the process ended with {process.returncode}" if ready else f"over {PATIENCE:.0f} s"
        return Outcome(seed, [(what, how)])

    def stop(self, kill: bool = False) -> None:
        if self.process is not None:
            if kill:
                self.process.kill()
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
        self.process = None


def _quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass
class Tally:
    """What all cases came to."""

    findings: dict[str, list[tuple[Outcome, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    tags: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def is_new(self, outcome: Outcome) -> bool:
        """Whether it shows what few cases have shown: worth making small."""
        native = ("crash", "hang")
        kinds = {kind for kind, _ in outcome.findings if kind not in native}
        return any(len(self.findings.get(kind, ())) < _SHOWN for kind in kinds)

    def add(self, outcome: Outcome) -> None:
        self.count += 1
        if outcome.skipped:
            self.skipped[outcome.skipped[:70]] += 1
        else:
            self.tags[outcome.tag] += 1
        for kind, detail in outcome.findings:
            self.findings[kind].append((outcome, detail))
            print(f"{outcome.seed}: {outcome.tag} {kind}: {detail}", flush=True)

    def report(self) -> None:
        judged = ", ".join(f"{tag or '?'} {n}" for tag, n in sorted(self.tags.items()))
        print(f"\n{self.count} cases; judged: {judged}")
        for why, n in self.skipped.most_common():
            print(f"  skipped {n}: {why}")
        for kind, found in sorted(self.findings.items(), key=lambda item: -len(item[1])):
            seeds = sorted({outcome.seed for outcome, _ in found})
            print(f"\n{kind}: {len(seeds)} ({', '.join(map(str, seeds[:12]))})")
            for outcome, detail in found[:_SHOWN]:
                print(f"  {outcome.seed}: {detail}\n      {outcome.smallest}")


def run(seeds: range, jobs: int, kind: str, option: str) -> Tally:
    """Every seed in one of `jobs` workers."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seed in seeds:
        left.put(seed)
    tally, lock = Tally(), threading.Lock()

    def serve() -> None:
        worker = Worker(kind, option)
        while True:
            try:
                seed = left.get_nowait()
            except queue.Empty:
                worker.stop()
                return
            outcome = worker.ask(seed)
            if tally.is_new(outcome):
                outcome = worker.ask(seed, shrink=True)
            with lock:
                tally.add(outcome)

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def main() -> int:
    """Exit status 1 where something was found."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("count", type=int, help="how many cases")
    parser.add_argument("--seed", type=int, default=0, help="the first one's (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--kind", choices=KINDS, default="graphs")
    parser.add_argument("--precision", default="", help="of graphs; drawn unless given")
    given = parser.parse_args()
    start = time.monotonic()
    seeds = range(given.seed, given.seed + given.count)
    tally = run(seeds, given.jobs, given.kind, given.precision)
    tally.report()
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
