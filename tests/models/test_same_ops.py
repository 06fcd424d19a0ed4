"""`tools/same_ops.py`: both files are brought to the same heavy ops, then judged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest
from int8_ops import count_int8
from same_ops import Comparer, Figure, Peer, SameOps, least_gain, same_ops_lines

HEAD = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.1}, int8 z = {0}, float[2,2,1,1] w = {0.3,-0.1,0.1,0.2}>
"""
PAIR = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"
WEIGHTS = PAIR.format("w")
NAMES = ("a", "b", "c")
TENSORS = ("x", "t", "u", "y")


def _model(int8: str, path: Path) -> Path:
    """Three Convs in a row with a Relu behind each; those in `int8` behind pairs."""
    lines = [WEIGHTS]
    for name, data, result in zip(NAMES, TENSORS, TENSORS[1:], strict=False):
        pair = PAIR.format(data) if name in int8 else ""
        operands = f"{data}d, wd" if name in int8 else f"{data}, w"
        lines.append(f"{pair} [{name}] {name}1 = Conv({operands}) {result} = Relu({name}1)")
    onnx.save(onnx.parser.parse_model(f"{HEAD} {{ {' '.join(lines)} }}"), path)
    return path


@dataclass
class FakeJob:
    """Fusewright whose guard leaves Conv `c` float; the SQNR says how many ops are in INT8."""

    folder: Path
    name: str = "three"
    runs: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = SimpleNamespace(model=_model("", self.folder / "float.onnx"))

    def optimize(self, out: Path, *more: str) -> tuple[float, str | None]:
        self.runs.append(more)
        groups = [
            {
                "name": f"group {name}",
                "kind": "ConvBNAct",
                "nodes": [name],
                "weights": [1],
                "decision": "float" if f"group {name}" in more or name == "c" else "int8",
            }
            for name in NAMES
        ]
        out.with_suffix(".json").write_text(json.dumps({"groups": groups}))
        _model("".join(g["nodes"][0] for g in groups if g["decision"] == "int8"), out)
        return 0.0, None

    def judge(self, quantized: Path) -> tuple[float, float]:
        return 40.0 - count_int8(quantized)[0], 99.0


@pytest.fixture
def comparer(tmp_path: Path) -> Comparer:
    job = FakeJob(tmp_path)
    out = tmp_path / "default.onnx"
    job.optimize(out)
    return Comparer(job, out, Figure(*job.judge(out)), Figure(math.inf, 100.0))


CASES = {  # in INT8 in the tool's file: excluded here, put back there, in INT8 in both
    "ab": ((), (), 2),
    "abc": ((), ("Conv c",), 2),
    "bc": (("group a",), ("Conv c",), 1),
    "c": (("group a", "group b"), ("Conv c",), 0),
}


@dataclass
class FakeTool:
    """Quantizes the Convs `int8` but for those it is told to leave float, and what hangs on them.

    Attributes:
        drags: what it leaves float as well when it is told to leave something float.
    """

    folder: Path
    int8: str
    drags: str = ""
    told: list[str] = field(default_factory=list)

    def run(self, out: Path, excluded: Sequence[str] = ()) -> tuple[float, str | None]:
        self.told += excluded
        dropped = [*excluded, *self.drags] if excluded else []
        _model("".join(name for name in self.int8 if name not in dropped), out)
        return 0.0, None

    def peer(self, comparer: Comparer, method: str = "max") -> Peer:
        path = self.folder / "peer.onnx"
        self.run(path)
        return Peer(f"tool {method}", path, Figure(*comparer.job.judge(path)), self.run)


@pytest.mark.parametrize("int8", CASES)
def test_same_ops(int8: str, comparer: Comparer, tmp_path: Path) -> None:
    excluded, put_back, both = CASES[int8]
    tool = FakeTool(tmp_path, int8)
    row = comparer.compare(tool.peer(comparer))
    assert row.error is None
    assert (row.excluded, row.put_back, row.int8) == (excluded, put_back, both)
    assert row.left_float == tuple(f"Conv {name}" for name in NAMES if name not in int8)
    assert row.ours == Figure(38.0, 99.0)
    assert row.peer == Figure(40.0 - len(int8), 99.0)
    assert row.ours_same == row.peer_same == row.peer_told == Figure(40.0 - both, 99.0)
    assert [f"Conv {name}" for name in tool.told] == list(put_back)


def test_told_tool_with_other_ops_gives_no_figure(comparer: Comparer, tmp_path: Path) -> None:
    row = comparer.compare(FakeTool(tmp_path, "abc", drags="b").peer(comparer))
    assert row.error is None
    assert row.gain == 0.0
    assert math.isnan(row.peer_told.sqnr)
    assert "nan" not in "\n".join(same_ops_lines([row]))


def test_methods_of_one_tool_share_a_run(comparer: Comparer, tmp_path: Path) -> None:
    for method in ("max", "entropy"):
        comparer.compare(FakeTool(tmp_path, "b").peer(comparer, method))
    assert comparer.job.runs == [(), ("--exclude", "group a")]


def test_what_cannot_be_compared_says_why(comparer: Comparer, tmp_path: Path) -> None:
    peer = FakeTool(tmp_path, "ab").peer(comparer)
    model = onnx.load(peer.path)
    next(n for n in model.graph.node if n.name == "a").name = "other"
    onnx.save(model, peer.path)
    row = comparer.compare(peer)
    assert row.error == "Conv 'other' is not in the float model"
    assert "not in the float model" in "\n".join(same_ops_lines([row]))


def _row(tool: str, peer: float, ours: float) -> SameOps:
    return SameOps(
        "three",
        tool,
        left_float=("Einsum i", "Einsum j", "Gemm k"),
        peer=Figure(peer - 1, 98.0),
        peer_same=Figure(peer, 98.0),
        peer_told=Figure(peer + 0.5, 98.0),
        ours_same=Figure(ours, 99.0),
        ours=Figure(ours - 2, 99.0),
    )


def test_table_marks_the_best_method_of_each_tool() -> None:
    rows = [_row("one max", 30.0, 34.0), _row("one entropy", 33.0, 34.0), _row("two x", 20.0, 30.0)]
    lines = list(same_ops_lines(rows))
    assert [" *" in line for line in lines[2:5]] == [False, True, True]
    assert "2 Einsum, 1 Gemm" in lines[2]
    assert lines[-1].endswith("least gain +1.00 dB")
    assert least_gain(rows) == pytest.approx(1.0)
    assert rows[1].gain_told == pytest.approx(0.5)
    assert list(same_ops_lines([])) == []


def test_no_gain_without_a_comparison() -> None:
    assert least_gain([SameOps("three", "one max", error="exit 1")]) == -math.inf
