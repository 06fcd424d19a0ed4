"""NVFP4 and MXFP8 as TensorRT-RTX plans them for a Blackwell GPU, and as the report tells it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.engine.build import BuildOptions, build
from fusewright.errors import EngineError

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")

BLACKWELL = BuildOptions(backend="tensorrt_rtx", sm=120)


def _written(folder: Path, precision: str, shape: tuple[int | str, ...] = (2, 16, 96)) -> Path:
    net = Net(17)
    x = net.input("x", *shape)
    for into, out in ((96, 384), (384, 96)):
        x = net.op("Relu", net.op("Add", net.op("MatMul", x, net.draw(into, out)), net.draw(out)))
    source, written = folder / "net.onnx", folder / "out.onnx"
    onnx.save(net.proto(x), source)
    optimize(source, written, RandomSamples(4), precision=precision)
    return written


@pytest.mark.parametrize("rest", ["", "+fp16", "+bf16"])
def test_nvfp4_multiplies_in_four_bits(tmp_path: Path, rest: str) -> None:
    report = build(_written(tmp_path, f"nvfp4{rest}"), options=BLACKWELL)
    products = [row for row in report.kernels if row.operation == "gemm"]
    assert [row.dtype for row in products] == ["FP4", "FP4"]
    stored = [t for row in products for t in row.kernel.constants if t.dtype == "FP4"]
    assert [t.shape[-2:] for t in stored] == [(96, 384), (384, 96)]
    assert all(row.groups for row in products)
    finding = next(f for f in report.findings if f.cause == "block-scales")
    kernels = [report.kernels[i].kernel for i in finding.kernels]
    assert all(t.dtype in ("FP4", "FP8") for k in kernels for t in k.outputs)
    assert not {f.cause for f in report.findings} & {"missed", "alone", "weight-dequantized"}
    # Quantizing the input, restoring it and its scales, restoring the weight and its scales.
    assert [group.qdq for group in report.groups] == [5, 5]


@pytest.mark.parametrize("batch", [2, "batch"])
def test_a_window_has_four_dimensions(tmp_path: Path, batch: int | str) -> None:
    sizes = {} if isinstance(batch, int) else {"x": tuple((n, 4, 4, 96) for n in (1, 4, 8))}
    written = _written(tmp_path, "nvfp4+fp16", (batch, 4, 4, 96))
    report = build(written, options=replace(BLACKWELL, shapes=sizes))
    products = [row for row in report.kernels if row.operation == "gemm"]
    assert [row.dtype for row in products] == ["FP4", "FP4"]


def test_mxfp8_is_restored_by_rtx(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 has no MXFP8 GEMM: the table says so, and the report shows it."""
    report = build(_written(tmp_path, "mxfp8+fp16"), options=BLACKWELL)
    products = [row for row in report.kernels if row.operation == "gemm"]
    assert [row.dtype for row in products] == ["Half", "Half"]
    causes = [finding.cause for finding in report.findings]
    assert causes.count("missed") == 2
    assert "block-scales" in causes


def test_older_gpus_have_no_fp4(tmp_path: Path) -> None:
    written = _written(tmp_path, "nvfp4+fp16")
    with pytest.raises(EngineError, match="fp4"):
        build(written, options=BuildOptions(backend="tensorrt_rtx", sm=89))
