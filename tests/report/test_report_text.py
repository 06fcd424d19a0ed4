"""Names cut in the middle, byte counts, reasons brought together."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fusewright.report.result_tables import (
    accuracy_table,
    described,
    heavy_section,
    measured_over,
    selection_lines,
)
from fusewright.report.text import byte_count, counted, shorten, shorten_quoted, some_of
from fusewright.verify import Comparison, OutputError
from fusewright.verify.distance import Selected


@pytest.mark.parametrize("width", range(2, 30))
def test_a_short_name_keeps_both_ends(width):
    name = "layer1/block2/conv3/Conv"
    short = shorten(name, width)
    assert len(short) <= width
    assert short == name if width >= len(name) else "…" in short
    assert (short[0] == name[0] and short[-1] == name[-1]) or width == 2


def test_small_texts():
    assert [byte_count(n) for n in (0, 999, 1000, 2_500_000, 3.2e9)] == [
        "0 B", "999 B", "1.0 KB", "2.5 MB", "3.2 GB",
    ]  # fmt: skip
    assert counted(1, "group") == "1 group" and counted(0, "group") == "0 groups"
    assert some_of(["a", "b"], 2, 9) == "a, b" and some_of("abcd", 2, 9) == "a, b and 2 more"
    assert shorten_quoted("found 'abcdefghij' here", 5) == "found 'ab…ij' here"
    assert shorten_quoted("excluded by 'abcdefghij'", 5) == "excluded by 'abcdefghij'"


def _printed(*parts):
    console = Console(width=80, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def _row(op, name, reason, decision="float"):
    return {"op": op, "name": name, "decision": decision, "reason": reason}


def test_reasons_that_differ_in_a_name_only_are_one_entry():
    rows = [_row("MatMul", f"m{i}", f"found the computed tensor 't{i}'") for i in range(3)]
    rows += [_row("Conv", "c", "excluded by 'c*'"), _row("Conv", "d", "its contract", "int8")]
    text = _printed(*heavy_section(rows, 78))
    assert "quantized: 0 of 3 MatMul, 1 of 2 Conv" in text
    assert text.count("found the computed tensor '…'") == 1 and "m0, m1 and 1 more" in text
    assert "excluded by 'c*'" in text and text.index("kept float: 3") < text.index("kept float: 1")
    assert "none" in _printed(*heavy_section([], 78))


def test_accuracy_says_what_cannot_be_measured():
    outputs = (
        OutputError("same", 0.0),
        OutputError("close", 0.01),
        OutputError("lost", float("inf")),
        OutputError("classes", 0.25, is_float=False),
    )
    lines = _printed(accuracy_table(Comparison(outputs), 78)).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        ["same", "–"], ["close", "40.0"], ["lost", "–"], ["classes", "–"],
    ]  # fmt: skip
    assert "identical" in lines[0] and "not comparable" in lines[2] and "25.00%" in lines[3]


def test_accuracy_of_several_samples():
    outputs = (
        OutputError("scores", 0.01, samples=(0.001, 1.0, 0.1)),
        OutputError("classes", 0.25, is_float=False, samples=(0.0, 0.5)),
        OutputError("same", 0.0, samples=(0.0, None)),
        OutputError("lost", float("inf"), samples=(float("inf"), 0.0)),
    )
    text = _printed(accuracy_table(Comparison(outputs), 78))
    head, scores, classes, same, lost = (" ".join(line.split()) for line in text.splitlines())
    assert head == "output SQNR median worst sample relative error"
    assert scores == "scores 40.0 dB 20.0 dB 0.0 dB (sample 1) 1.00e-02"
    assert classes == "classes – 50.00% 50.00% (sample 1) 25.00% of elements differ"
    assert same == "same – – – identical"
    assert lost == "lost – – – (sample 0) not comparable"


def test_accuracy_says_over_how_many_samples():
    several = (OutputError("a", 0.1, samples=(0.1, None, 0.2)), OutputError("b", 0.1))
    assert measured_over(Comparison(several)) == " over 3 samples"
    assert measured_over(Comparison((OutputError("a", 0.1, samples=(0.1,)),))) == " over 1 sample"
    assert measured_over(Comparison((OutputError("a", 0.1),))) == ""


def test_accuracy_behind_selections():
    outputs = (
        OutputError("boxes", 0.01, role="behind", selection="TopK 'k'"),
        OutputError("ids", float("inf"), is_float=False, role="selected by", selection="TopK 'k'"),
        OutputError("scores", 0.1, role="in front of", selection="TopK 'k'"),
        OutputError("raw", 0.1, role="in front of", selection="NMS_TRT 'p'"),
    )
    comparison = Comparison(outputs, (Selected("TopK 'k'", 2, 3),))
    rows = [line.split() for line in _printed(accuracy_table(comparison, 78)).splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        ["boxes", "*"], ["ids", "<"], ["scores", ">"], ["raw", ">"],
    ]  # fmt: skip
    assert rows[1][2:] == ["–", "not", "comparable"]
    assert selection_lines(comparison) == [
        "TopK 'k' selects otherwise on 2 of 3 samples; in front of it: scores",
        "NMS_TRT 'p' is not run; in front of it: raw",
        "* compared with what the reference selects",
        "> in front of it",
        "< holds nothing but what is selected",
    ]
    assert selection_lines(Comparison(())) == []
    same = Comparison((), (Selected("ArgMax 'a'", 0, 2),))
    assert selection_lines(same) == ["ArgMax 'a' selects the same on all 2 samples"]
    assert comparison.worst.name == "scores"
    assert str(comparison.worst) == "scores in front of TopK 'k': 20.0 dB SQNR"
    assert described(outputs[2]) == "tensor 'scores' in front of TopK 'k'"
    assert described(outputs[0]) == "output 'boxes'"
