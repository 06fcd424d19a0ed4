"""`tools/int8_ops.py`: which heavy ops are in INT8, whose they are, and back to float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from int8_ops import by_original_name, count_int8, owners, put_back

PAIR = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"
HEAD = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.1}, int8 z = {0}, float[2,2,1,1] w = {0.31,-0.12,0.08,0.2},
 float[2,2,1,1] v = {0.5,0.5,-0.5,0.1}, int8[2,2,1,1] wq = {3,-1,1,2},
 int8[2,2,1,1] vq = {5,5,-5,1}>
"""
FLOAT = "[a] t = Conv(x, w) r = Relu(t) m = Identity(r) [b] y = Conv(m, v)"
WEIGHTS = "wd = DequantizeLinear(wq, s, z) vd = DequantizeLinear(vq, s, z)"
QUANTIZED = (
    f"{WEIGHTS} {PAIR.format('x')} [a] t = Conv(xd, wd) {PAIR.format('t')} r = Relu(td)"
    f" {PAIR.format('r')} m = Identity(rd) [b] y = Conv(m, vd)"
)
CASES = {
    "both operands": (f"{WEIGHTS} {PAIR.format('x')} y = Conv(xd, wd)", 1),
    "weight alone": (f"{WEIGHTS} y = Conv(x, wd)", 0),
    "input alone": (f"{PAIR.format('x')} y = Conv(xd, w)", 0),
    "through a move": (f"{WEIGHTS} {PAIR.format('x')} b = Identity(xd) y = Conv(b, wd)", 1),
    "through arithmetic": (f"{WEIGHTS} {PAIR.format('x')} b = Relu(xd) y = Conv(b, wd)", 0),
    "two computed": (f'{PAIR.format("x")} y = Einsum <equation="bchw,bcwk->bchk"> (xd, xd)', 1),
}
IMAGE = np.linspace(-3, 3, 32, dtype=np.float32).reshape(1, 2, 4, 4)


def _model(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEAD} {{ {body} }}")


def _run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": IMAGE})[0])


def _int8(model: onnx.ModelProto) -> dict[str, bool]:
    found = by_original_name(model.graph, _model(FLOAT).graph)
    return {name: int8 for name, (_, int8) in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_count_int8(case: str, tmp_path: Path) -> None:
    body, expected = CASES[case]
    onnx.save(_model(body), tmp_path / "m.onnx")
    assert count_int8(tmp_path / "m.onnx") == (expected, 1)


def test_names_of_another_tool() -> None:
    merged = _model(QUANTIZED)
    next(n for n in merged.graph.node if n.name == "a").name = "a/MatMulAddFusion"
    assert _int8(merged) == {"a": True, "b": True}
    merged.graph.node[-1].name = "c"
    with pytest.raises(ValueError, match="Conv 'c' is not in the float model"):
        _int8(merged)


def test_all_put_back_is_the_float_model() -> None:
    model = _model(QUANTIZED)
    assert not np.allclose(_run(model), _run(_model(FLOAT)), atol=1e-3)
    back = put_back(model, _model(FLOAT).graph, {"a", "b"})
    assert _int8(back) == {"a": False, "b": False}
    np.testing.assert_array_equal(_run(back), _run(_model(FLOAT)))
    assert _int8(model) == {"a": True, "b": True}, "the model that was given stays"


def test_one_put_back_leaves_the_other() -> None:
    back = put_back(_model(QUANTIZED), _model(FLOAT).graph, {"a"})
    assert _int8(back) == {"a": False, "b": True}
    # Its pairs before, on the weights and behind are gone; that of the other's input stays.
    same = f"{WEIGHTS} [a] t = Conv(x, w) r = Relu(t) {PAIR.format('r')} [b] y = Conv(rd, vd)"
    np.testing.assert_array_equal(_run(back), _run(_model(same)))


def test_weights_of_another_model_are_not_put_back() -> None:
    other = _model(FLOAT.replace("(x, w)", "(x, v)"))
    with pytest.raises(ValueError, match="'wq' is not 'v' of the float model, rounded"):
        put_back(_model(QUANTIZED), other.graph, {"a"})


def test_a_pair_that_serves_two_ops_as_output_and_input_stays() -> None:
    direct = f"{WEIGHTS} {PAIR.format('x')} [a] t = Conv(xd, wd) {PAIR.format('t')}"
    back = put_back(_model(f"{direct} [b] y = Conv(td, vd)"), _model(FLOAT).graph, {"a"})
    assert _int8(back) == {"a": False, "b": True}


def test_a_pair_that_nothing_in_int8_needs_goes_for_all_readers() -> None:
    shared = f"{WEIGHTS} {PAIR.format('x')} [a] t = Conv(xd, wd) i = Identity(xd) y = Add(t, i)"
    original = "[a] t = Conv(x, w) y = Add(t, x)"
    back = put_back(_model(shared), _model(original).graph, {"a"})
    np.testing.assert_array_equal(_run(back), _run(_model(original)))


def test_a_pair_that_another_op_needs_goes_for_arithmetic_alone() -> None:
    line = "{} {} [a] t = Conv({x}, {w}) [b] u = Conv({xd}, {vd}) e = Add(t, u) y = Add(e, {x})"
    names = {"x": "xd", "w": "wd", "xd": "xd", "vd": "vd"}
    model = _model(line.format(WEIGHTS, PAIR.format("x"), **names))
    original = line.format("", "", x="x", w="w", xd="x", vd="v")
    back = put_back(model, _model(original).graph, {"a"})
    names |= {"x": "x", "w": "w"}
    np.testing.assert_array_equal(
        _run(back), _run(_model(line.format(WEIGHTS, PAIR.format("x"), **names)))
    )


def _group(name: str, kind: str, nodes: list[str], weights: bool) -> dict[str, Any]:
    return {"name": name, "kind": kind, "nodes": nodes, "weights": [1] if weights else []}


def test_owner_of_a_node_in_several_groups() -> None:
    body = "[p] q = Conv(x, w) [core] y = MatMul(q, q)"
    groups = [
        _group("norm", "LayerNorm", ["p"], False),
        _group("projection", "MHAInProjection", ["p", "core"], True),
        _group("attention", "ScaledDotProductAttention", ["core", "p"], False),
    ]
    found = owners({"groups": groups}, _model(body).graph)
    assert {name: group["name"] for name, group in found.items()} == {
        "p": "projection",
        "core": "attention",
    }
    assert owners({"groups": groups[:1]}, _model(body).graph) == {}
