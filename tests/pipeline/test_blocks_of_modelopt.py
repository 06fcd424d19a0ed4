"""NVFP4 and MXFP8 as ModelOpt writes them: weights [out, in] in front of a Transpose, and half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright import compare, inspect, strip_qdq
from fusewright.quantize.blockwise.values import Blocks, to_blocks
from fusewright.target import FORMATS

ROWS, WIDTH, OUT = 6, 64, 32
FLOAT, HALF, FP8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN
SCALE = np.float32(2.0**-9)
ALONG = {"axis": -1, "block_size": 16}


def _nodes(form: str) -> list[onnx.NodeProto]:
    def node(op: str, read: str, written: str, **attrs: int) -> onnx.NodeProto:
        domain = "trt" if op.startswith("TRT") else ""
        return helper.make_node(
            op, read.split(), written.split(), written.split()[0], domain=domain, **attrs
        )

    turned = helper.make_node("Transpose", ["w"], ["turned"], "turn", perm=[1, 0])
    if form == "nvfp4":
        return [
            node("TRT_FP4DynamicQuantize", "x scale", "codes blocks", **ALONG, scale_type=FP8),
            node("DequantizeLinear", "blocks scale", "steps"),
            node("DequantizeLinear", "codes steps", "restored", **ALONG),
            node("DequantizeLinear", "w_scales w_scale", "w_steps"),
            node("DequantizeLinear", "w_codes w_steps", "w", **ALONG),
            turned,
            node("Cast", "restored", "x_half", to=HALF),
            node("Cast", "turned", "w_half", to=HALF),
            helper.make_node("MatMul", ["x_half", "w_half"], ["y"], "linear"),
        ]
    along = {"axis": -1, "block_size": 32}
    return [
        node("TRT_MXFP8DynamicQuantize", "x", "codes blocks", **along, output_dtype=FP8),
        node("TRT_MXFP8DequantizeLinear", "codes blocks", "restored", **along, output_dtype=HALF),
        node("TRT_MXFP8DequantizeLinear", "w_codes w_scales", "w", **along, output_dtype=HALF),
        turned,
        helper.make_node("MatMul", ["restored", "turned"], ["y"], "linear"),
    ]


def _model(nodes, kind: int, stored: dict[str, np.ndarray], *inside) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in stored.items()]
    x = helper.make_tensor_value_info("x", kind, [ROWS, WIDTH])
    y = helper.make_tensor_value_info("y", HALF, [ROWS, OUT])
    graph = helper.make_graph(nodes, "net", [x], [y], tensors, value_info=inside)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def _files(folder: Path, form: str, kind: int) -> tuple[Path, Path, Blocks]:
    """The float model, the quantized one, and its weight."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, OUT)).astype(np.float32) / 8
    blocks = to_blocks(weight, FORMATS[form])
    stored = {"w_codes": blocks.codes.T, "w_scales": blocks.scales.T}
    if form == "nvfp4":
        stored |= {"w_scale": np.float32(blocks.scale), "scale": SCALE}
    kinds = FLOAT if form == "nvfp4" else HALF
    restored = helper.make_tensor_value_info("restored", kinds, [ROWS, WIDTH])
    onnx.save(_model(_nodes(form), kind, stored, restored), folder / "quantized.onnx")
    plain = [
        helper.make_node("Cast", ["x"], ["wide"], "wide", to=FLOAT),
        helper.make_node("MatMul", ["wide", "w"], ["product"], "linear"),
        helper.make_node("Cast", ["product"], ["y"], "narrow", to=HALF),
    ]
    onnx.save(_model(plain, kind, {"w": weight}), folder / "plain.onnx")
    return folder / "plain.onnx", folder / "quantized.onnx", blocks


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_read(tmp_path: Path, form: str, kind: int) -> None:
    plain, quantized, blocks = _files(tmp_path, form, kind)
    assert [(g.decision, g.reason) for g in inspect(quantized).groups] == [
        (form, "Q/DQ pairs in the file")
    ]
    x = np.random.default_rng(1).standard_normal((ROWS, WIDTH))
    x = x.astype(helper.tensor_dtype_to_np_dtype(kind))
    wide, exact = x.astype(np.float32), numpy_helper.to_array(onnx.load(plain).graph.initializer[0])
    rounded = to_blocks(np.ascontiguousarray(wide.T), FORMATS[form]).values.T
    expected, reference = rounded @ blocks.values, wide @ exact
    noise = float(np.linalg.norm(expected - reference) / np.linalg.norm(reference))
    found = compare(plain, quantized, {"x": x}).worst.relative
    assert found == pytest.approx(noise, rel=0.02)

    bare = strip_qdq(quantized)
    onnx.checker.check_model(bare, full_check=True)
    onnx.save(bare, tmp_path / "bare.onnx")
    weights = wide @ blocks.values
    noise = float(np.linalg.norm(weights - reference) / np.linalg.norm(reference))
    found = compare(plain, tmp_path / "bare.onnx", {"x": x}).worst.relative
    assert found == pytest.approx(noise, rel=0.02)
