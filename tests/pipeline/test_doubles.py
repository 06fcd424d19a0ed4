"""Models that compute in FP64 are read as FP32 where the results stay; else a note says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from building import run as run_proto
from onnx import TensorProto

from fusewright.calibrate import RandomSamples
from fusewright.errors import VerifyError
from fusewright.pipeline import inspect, optimize

FP64, FP32 = TensorProto.DOUBLE, TensorProto.FLOAT
_READ = "its FP64 is read as FP32: TensorRT computes FP64 as FP32 wherever it stands"


def _linear(net: Net, x: str, dtype: type = np.float64) -> str:
    return net.op("Relu", net.op("MatMul", x, net.draw(16, 16, dtype=dtype)))


def _all(net: Net) -> str:
    return _linear(net, _linear(net, net.input("x", 4, 16, dtype=np.float64)))


def _between_casts(net: Net) -> str:
    x = net.op("Cast", net.input("x", 4, 16), to=FP64)
    return net.op("Cast", _linear(net, x), to=FP32)


def _scaled_in_the_middle(net: Net) -> str:
    x = net.op("Cast", _linear(net, net.input("x", 4, 16), np.float32), to=FP64)
    x = net.op("Mul", x, net.store(1.5, dtype=np.float64))
    return _linear(net, net.op("Cast", x, to=FP32), np.float32)


def _lowest_as_a_mask(net: Net) -> str:
    x = net.op("Cast", net.input("x", 4, 16), to=FP64)
    lowest = net.store(np.finfo(np.float64).min, dtype=np.float64)
    return net.op("Cast", _linear(net, net.op("Max", x, lowest)), to=FP32)


def _inside_a_branch(net: Net) -> str:
    x = net.input("x", 4, 16)
    ends = [onnx.helper.make_tensor_value_info("t", FP32, [4, 16])]
    steps = [
        onnx.helper.make_node("Cast", [x], ["a"], to=FP64),
        onnx.helper.make_node("Tanh", ["a"], ["b"]),
        onnx.helper.make_node("Cast", ["b"], ["t"], to=FP32),
    ]
    body = onnx.helper.make_graph(steps, "b", [], ends)
    which = net.input("which", dtype=np.bool_)
    return _linear(net, net.op("If", which, then_branch=body, else_branch=body), np.float32)


READ: dict[str, Callable[[Net], str]] = {
    "inputs, weights and outputs": _all,
    "between Casts": _between_casts,
    "in the middle": _scaled_in_the_middle,
    "a mask of the lowest": _lowest_as_a_mask,
    "in a branch": _inside_a_branch,
}


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp16", "fp8"])
@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_fp32(name: str, precision: str, tmp_path: Path) -> None:
    net = Net(opset=19)
    before = net.proto(READ[name](net))
    onnx.save(before, tmp_path / "m.onnx")
    data = RandomSamples(8)
    result = optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", data, precision=precision)
    made = onnx.load(tmp_path / "o.onnx")
    assert _ends(made) == _ends(before), "the interface is what it was"
    assert _READ in result.notes
    assert not result.trace.undone()
    wanted = {"float"} if precision == "fp16" else {precision.partition("+")[0]}
    assert {group.decision for group in result.plan.groups} == wanted
    assert not {t.data_type for t in made.graph.initializer} & {FP64}
    feed = {"x": np.random.default_rng(1).standard_normal((4, 16)), "which": np.array(True)}
    kinds = {v.name: v.type.tensor_type.elem_type for v in before.graph.input}
    feed = {n: feed[n].astype(onnx.helper.tensor_dtype_to_np_dtype(k)) for n, k in kinds.items()}
    (one,), (other,) = (run_proto(model, feed) for model in (before, made))
    bound = {"fp16": 1e-2, "fp8": 0.15}.get(precision, 0.06)
    assert one.dtype == other.dtype
    assert np.linalg.norm(one - other) <= bound * np.linalg.norm(one)
    looked = inspect(tmp_path / "m.onnx", precision=precision)
    assert _READ in looked.model.notes and {g.decision for g in looked.groups} == wanted


def _ends(model: onnx.ModelProto) -> list[tuple[str, int]]:
    ends = (*model.graph.input, *model.graph.output)
    return [(value.name, value.type.tensor_type.elem_type) for value in ends]


def test_what_needs_fp64_stays_with_the_reason(tmp_path: Path) -> None:
    net = Net(opset=19)
    x = net.op("Cast", net.input("x", 4, 16), to=FP64)
    large = net.store(1e9, dtype=np.float64)
    x = net.op("Cast", net.op("Sub", net.op("Add", x, large), large), to=FP32)
    onnx.save(net.proto(_linear(net, x, np.float32)), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", RandomSamples(4))
    (note,) = [note for note in result.notes if "FP64" in note]
    assert note.startswith("its FP64 stays FP64, for as FP32 it gives other results (")
    assert [group.decision for group in result.plan.groups] == ["int8"]
    assert result.accuracy is not None and result.accuracy.worst.sqnr_db > 25
    with pytest.raises(VerifyError, match="FP64 as FP32 changes the model's results"):
        optimize(tmp_path / "m.onnx", None, RandomSamples(4), strict=True)


def test_what_onnxruntime_lacks_in_fp64_is_taken_unproven_and_says_so(tmp_path: Path) -> None:
    net = Net(opset=19)
    x = net.input("x", 1, 16, 8, 8, dtype=np.float64)
    weight = net.draw(32, 16, 3, 3, dtype=np.float64)
    onnx.save(net.proto(net.op("Conv", x, weight, name="stem")), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", RandomSamples(4))
    assert [group.decision for group in result.plan.groups] == ["int8"]
    (note,) = [note for note in result.notes if "FP64" in note]
    assert note == (
        f"{_READ}; not compared with FP64 ('x' of node 'stem' is FP64, and onnxruntime's CPU has"
        " no Conv for it)"
    )


def _positions(net: Net, x: str) -> str:
    steps = net.op("Cast", net.op("Shape", x), to=FP64)
    return net.op("Cast", net.op("Div", steps, net.store(3.0, dtype=np.float64)), to=FP32)


STAY: dict[str, Callable[[Net, str], str]] = {
    "a stored tensor that is cast": lambda net, x: net.op(
        "Add", x, net.op("Cast", net.draw(1, 16, dtype=np.float64), to=FP32)
    ),
    "sizes": lambda net, x: net.op("Mul", x, net.op("ReduceSum", _positions(net, x), keepdims=0)),
    "a last Cast": lambda net, x: net.op("Cast", x, to=FP64),
}


@pytest.mark.parametrize("name", STAY)
def test_no_fp64_that_is_fed(name: str, tmp_path: Path) -> None:
    net = Net(opset=19)
    y = STAY[name](net, _linear(net, net.input("x", "n", 16), np.float32))
    onnx.save(net.proto(y), tmp_path / "m.onnx")
    assert not [n for n in inspect(tmp_path / "m.onnx").model.notes if "FP64" in n]


def test_beside_custom_operators_it_stays_and_a_note_says_so(tmp_path: Path) -> None:
    net = Net(opset=19)
    y = net.op("Frobnicate", _all(net), domain="acme")
    onnx.save(net.proto(y), tmp_path / "m.onnx")
    notes = inspect(tmp_path / "m.onnx").model.notes
    assert "FP64 beside custom operators stays FP64: nothing of it is quantized" in notes
