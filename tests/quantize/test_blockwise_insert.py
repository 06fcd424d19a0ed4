"""Blocks in a graph: what is inserted, what the linter says of it, and taking it out again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from quantizing import planned, thresholds

from fusewright.graph.convert import to_proto
from fusewright.graph.session import open_session, run_session
from fusewright.graph.walk import peek
from fusewright.plan.decide import Rules
from fusewright.plan.plan import Plan
from fusewright.quantize.blockwise.insert import insert_blocks
from fusewright.quantize.blockwise.values import WEIGHT_REACHES, to_blocks
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.strip import strip_qdq
from fusewright.target import FORMATS
from fusewright.verify.blockwise import with_emulated_blocks

FORMS = pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])


def _inserted(form: str) -> tuple[Plan, Placement, np.ndarray]:
    """A Transpose, which no block may be moved through, in front of two Linears on one weight."""
    net = Net(23)
    x = net.op("Transpose", net.input("x", 2, 64, 8), perm=[0, 2, 1], name="turn")
    weight = net.draw(64, 48, name="w")
    first = net.op("MatMul", x, weight, name="first")
    second = net.op("MatMul", net.op("Relu", x), weight, name="second")
    values = net.stored[weight].copy()
    plan = planned(net, net.op("Add", first, second), rules=Rules(quantized=form))
    placement = place(plan)
    insert_blocks(plan.model.graph, placement, thresholds(placement))
    return plan, placement, values


@FORMS
def test_what_is_inserted(form: str) -> None:
    plan, placement, _ = _inserted(form)
    graph = plan.model.graph
    ops = [node.op for node in graph.nodes]
    restored = ops.count("DequantizeLinear"), ops.count("TRT_MXFP8DequantizeLinear")
    assert restored == ((6, 0) if form == "nvfp4" else (0, 3)), "two inputs, one weight"
    assert [site.tensor for site in placement.activations] == ["turn_y", "Relu_2_y"] or len(
        placement.activations
    ) == 2
    assert placement.observe.keys() == (
        {site.scale for site in placement.activations} if form == "nvfp4" else set()
    )
    assert ops.index("Transpose") < min(i for i, op in enumerate(ops) if "Dynamic" in op)
    assert lint(graph) == []
    assert {e.domain for e in to_proto(graph).opset_import} == {"", "trt"}


@FORMS
def test_taken_out_again(form: str) -> None:
    plan, _, values = _inserted(form)
    graph = plan.model.graph
    strip_qdq(graph)
    assert sorted(node.op for node in graph.nodes) == sorted(
        ["Transpose", "MatMul", "Relu", "MatMul", "Add"]
    )
    matmul = next(node for node in graph.nodes if node.op == "MatMul")
    found = peek(matmul.inputs[1])
    assert found.dtype == np.float32
    assert np.array_equal(found, to_blocks(values, FORMATS[form], WEIGHT_REACHES).values)


def test_the_linter_knows_a_bad_scale() -> None:
    plan, _, _ = _inserted("nvfp4")
    node = next(n for n in plan.model.graph.nodes if n.op == "TRT_FP4DynamicQuantize")
    node.inputs[1].values = np.zeros((), np.float32)
    assert any("not positive" in found.text for found in lint(plan.model.graph))


@FORMS
def test_the_linter_knows_a_bad_block(form: str) -> None:
    plan, _, _ = _inserted(form)
    node = next(n for n in plan.model.graph.nodes if "Dynamic" in n.op)
    node.attrs["block_size"] = 48
    assert any("blocks of 48" in found.text for found in lint(plan.model.graph))


@FORMS
def test_the_linter_knows_one_operand_alone(form: str) -> None:
    plan, _, _ = _inserted(form)
    node = next(n for n in plan.model.graph.nodes if n.name == "first")
    source = next(n for n in plan.model.graph.nodes if n.op == "Transpose")
    node.inputs[0] = source.outputs[0]
    assert any("one of its two operands" in found.text for found in lint(plan.model.graph))


@FORMS
@pytest.mark.parametrize(
    "shape",
    [(2, 4, 3, 64), ("batch", 4, 3, 64), ("batch", "height", "width", 64), (64,),
     ("batch", "features")],
)  # fmt: skip
def test_shapes_that_tensorrt_does_not_take(tmp_path: Path, form: str, shape: tuple) -> None:
    """Rows stand by themselves: the same rows in two dimensions give the same numbers."""
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 64)).astype(np.float32)
    x = x if len(shape) == 4 else x[0, 0, 0] if len(shape) == 1 else x.reshape(-1, 64)
    found = []
    for dims, rows in ((shape, x), (("rows", 64), x.reshape(-1, 64))):
        net = Net(23)
        y = net.op("MatMul", net.input("x", *dims), net.draw(64, 48))
        plan = planned(net, y, rules=Rules(quantized=form))
        placement = place(plan)
        insert_blocks(plan.model.graph, placement, dict.fromkeys(placement.observe, 4.0))
        assert lint(plan.model.graph) == []
        proto = to_proto(plan.model.graph)
        onnx.checker.check_model(proto, full_check=True)
        path = tmp_path / "model.onnx"
        onnx.save(with_emulated_blocks(proto, tmp_path), path)
        found.append(run_session(open_session(path), {"x": rows})[0])
        ops = [node.op_type for node in proto.graph.node]
        assert ops.count("Reshape") == (0 if dims == ("rows", 64) else 2)
        assert ops.count("Shape") == dims.count("height") + dims.count("features")
        if dims == ("batch", 4, 3, 64):
            values = {v.name: v.type.tensor_type.shape.dim for v in proto.graph.value_info}
            assert [d.dim_value for d in values["x_rows"]] == [0, 3, 64], "FP4 in TensorRT-RTX"
    assert found[0].shape == (*x.shape[:-1], 48)
    assert np.array_equal(found[0].reshape(-1, 48), found[1])
