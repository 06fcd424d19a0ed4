"""A model with a dynamic batch is cleaned as far as a static one, and proven as every step is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, assert_equal, run

from fusewright import RandomSamples, optimize
from fusewright.calibrate import open_samples
from fusewright.errors import VerifyError
from fusewright.graph.fold_shapes import fold_shapes
from fusewright.graph.load import read_source
from fusewright.graph.model import Model
from fusewright.graph.symbolic import annotate
from fusewright.graph.workspace import Workspace, embed
from fusewright.pipeline import prepare
from fusewright.pipeline.prepare import Preparation
from fusewright.pipeline.proof import Proof
from fusewright.pipeline.trace import Silent, Trace
from fusewright.verify import Reference

INT = np.int64
END = [(1 << 63) - 1]


def _size(net: Net, x: str, axis: int) -> str:
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), INT(axis)), [0])


def _shape(net: Net, *parts: str | int) -> str:
    return net.op("Concat", *[[p] if isinstance(p, int) else p for p in parts], axis=0)


def _mask(net: Net, x: str) -> str:
    """torchvision's: zeros of the map's size, a region of which is filled, in windows."""
    size = _shape(net, _size(net, x, 1), _size(net, x, 2))
    rows = net.op("Range", INT(0), net.op("Squeeze", _size(net, x, 1), [0]), INT(1))
    rows = net.op("Unsqueeze", net.op("Slice", rows, [-3], END), [1])
    fill = net.op("Expand", 5.0, _shape(net, 3, _size(net, x, 2)))
    mask = net.op("ScatterND", net.op("ConstantOfShape", size), rows, fill)
    windows = net.op("Reshape", mask, _shape(net, 2, 4, 2, 4))
    return net.op("Reshape", net.op("Transpose", windows, perm=[0, 2, 1, 3]), [4, 16, 1])


def _windowed(net: Net, dtype: type = np.float32) -> str:
    """A Linear on windows with a mask, between layouts that are computed as Swin's are."""
    x = net.conv(net.input("x", "batch", 3, 16, 16, dtype=dtype), 6, 3, 2, strides=[2, 2],
                 pads=[0] * 4, dtype=dtype)  # fmt: skip
    x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    batch = _size(net, x, 0)
    parts = _shape(net, batch, 2, 4, 2, 4, _size(net, x, 3))
    y = net.op("Transpose", net.op("Reshape", x, parts), perm=[0, 1, 3, 2, 4, 5])
    count = net.op("Mul", batch, net.op("Mul", _size(net, y, 1), _size(net, y, 2)))
    y = net.op("Reshape", y, _shape(net, count, 16, 6))
    y = net.op("Add", net.op("MatMul", y, net.draw(6, 6, dtype=dtype)), net.draw(6, dtype=dtype))
    mask = _mask(net, x)
    mask = net.op("Cast", mask, to=10) if dtype == np.float16 else mask
    y = net.op("Reshape", y, _shape(net, net.op("Div", count, [4]), 4, 16, 6))
    y = net.op("Sigmoid", net.op("Add", y, mask))
    y = net.op("Reshape", y, _shape(net, batch, 2, 2, 4, 4, 6))
    y = net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    y = net.op("Reshape", y, net.op("Shape", x))
    size = net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), INT(1)), [0])
    return net.op("Relu", net.op("Slice", y, [0], size, [1]))


CLEANED = (
    "Conv Transpose Reshape Transpose Reshape MatMul Add Reshape Add Sigmoid Reshape Transpose"
    " Reshape Relu"
)


