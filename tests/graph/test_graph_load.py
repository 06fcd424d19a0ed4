"""Files that are broken, odd or large: refused in one line, or read as what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal, run
from onnx import TensorProto, helper, numpy_helper

from fusewright import RandomSamples, optimize, strip_qdq
from fusewright.errors import ModelError, OutputError
from fusewright.graph import save as saving
from fusewright.graph.convert import to_model, to_proto
from fusewright.graph.load import fingerprint, load_weights, read_source
from fusewright.graph.save import save
from fusewright.pipeline.prepare import Preparation
from fusewright.pipeline.trace import Trace


def _convnet(opset: int = 17) -> onnx.ModelProto:
    net = Net(opset)
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    return net.proto(net.op("Relu", net.conv(x, 8, 8)))


def _saved(tmp_path: Path, proto: onnx.ModelProto, name: str = "net.onnx", **how: object) -> Path:
    path = tmp_path / name
    onnx.save(proto, path, **how)
    return path


def _prepared(path: Path):
    return Preparation(read_source(path), Trace()).run()


def _one_line(error: pytest.ExceptionInfo[ModelError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "net\udcff.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"net\\udcff\.onnx: the name is not text"):
        read_source(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_source(tmp_path / "absent.onnx")
    _one_line(error, "absent.onnx", "no such file")


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a model\n" * 40, b"PK\x03\x04zip"])
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_source(path)
    _one_line(error, "thing.onnx", "not an ONNX file")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused_or_fails_no_later_than_cleaning(
    tmp_path: Path, share: float
) -> None:
    whole = _convnet().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError) as error:
        optimize(path, tmp_path / "out.onnx", RandomSamples(1))
    _one_line(error)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.onnx"]


def test_every_cut_of_a_small_file_is_an_error_of_ours(tmp_path: Path) -> None:
    net = Net()
    proto = net.proto(net.op("Relu", net.input("x", 1, 4)))
    whole, path = proto.SerializeToString(), tmp_path / "cut.onnx"
    refused = 0
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        try:
            read_source(path)
        except ModelError:
            refused += 1
    # The opset import comes last: a file without it says nothing.
    assert refused == len(range(0, len(whole), 3))


@pytest.mark.parametrize("opset", [6, 25])
def test_opset_outside_the_range(tmp_path: Path, opset: int) -> None:
    proto = _convnet()
    proto.opset_import[0].version = opset
    with pytest.raises(ModelError) as error:
        read_source(_saved(tmp_path, proto))
    _one_line(error, f"opset {opset}", "7 to 24")


def test_no_standard_opset(tmp_path: Path) -> None:
    proto = _convnet()
    proto.opset_import[0].domain = "acme"
    with pytest.raises(ModelError, match="imports no standard operator set"):
        read_source(_saved(tmp_path, proto))


def test_cyclic_graph_names_a_node_of_the_cycle(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "cycle",
        [value("x", TensorProto.FLOAT, [1])],
        [value("b", TensorProto.FLOAT, [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = _saved(tmp_path, proto)
    with pytest.raises(ModelError, match="cycle through node 'first'"):
        to_model(proto, read_source(path))
    with pytest.raises(ModelError):
        optimize(path, tmp_path / "out.onnx", RandomSamples(1))
    assert not (tmp_path / "out.onnx").exists()


def test_missing_external_data(tmp_path: Path) -> None:
    path = _external(tmp_path, _convnet())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError) as error:
        read_source(path)
    _one_line(error, "net.onnx", "weights.bin", "is missing")


def test_short_external_data(tmp_path: Path) -> None:
    path = _external(tmp_path, _convnet())
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ModelError) as error:
        read_source(path)
    _one_line(error, "weights.bin", "too short")


def _external(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)  # saving moves the weights out of the proto at hand
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 64}
    return _saved(tmp_path, copy, **options)


def test_external_data_in_and_one_file_out(tmp_path: Path) -> None:
    proto = _convnet()
    path = _external(tmp_path, proto)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    source = read_source(path)
    assert any(t.data_location == onnx.TensorProto.EXTERNAL for t in source.proto.graph.initializer)
    assert_equal(proto, load_weights(source))
    out = tmp_path / "out.onnx"
    result = optimize(path, out, RandomSamples(4))
    assert result.plan.counts() == {"ConvBNAct": 2}
    assert onnx.load(out, load_external_data=False) == onnx.load(out)
    assert before.items() <= {p.name: p.read_bytes() for p in tmp_path.iterdir()}.items()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx", "weights.bin"]


def test_every_tensor_in_external_data(tmp_path: Path) -> None:
    """Saved with size_threshold=0: onnxruntime itself does not load such a Resize."""
    net = Net()
    x = net.op("Resize", net.input("x", 1, 4, 8, 8), None, [1.0, 1.0, 2.0, 2.0], mode="nearest")
    proto, path = net.proto(net.conv(x, 4, 4)), tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)
    result = optimize(path, tmp_path / "out.onnx", RandomSamples(2), precision="int8")
    assert result.plan.counts() == {"ConvBN": 1}
    assert not result.trace.undone()
    assert_equal(onnx.load(path), strip_qdq(result.model))


def test_standard_domain_spelled_out(tmp_path: Path) -> None:
    net = Net()
    proto, path = net.proto(net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4))), "net.onnx"
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / path)
    result = optimize(tmp_path / path, None, RandomSamples(2))
    assert result.plan.counts() == {"ConvBNAct": 1}
    assert [e.domain for e in result.model.opset_import] == ["", "fusewright"]
    assert not result.trace.undone()


def test_fingerprint_covers_external_data(tmp_path: Path) -> None:
    path = _external(tmp_path, _convnet())
    first = fingerprint(path, read_source(path).proto)
    data = tmp_path / "weights.bin"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert fingerprint(path, read_source(path).proto) != first


def test_over_two_gigabytes_goes_to_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The limit is lowered: the decision is what is tested, not protobuf.
    monkeypatch.setattr(saving, "_LARGEST", 1000)
    net = Net()
    y = net.op("Conv", net.input("x", 1, 4, 8, 8), net.draw(16, 4, 3, 3))
    proto = net.proto(y)
    path = tmp_path / "large.onnx"
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    save(proto, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert path.stat().st_size < 1000 < (tmp_path / "large.onnx.data").stat().st_size
    read_source(path)  # finds the data
    assert_equal(expected, onnx.load(path))


@pytest.mark.parametrize("out", ["weights.bin", "weights"])
def test_external_data_of_the_input_is_never_an_output(tmp_path: Path, out: str) -> None:
    path = _external(tmp_path, _convnet())
    if out == "weights":  # its own external data would be named weights.data
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "weights.data"
        (tmp_path / "weights.bin").rename(tmp_path / "weights.data")
        onnx.save(proto, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="never written to"):
        optimize(path, tmp_path / out, RandomSamples(1))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unnamed_nodes_go_by_their_first_output(tmp_path: Path) -> None:
    proto = _convnet()
    outputs = [node.output[0] for node in proto.graph.node]
    for node in proto.graph.node:
        node.name = ""
    path = _saved(tmp_path, proto)
    assert list(read_source(path).names) == outputs
    result = optimize(path, None, RandomSamples(2))
    assert [g.nodes for g in result.plan.groups] == [tuple(outputs[:2]), tuple(outputs[2:])]


def test_repeated_node_names_are_numbered(tmp_path: Path) -> None:
    # onnxruntime refuses such a file; graphsurgeon and TensorRT do not.
    original, proto = _convnet(), _convnet()
    for node, name in zip(proto.graph.node, ("same", "same", "same_2", "same"), strict=True):
        node.name = name
    path = _saved(tmp_path, proto)
    source = read_source(path)
    assert source.names == ("same", "same_3", "same_2", "same_4")
    result = optimize(path, None, RandomSamples(2), precision="fp32")
    assert [g.nodes for g in result.plan.groups] == [("same", "same_3"), ("same_2", "same_4")]
    assert_equal(original, result.model)


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    proto = _listed(_convnet(11))
    path = _saved(tmp_path, proto)
    source = read_source(path)
    assert [spec.name for spec in source.interface.inputs] == ["x"]
    result = optimize(path, None, RandomSamples(4))
    assert result.plan.counts() == {"ConvBNAct": 2}
    assert [v.name for v in result.model.graph.input] == ["x"]
    assert not result.trace.undone()


def test_batchnorm_folds_where_initializers_are_listed_as_inputs(tmp_path: Path) -> None:
    net = Net(9)
    x = net.op("Relu", net.batchnorm(net.conv(net.input("x", 1, 4, 8, 8), 8, 4), 8))
    path = _saved(tmp_path, _listed(net.proto(x)))
    result = optimize(path, None, RandomSamples(4))
    assert [g.ops for g in result.plan.groups] == [("Conv", "Relu")]


def _listed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """As IR version 3 demands it, and Caffe2 and older PyTorch write it."""
    for tensor in proto.graph.initializer:
        declared = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(declared)
    proto.ir_version = 3
    return proto


def test_identity_of_an_initializer_is_a_stored_tensor(tmp_path: Path) -> None:
    net = Net()
    weight = net.op("Identity", net.draw(8, 4, 3, 3))
    y = net.op("Relu", net.op("Conv", net.input("x", 1, 4, 8, 8), weight, pads=[1, 1, 1, 1]))
    proto = net.proto(y)
    model = _prepared(_saved(tmp_path, proto))
    assert [node.op for node in model.graph.nodes] == ["Conv", "Relu"]
    assert_equal(proto, model)


def test_constant_nodes_are_stored_tensors(tmp_path: Path) -> None:
    net = Net()
    weight = numpy_helper.from_array(net.random.standard_normal((8, 4, 3, 3)).astype(np.float32))
    y = net.op("Conv", net.input("x", 1, 4, 8, 8), net.op("Constant", value=weight))
    y = net.op("Mul", y, net.op("Constant", value_float=1.5))
    y = net.op("Reshape", y, net.op("Constant", value_ints=[1, -1]))
    proto = net.proto(y)
    model = _prepared(_saved(tmp_path, proto))
    assert "Constant" not in [node.op for node in model.graph.nodes]
    assert_equal(proto, model)
    unclean = to_model(proto, read_source(tmp_path / "net.onnx"))
    assert [node.op for node in unclean.graph.nodes] == ["Conv", "Mul", "Reshape"]
    assert_equal(proto, unclean)


def test_constant_that_is_an_output_stays(tmp_path: Path) -> None:
    net = Net()
    fixed = net.op("Constant", value_float=2.5, name="fixed")
    relu = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    proto = net.proto(relu, fixed)
    result = optimize(_saved(tmp_path, proto), None, RandomSamples(2), precision="fp32")
    assert [v.name for v in result.model.graph.output] == [relu, fixed]
    outputs = run(result.model, {"x": np.zeros((1, 4, 8, 8), np.float32)})
    assert float(outputs[1]) == 2.5


def test_what_the_file_says_of_itself_is_kept(tmp_path: Path) -> None:
    proto = _convnet()
    proto.producer_name, proto.producer_version = "acme", "3.1"
    proto.doc_string, proto.domain, proto.model_version = "a net", "org.acme", 7
    proto.graph.name, proto.graph.doc_string = "the graph", "its text"
    proto.metadata_props.add(key="classes", value="cat,dog")
    made = optimize(_saved(tmp_path, proto), tmp_path / "out.onnx", RandomSamples(2)).model
    assert onnx.load(tmp_path / "out.onnx") == made
    for name in ("producer_name", "producer_version", "doc_string", "domain", "model_version"):
        assert getattr(made, name) == getattr(proto, name), name
    assert made.graph.name == "the graph"
    assert made.graph.doc_string == "its text"
    assert {p.key: p.value for p in made.metadata_props}["classes"] == "cat,dog"


def test_only_used_operator_sets_are_imported(tmp_path: Path) -> None:
    proto = _convnet()
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    made = to_proto(_prepared(_saved(tmp_path, proto)).graph)
    assert [(e.domain, e.version) for e in made.opset_import] == [("", 17)]


def test_declared_shapes_are_kept_where_more_could_be_inferred(tmp_path: Path) -> None:
    proto = _convnet()
    del proto.graph.output[0].type.tensor_type.shape.dim[2:]
    for name in ("height", "width"):
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_param=name)
    path = _saved(tmp_path, proto)
    assert to_proto(_prepared(path).graph).graph.output == proto.graph.output
    assert optimize(path, None, RandomSamples(1)).model.graph.output == proto.graph.output
