"""Engines as tables: short by default, everything on request."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from fusewright.engine.compare import compare_engines
from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.report import EngineReport, Finding, GroupReport, KernelReport
from fusewright.report.engine_comparison import comparison_listing
from fusewright.report.engine_tables import engine_listing, size_text, time_text


def _shown(parts: list[RenderableType], width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _kernel(name: str, came: str, went: str, **fields: object) -> KernelReport:
    ends = [TensorType(f"{name}.{dtype}", dtype, (1, 1000)) for dtype in (came, went)]
    kernel = Kernel(name, "kgen", (ends[0],), (ends[1],), (), ("node",))
    plain = {"operation": None, "dtype": None, "groups": (), "nodes": ("node",)}
    return KernelReport(kernel, **{**plain, **fields})  # type: ignore[arg-type]


def _report() -> EngineReport:
    kernels = (
        _kernel("quantize", "Float", "Int8", nodes=("x_q",)),
        _kernel("conv", "Int8", "Half", operation="conv", dtype="Int8", groups=("stem", "next")),
        _kernel("copy", "Half", "Half", inferred=True, groups=("stem",)),
    )
    stem = GroupReport(
        "stem", "ConvBN", "Int8", ("Int8",), (1, 2), False, ("Int8",), ("Half",), 7000, 4, 1
    )
    rest = replace(stem, name="next", kind="Linear", planned="FP8", kernels=(1,), qdq_alone=0)
    view = replace(
        stem, name="view", kind="SwinWindowPartition", planned=None, reached=(), merged=True, qdq=0
    )
    findings = (
        Finding("quantizes-input", (0,), (), ("x_q",), "input x", 5000),
        Finding("layout-change", (2,), ("stem",), (), "Half", 4000),
        Finding("layout-change", (1,), ("next",), (), "Half", 3000),
    )
    return EngineReport(
        "m.onnx", "m.engine", "tensorrt", "11.4", 2.5, 10_000, {}, kernels,
        notes=("a note",), groups=(stem, rest, view), findings=findings,
    )  # fmt: skip


def test_the_short_listing() -> None:
    text = _shown(engine_listing(_report(), 100, everything=False))
    for line in (
        "Engine by tensorrt 11.4",
        "  kernels      3",
        "  activations  12.0 KB",
        "  ConvBN                    1        2   7.0 KB  1 conv Int8",
        "  outside any group         –        1   5.0 KB",
        "  1 kernel of several kinds, counted in each",
        "  a kernel only changes the layout: 2 kernels, 7.0 KB",
        "      at #3 stem (Half), and 1 more",
        "  a note",
    ):
        assert " ".join(line.split()) in [" ".join(t.split()) for t in text.splitlines()], line
    # What cannot be mended comes last, and without its kernels.
    assert text.index("changes the layout") < text.index("input is quantized")
    assert "#1" not in text and "Groups" not in text


def test_the_whole_listing() -> None:
    text = _shown(engine_listing(_report(), 100, everything=True))
    for line in (
        "  stem  ConvBN Int8",
        "      kernels 2-3; Int8 → Half; 7.0 KB; 1 of 4 Q/DQ alone",
        "  next  Linear Int8, not FP8",
        "      kernels 2; Int8 → Half; 7.0 KB; 4 Q/DQ absorbed",
        "  view  SwinWindowPartition",
        "      merged into kernels 2-3; Int8 → Half; 7.0 KB",
        "  #1 quantize  kgen; Float → Int8; 5.0 KB",
        "      outside groups: x_q",
        "  #2 conv  conv Int8; Int8 → Half; 3.0 KB",
        "      stem, next",
        "      like stem",
        "      at #2 next (Half)",
        "      at #1 x_q (input x)",
    ):
        assert line in text.splitlines(), line


def test_times_are_shown_where_they_are() -> None:
    report = _report()
    timed = tuple(replace(row, milliseconds=0.25) for row in report.kernels)
    text = _shown(engine_listing(replace(report, kernels=timed), 100, everything=True))
    assert "  time         0.750 ms" in text.splitlines()
    assert "#3 copy  kgen; Half → Half; 4.0 KB; 0.250 ms" in text
    assert "ms" not in _shown(engine_listing(report, 100, everything=True))


def test_a_plan_that_is_not_known() -> None:
    report = replace(_report(), kernels=(), groups=(), findings=())
    text = _shown(engine_listing(report, 100, everything=True))
    assert "kernels      not known" in text and "could be better" not in text


@pytest.mark.parametrize(
    ("size", "text"), [(None, "–"), (0, "0 B"), (1500, "1.5 KB"), (2_500_000, "2.5 MB")]
)
def test_sizes(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_times() -> None:
    assert (time_text(None), time_text(0.1234)) == ("–", "0.123 ms")


def test_two_engines() -> None:
    first, second = _report(), _report()
    groups = (
        replace(second.groups[0], reached=("FP8",), activation_bytes=6000),
        *second.groups[1:],
    )
    kernels = second.kernels[:2]
    other = replace(second, groups=groups, kernels=kernels)
    names = ("a.json", "b.json")
    text = _shown(comparison_listing(compare_engines(first, other), names, False))
    lines = text.splitlines()
    for line in (
        "               a.json    b.json     difference",
        "  kernels           3         2       −1 (−33.3%)",
        "  activations  12.0 KB   8.0 KB  −4.0 KB (−33.3%)",
        "  stem ConvBN",
        "    kernels 2; Int8 → FP8; 7.0 KB → 6.0 KB",
        "  2 groups became the same in both",
    ):
        assert " ".join(line.split()) in [" ".join(shown.split()) for shown in lines], line
    everything = _shown(comparison_listing(compare_engines(first, other), names, True))
    assert "next" in everything and "next" not in text
    same = _shown(comparison_listing(compare_engines(first, first), names, False))
    assert "3 groups became the same in both" in same
