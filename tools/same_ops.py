"""Fusewright beside another tool with the same heavy ops in INT8.

What the other tool leaves float is excluded in fusewright, by group: a group of which the tool
leaves one heavy op float is float as a whole. What fusewright then leaves float is put back to
float in the other tool's file. So both files have the same heavy ops in INT8, each with the pairs
that its own tool places around them.

Put back, a file keeps pairs that the tool placed for more than these ops, such as on a residual
stream. So the tool also runs again, told to leave them float: where it then has the same ops in
INT8 that is a second figure, beside the first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from int8_ops import by_original_name, heavy_nodes, key, owners, put_back


@dataclass(frozen=True)
class Figure:
    """SQNR in dB and the task's score of one file."""

    sqnr: float = np.nan
    score: float = np.nan


@dataclass(frozen=True)
class SameOps:
    """Another tool and fusewright on one task.

    Attributes:
        left_float: heavy ops that the tool does not have in INT8, as `type name`.
        put_back: those that were put back to float in its file.
        excluded: groups that were excluded in fusewright.
        int8: number of heavy ops of the float model that are in INT8 in both.
        peer: the tool's file as it is.
        peer_same: the tool's file on the same ops, the others put back to float.
        peer_told: the tool told to leave the others float; NaN where it does not end up with the
            same ops.
        ours_same: fusewright's on the same ops.
        ours: fusewright's at default settings.
        original: the FP32 model.
    """

    task: str
    tool: str
    left_float: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    int8: int = 0
    peer: Figure = Figure()
    peer_same: Figure = Figure()
    peer_told: Figure = Figure()
    ours_same: Figure = Figure()
    ours: Figure = Figure()
    original: Figure = Figure()
    error: str | None = None

    @property
    def gain(self) -> float:
        """How much more SQNR fusewright has on the same ops, in dB."""
        return self.ours_same.sqnr - self.peer_same.sqnr

    @property
    def gain_told(self) -> float:
        """The same over the tool that was told."""
        return self.ours_same.sqnr - self.peer_told.sqnr


class Job(Protocol):
    """What is needed of a task here; bench_accuracy.Job has it."""

    name: str
    task: Any
    folder: Path

    def optimize(self, out: Path, *more: str) -> tuple[float, str | None]:
        """Runs fusewright, the report beside `out`; wall seconds and the error."""

    def judge(self, quantized: Path) -> tuple[float, float]:
        """SQNR in dB and score of one quantized file."""


@dataclass(frozen=True)
class Peer:
    """A file that another tool wrote.

    Attributes:
        tool: its name and method.
        path: the file.
        figure: of the file as it is.
        again: runs the tool once more: where to write, which of its nodes to leave float; gives
            wall seconds and the error.
    """

    tool: str
    path: Path
    figure: Figure
    again: Callable[[Path, Sequence[str]], tuple[float, str | None]]