def _saved(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def _proto() -> onnx.ModelProto:
    net = Net()
    return net.proto(_windowed(net))


def _preparation(path: Path, strict: bool = False) -> Preparation:
    source, trace = read_source(path), Trace(Silent())
    feeds = open_samples(RandomSamples(2), source.interface.inputs).take(2)
    workspace = Workspace()
    proof = Proof(lambda: Reference(path, feeds, workspace.folder), trace, strict)
    return Preparation(source, trace, proof, workspace)


def _ops(proto: onnx.ModelProto) -> str:
    return " ".join(node.op_type for node in proto.graph.node)


def _assert_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype("f4")
        assert_equal(before, after, {"x": x})


@pytest.mark.parametrize("held", [True, False], ids=["weights in a workspace", "in memory"])
def test_shape_arithmetic_is_folded_and_its_masks(held: bool, tmp_path: Path) -> None:
    proto = _proto()
    preparation = _preparation(_saved(tmp_path, proto))
    if not held:
        preparation.workspace, preparation.proof = None, None
    cleaned = preparation._cleaned()
    assert _ops(cleaned) == CLEANED
    if preparation.workspace is not None:
        embed(cleaned, preparation.workspace)
    _assert_same(proto, cleaned)
    assert [v.name for v in cleaned.graph.input] == ["x"]


def test_shapes_are_named_behind_normalizing(tmp_path: Path) -> None:
    model = Preparation(read_source(_saved(tmp_path, _proto())), Trace(Silent())).run()
    annotate(model)
    shapes = {tuple(t.shape) for n in model.graph.nodes for t in n.outputs}
    assert ("4*batch", 16, 6) in shapes
    assert not any(None in shape for shape in shapes)
    assert tuple(model.graph.inputs[0].shape) == ("batch", 3, 16, 16)


def test_it_is_proven_and_noted(tmp_path: Path) -> None:
    preparation = _preparation(_saved(tmp_path, _proto()))
    preparation.run()
    assert preparation.proof is not None
    assert "clean" in preparation.proof.results
    noted = [e for e in preparation.trace if e.name == "shape arithmetic"]
    assert [e.what for e in noted] == ["pass"]
    assert noted[0].detail.endswith(f"→ {len(CLEANED.split())} nodes")
    assert not preparation.trace.undone()


def test_node_names_survive(tmp_path: Path) -> None:
    proto = _proto()
    cleaned = _preparation(_saved(tmp_path, proto))._cleaned()
    assert {n.name for n in cleaned.graph.node} <= {n.name for n in proto.graph.node}


def test_weights_are_not_written_again(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", 4, 64)
    y = net.op("Reshape", net.op("MatMul", x, net.draw(64, 64)), _shape(net, _size(net, x, 0), 256))
    # 12 KB that a constant is computed from, once the size is known.
    table = net.op("Slice", net.draw(48, 64), [0], _size(net, x, 1))
    y = net.op("Add", y, net.op("Reshape", table, [256]))
    preparation = _preparation(_saved(tmp_path, net.proto(y)))
    cleaned = preparation._cleaned()
    assert _ops(cleaned) == "MatMul Reshape Add"
    assert preparation.workspace is not None
    folder = preparation.workspace.folder
    assert (folder / "again.weights").stat().st_size < (folder / "clean.weights").stat().st_size
    kept = {t.name: t.external_data[0].value for t in cleaned.graph.initializer if t.external_data}
    assert sorted(kept.values()) == ["again.weights", "clean.weights"]


def test_a_static_model_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> int:
        raise AssertionError("a static model was folded")

    net = Net()
    x = net.input("x", 2, 12)
    y = net.op("Reshape", net.op("Relu", x), _shape(net, _size(net, x, 0), 3, 4))
    path = _saved(tmp_path, net.proto(y))
    monkeypatch.setattr(prepare, "fold_shapes", never)
    assert _ops(_preparation(path)._cleaned()) == "Relu Reshape"


def _wrong(model: Model) -> int:
    """A fold that puts the windows back in another order."""
    count = fold_shapes(model)
    [*_, last] = [n for n in model.graph.nodes if n.op == "Transpose"]
    last.attrs["perm"] = [0, 2, 3, 1, 4, 5]
    return count


def _broken(model: Model) -> int:
    """A fold behind which onnxruntime cannot load the model."""
    count = fold_shapes(model)
    target = next(n.inputs[1] for n in model.graph.nodes if n.op == "Reshape")
    target.values = np.array([7, 11], INT)
    return count


def test_wrong_folding_is_undone_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "fold_shapes", _wrong)
    proto = _proto()
    preparation = _preparation(_saved(tmp_path, proto))
    cleaned = preparation._cleaned()
    (event,) = preparation.trace.undone()
    assert (event.stage, event.name) == ("clean", "shape arithmetic")
    assert "Shape" in _ops(cleaned)
    assert preparation.workspace is not None
    _assert_same(proto, embed(cleaned, preparation.workspace))


def test_folding_that_onnxruntime_refuses_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "fold_shapes", _broken)
    preparation = _preparation(_saved(tmp_path, _proto()))
    assert "Shape" in _ops(preparation._cleaned())
    notes = {e.detail for e in preparation.trace if e.what == "note"}
    assert any(note.startswith("left: onnxruntime cannot load the model") for note in notes)


