"""A model without NVFP4 and MXFP8 computes, bit for bit, what they would."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright.errors import ModelError
from fusewright.graph.session import open_session, run_session
from fusewright.quantize.blockwise.values import to_blocks
from fusewright.target import FORMATS
from fusewright.verify.blockwise import holds_blocks, with_emulated_blocks

NVFP4, MXFP8 = FORMATS["nvfp4"], FORMATS["mxfp8"]
SHAPE = (3, 5, 64)


def _dynamic(form, kind: int, scale: float) -> list[onnx.NodeProto]:
    if form is NVFP4:
        return [
            helper.make_node(
                "TRT_FP4DynamicQuantize", ["x", "scale"], ["codes", "blocks"], "q", domain="trt",
                axis=-1, block_size=16, scale_type=TensorProto.FLOAT8E4M3FN,
            ),
            helper.make_node("DequantizeLinear", ["blocks", "scale"], ["steps"], "s"),
            helper.make_node(
                "DequantizeLinear", ["codes", "steps"], ["y"], "dq", axis=-1, block_size=16
            ),
        ]  # fmt: skip
    return [
        helper.make_node(
            "TRT_MXFP8DynamicQuantize", ["x"], ["codes", "blocks"], "q", domain="trt",
            axis=-1, block_size=32, output_dtype=TensorProto.FLOAT8E4M3FN,
        ),
        helper.make_node(
            "TRT_MXFP8DequantizeLinear", ["codes", "blocks"], ["y"], "dq", domain="trt",
            axis=-1, block_size=32, output_dtype=kind,
        ),
    ]  # fmt: skip


def _model(nodes, stored, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, kind, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _run(model: onnx.ModelProto, folder: Path, x: np.ndarray) -> np.ndarray:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return run_session(open_session(path), {"x": x})[0]


def _activations(dtype: type) -> np.ndarray:
    """Many on the border between two codes, blocks of zeros, small ones and large ones."""
    random = np.random.default_rng(0)
    codes = random.integers(-28, 29, SHAPE) / 4
    codes[..., 0], codes[..., 32] = 6, 448 / 64
    scales = np.exp2(random.integers(-9, 3, (*SHAPE[:2], 1)))
    values = codes * scales
    values[0, 0] = 0
    values[1] = random.standard_normal((5, 64))
    return values.astype(dtype)


@pytest.mark.parametrize("form", [NVFP4, MXFP8], ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_activations(tmp_path: Path, form, dtype: type) -> None:
    x = _activations(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    expected = to_blocks(np.ascontiguousarray(x.reshape(-1, 64).T), form)
    scale = numpy_helper.from_array(np.asarray(expected.scale, dtype), "scale")
    model = _model(_dynamic(form, kind, expected.scale), [scale], kind)
    assert holds_blocks(model)
    emulated = with_emulated_blocks(model, tmp_path)
    assert not holds_blocks(emulated) and holds_blocks(model)
    found = _run(emulated, tmp_path, x)
    assert found.dtype == dtype
    assert np.array_equal(found, expected.values.T.reshape(SHAPE).astype(dtype))


def test_beyond_the_threshold_scales_saturate(tmp_path: Path) -> None:
    scale = np.float32(2.0**-8)
    stored = [numpy_helper.from_array(np.asarray(scale), "scale")]
    x = np.full(SHAPE, 100.0, np.float32)
    found = _run(with_emulated_blocks(_model(_dynamic(NVFP4, 1, 0), stored), tmp_path), tmp_path, x)
    assert np.all(found == 6 * 448 * scale)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("form", [NVFP4, MXFP8], ids=lambda f: f.name)
def test_weights(tmp_path: Path, form, dtype: type, axis: int) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 48)).astype(dtype)
    blocks = to_blocks(weight, form)
    codes, scales = (a.T if axis else a for a in (blocks.codes, blocks.scales))
    stored = [
        numpy_helper.from_array(np.ascontiguousarray(codes), "codes"),
        numpy_helper.from_array(np.ascontiguousarray(scales), "scales"),
        numpy_helper.from_array(np.asarray(blocks.scale, dtype), "scale"),
    ]
    kind, attrs = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), {"axis": axis}
    if form is NVFP4:
        nodes = [
            helper.make_node("DequantizeLinear", ["scales", "scale"], ["steps"]),
            helper.make_node("DequantizeLinear", ["codes", "steps"], ["w"], block_size=16, **attrs),
        ]
    else:
        attrs |= {"block_size": 32, "output_dtype": kind}
        op = "TRT_MXFP8DequantizeLinear"
        nodes = [helper.make_node(op, ["codes", "scales"], ["w"], domain="trt", **attrs)]
    model = _model([*nodes, helper.make_node("Add", ["x", "w"], ["y"])], stored, kind)
    emulated = with_emulated_blocks(model, tmp_path)
    assert [node.op_type for node in emulated.graph.node] == ["Add"]
    found = _run(emulated, tmp_path, np.zeros((1, 1), dtype))
    assert np.array_equal(found.T if axis else found, blocks.values.astype(dtype))


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], [])
    assert with_emulated_blocks(model, tmp_path) is model


def test_codes_for_another_operator(tmp_path: Path) -> None:
    nodes = _dynamic(MXFP8, 1, 1.0)
    nodes[1] = helper.make_node("Cast", ["codes"], ["y"], "other", to=1)
    with pytest.raises(ModelError, match="'other' reads the codes of 'q'"):
        with_emulated_blocks(_model(nodes, []), tmp_path)


def test_the_grid_is_that_of_the_types() -> None:
    """The emulation's steps against ml_dtypes' own rounding, on every border."""
    values = np.arange(-7, 7.125, 0.125, np.float32)
    steps = np.where(np.abs(values) < 2, 0.5, np.where(np.abs(values) < 4, 1.0, 2.0))
    mine = np.clip(np.rint(np.clip(values, -6, 6) / steps) * steps, -6, 6)
    theirs = values.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(mine, theirs)