@dataclass
class Comparer:
    """Compares other tools' files of one task with fusewright's.

    Attributes:
        everything: fusewright's file at default settings, its report beside it.
        ours: its figure.
        original: the figure of the FP32 model.
    """

    job: Job
    everything: Path
    ours: Figure
    original: Figure
    done: dict[tuple[str, ...], tuple[Path, Figure]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done[()] = (self.everything, self.ours)
        self.graph = onnx.load(self.job.task.model).graph
        self.owners = owners(_report(self.everything), self.graph)

    def compare(self, peer: Peer) -> SameOps:
        """The row of another tool's file."""
        try:
            return self._compare(peer)
        except ValueError as error:
            return SameOps(self.job.name, peer.tool, error=str(error))

    def _compare(self, peer: Peer) -> SameOps:
        model = onnx.load(peer.path)
        found = by_original_name(model.graph, self.graph)
        theirs = {name for name, (_, int8) in found.items() if int8}
        excluded = tuple(self._excluded(theirs))
        file, ours_same = self._ours(excluded)
        same = self._int8(file)
        if not same <= theirs:
            raise ValueError(f"in INT8 in fusewright's file alone: {', '.join(same - theirs)}")
        others = theirs - same
        nodes = sorted(key(found[name][0]) for name in others)
        return SameOps(
            self.job.name,
            peer.tool,
            left_float=self._named(lambda name: name not in theirs),
            put_back=self._named(others.__contains__),
            excluded=excluded,
            int8=len(same),
            peer=peer.figure,
            peer_same=self._put_back(model, others) if others else peer.figure,
            peer_told=self._told(peer, nodes, same) if others else peer.figure,
            ours_same=ours_same,
            ours=self.ours,
            original=self.original,
        )

    def _excluded(self, theirs: Collection[str]) -> list[str]:
        """INT8 groups with a heavy op that the tool leaves float."""
        here = self._int8(self.everything) - set(theirs)
        return sorted({self.owners[name]["name"] for name in here})

    def _int8(self, file: Path) -> set[str]:
        """Heavy ops of the float model that fusewright's file has in INT8."""
        groups = {g["name"] for g in _report(file)["groups"] if g["decision"] == "int8"}
        return {name for name, group in self.owners.items() if group["name"] in groups}

    def _ours(self, excluded: tuple[str, ...]) -> tuple[Path, Figure]:
        if excluded not in self.done:
            out = self.job.folder / f"same_{len(self.done)}.onnx"
            options = [word for name in excluded for word in ("--exclude", name)]
            _, error = self.job.optimize(out, *options)
            if error:
                raise ValueError(error)
            self.done[excluded] = (out, Figure(*self.job.judge(out)))
        return self.done[excluded]

    def _put_back(self, model: onnx.ModelProto, names: Collection[str]) -> Figure:
        out = self.job.folder / "put_back.onnx"
        onnx.save(put_back(model, self.graph, names), out)
        return Figure(*self.job.judge(out))

    def _told(self, peer: Peer, nodes: Sequence[str], same: Collection[str]) -> Figure:
        """Of the tool run again without `nodes`, if it then has `same` in INT8."""
        out = self.job.folder / "told.onnx"
        out.unlink(missing_ok=True)
        _, error = peer.again(out, nodes)
        if error:
            raise ValueError(error)
        found = by_original_name(onnx.load(out).graph, self.graph)
        has = {name for name, (_, int8) in found.items() if int8}
        return Figure(*self.job.judge(out)) if has == same else Figure()

    def _named(self, wanted: Any) -> tuple[str, ...]:
        nodes = (node for node, _ in heavy_nodes(self.graph))
        return tuple(f"{node.op_type} {key(node)}" for node in nodes if wanted(key(node)))


def _report(file: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())
    return report


def least_gain(rows: Sequence[SameOps]) -> float:
    """The least gain in dB of the rows that have one."""
    return min((row.gain for row in rows if not row.error), default=-np.inf)


def same_ops_lines(rows: Sequence[SameOps]) -> Iterator[str]:
    """The table; the best method of each tool is marked."""
    if not rows:
        return
    yield "\nOn the same heavy ops: SQNR in dB, * the best method of the tool on them"
    titles = ("as is", "put back", "told", "ours same", "gain", "over told", "ours all")
    head = f"{'task':30} {'tool':24} {'left float':22} {'put back':16}"
    yield f"{head} {' '.join(f'{title:>9}' for title in titles)}  score fp32/tool/same/all"
    for row in rows:
        yield f"{row.task:30} {row.tool + _mark(row, rows):24} {row.error or _figures(row)}"
    for task in dict.fromkeys(row.task for row in rows):
        least = least_gain([row for row in rows if row.task == task])
        yield f"{task:30} least gain {least:+.2f} dB"


def _mark(row: SameOps, rows: Sequence[SameOps]) -> str:
    tool = row.tool.split()[0]
    rivals = [r for r in rows if r.task == row.task and r.tool.split()[0] == tool]
    best = max((r.peer_same.sqnr for r in rivals if not r.error), default=np.nan)
    return " *" if row.peer_same.sqnr == best else ""


def _figures(row: SameOps) -> str:
    sqnr = [f.sqnr for f in (row.peer, row.peer_same, row.peer_told, row.ours_same)]
    gains = " ".join(_number(value, "+9.2f") for value in (row.gain, row.gain_told))
    numbers = " ".join(_number(value, "9.2f") for value in sqnr)
    score = "/".join(
        f"{f.score:.2f}" for f in (row.original, row.peer_same, row.ours_same, row.ours)
    )
    ops = f"{_counts(row.left_float):22} {_counts(row.put_back):16}"
    return f"{ops} {numbers} {gains} {row.ours.sqnr:9.2f}  {score}"


def _number(value: float, form: str) -> str:
    return f"{'-':>9}" if np.isnan(value) else format(value, form)


def _counts(ops: Sequence[str]) -> str:
    counts = Counter(op.split()[0] for op in ops)
    return ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"