def test_wrong_folding_under_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "fold_shapes", _wrong)
    with pytest.raises(VerifyError, match="shape arithmetic"):
        _preparation(_saved(tmp_path, _proto()), strict=True)._cleaned()


def test_an_older_opset_is_converted_first(tmp_path: Path) -> None:
    net = Net(opset=11)
    x = net.input("x", "batch", 4, 6)
    size = net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), INT(0)), axes=[0])
    y = net.op("Softmax", net.op("Reshape", net.op("Relu", x), _shape(net, size, 24)), axis=1)
    proto = net.proto(y)
    cleaned = _preparation(_saved(tmp_path, proto))._cleaned()
    assert "Shape" not in _ops(cleaned)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 4, 6)).astype("f4")
        for one, other in zip(run(proto, {"x": x}), run(cleaned, {"x": x}), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_float16_model_stays_float16(tmp_path: Path) -> None:
    net = Net()
    proto = net.proto(_windowed(net, np.float16))
    preparation = _preparation(_saved(tmp_path, proto))
    cleaned = preparation._cleaned()
    assert _ops(cleaned) == CLEANED
    onnx.checker.check_model(cleaned)
    kinds = {t.data_type for t in cleaned.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


def test_custom_operators_and_what_follows_stay(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", 4, 6)
    y = net.op("Relu", net.op("Reshape", x, _shape(net, _size(net, x, 0), 24)))
    z = net.op("Mystery", y, domain="acme")
    z = net.op("Reshape", z, _shape(net, _size(net, y, 0), 4, 6))
    proto = net.proto(y, z)
    model = Preparation(read_source(_saved(tmp_path, proto)), Trace(Silent())).run()
    reshapes = {n.name: n for n in model.graph.nodes if n.op == "Reshape"}
    first, second = reshapes.values()
    assert isinstance(first.inputs[1], gs.Constant)
    assert second.inputs[1].inputs[0].op == "Concat"


def test_a_graph_too_large_to_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "WHOLE_UP_TO", 5)
    preparation = _preparation(_saved(tmp_path, _proto()))
    assert "Shape" in _ops(preparation._cleaned())
    notes = [e.detail for e in preparation.trace if e.name == "shape arithmetic"]
    assert notes == ["left: a graph too large"] * len(notes)
    assert notes


def test_the_whole_job_at_any_batch(tmp_path: Path) -> None:
    proto = _proto()
    result = optimize(_saved(tmp_path, proto), None, RandomSamples(4), precision="fp32")
    assert not result.trace.undone()
    _assert_same(proto, result.model)


def test_annotating_a_thousand_nodes_is_quick(tmp_path: Path) -> None:
    """A bound with room: 20 ms on an idle machine; the aim is 150."""
    import time

    net = Net()
    x = net.input("x", "batch", "seq", 12)
    for _ in range(250):
        y = net.op("Reshape", net.op("MatMul", x, net.draw(12, 12)), [0, 0, 3, 4])
        x = net.op("Add", x, net.op("Reshape", y, [0, 0, 12]))
    model = Preparation(read_source(_saved(tmp_path, net.proto(x))), Trace(Silent())).run()
    start = time.process_time()
    annotate(model)
    assert time.process_time() - start < 0.5
