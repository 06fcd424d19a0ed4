"""Damaged files: what each road would answer in its own way is one line, on load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright.errors import ModelError
from fusewright.graph.load import read_source
from fusewright.pipeline import inspect

Change = Callable[[onnx.ModelProto], None]
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]


def _model() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Conv", ["x", "wwww"], ["aaaa"], "nnnn"),
        helper.make_node("Relu", ["aaaa"], ["y"], "relu"),
    ]
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "wwww")
    graph = helper.make_graph(nodes, "gggg", [x], [y], [weight], doc_string="ssss")
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8, producer_name="pppp")
    model.metadata_props.add(key="kkkk", value="v")
    return model


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes, last = [], "a"
    for i, op in enumerate(calls):
        out = "b" if i == len(calls) - 1 else f"t{i}"
        nodes.append(helper.make_node(op, [last], [out], domain="" if op == "Relu" else "loc"))
        last = out
    return helper.make_function("loc", name, ["a"], ["b"], nodes, OPSETS)


def _calling(first: str, *functions: onnx.FunctionProto) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.functions.extend(functions)
        model.graph.node[1].op_type, model.graph.node[1].domain = first, "loc"

    return change


def _bomb(depth: int, width: int = 2) -> tuple[onnx.FunctionProto, ...]:
    chain = [_function(f"F{i}", *[f"F{i + 1}"] * width) for i in range(depth)]
    return (*chain, _function(f"F{depth}", "Relu"))


def _set(**fields: object) -> Change:
    """Fields of the stored weight."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)  # type: ignore[arg-type]
            else:
                setattr(tensor, name, value)

    return change


def _add(op: str, reads: list[str], writes: list[str]) -> Change:
    return lambda m: m.graph.node.append(helper.make_node(op, reads, writes, "added"))


def _with_constant(dims: list[int], values: list[float]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node("Constant", [], ["c"], "const")
        tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=dims, float_data=values)
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
        model.graph.node.append(node)

    return change


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def _declared(kind: int, part: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        value = helper.make_tensor_value_info("aaaa", kind, [1])
        if part == "input":
            value.name = "more"
        getattr(model.graph, part).append(value)

    return change


def _with_attribute(**fields: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.add(name="odd", **fields)

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "too few values": (_set(dims=[4, 3, 3, 5]), "'wwww' has 432 bytes, its shape [4, 3, 3, 5]"),
    "negative dimension": (_set(dims=[-4, 3, 3, 3]), "has shape [-4, 3, 3, 3]"),
    "unknown type": (_set(data_type=99), "element type 99"),
    "no type": (_set(data_type=0), "element type 0"),
    "a Constant of another shape": (_with_constant([3], [1.0]), "'t' has 1 entries in float_data"),
    "a node without outputs": (_add("Relu", ["x"], []), "node 'added' (Relu) has no output"),
    "a node with an unnamed output": (_add("Relu", ["x"], [""]), "has no output"),
    "written twice": (_add("Relu", ["x"], ["aaaa"]), "writes 'aaaa', and so does node 'nnnn'"),
    "an input written": (_add("Relu", ["aaaa"], ["x"]), "writes 'x', and so does the model"),
    "a weight written": (_add("Relu", ["aaaa"], ["wwww"]), "writes 'wwww'"),
    "read of nothing": (_add("Relu", ["zzz"], ["b"]), "reads 'zzz', which nothing writes"),
    "output of nothing": (
        lambda m: setattr(m.graph.output[0], "name", "q"),
        "nothing writes the output 'q'",
    ),
    "an unknown type inside": (
        _declared(255, "value_info"),
        "'aaaa' is declared with element type",
    ),
    "an unknown type of an input": (
        _declared(99, "input"),
        "'more' is declared with element type 99",
    ),
    "an attribute without a type": (_with_attribute(i=1), "attribute 'odd' of node"),
    "an attribute without its tensor": (
        _with_attribute(type=onnx.AttributeProto.TENSOR),
        "(Conv) has no value",
    ),
    "an input twice": (_second_input, "two inputs are named 'x'"),
    "no operator set": (lambda m: m.ClearField("opset_import"), "imports no operator set"),
    "a function that calls itself": (_calling("F", _function("F", "F")), "F → F"),
    "two that call each other": (
        _calling("F", _function("F", "G"), _function("G", "F")),
        "call themselves",
    ),
    "a function's node without outputs": (
        _calling("F", _function("F", "Relu"), _function("H", "Relu", "Relu")),
        "has no output",
    ),
    "functions that double": (_calling("F0", *_bomb(40)), "unfold to more than"),
    "a few that do": (_calling("F0", *_bomb(16)), "unfold to more than 20000 nodes"),
    "functions deep inside each other": (_calling("F0", *_bomb(3000, 1)), "inside each other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    model = _model()
    change(model)
    if "node without outputs" in name and model.functions:
        del model.functions[-1].node[-1].output[:]
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    start = time.perf_counter()
    with pytest.raises(ModelError) as error:
        read_source(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert words in text
    assert time.perf_counter() - start < 5


def test_functions_that_unfold_to_what_can_be_handled_are_read(tmp_path: Path) -> None:
    model = _model()
    _calling("F0", *_bomb(4))(model)
    onnx.save(model, tmp_path / "net.onnx")
    assert len(inspect(tmp_path / "net.onnx").groups) == 1


NAMES = {
    "operator": (b"Conv", "NodeProto.op_type"),
    "tensor": (b"wwww", "NodeProto.input"),
    "node": (b"nnnn", "NodeProto.name"),
    "dimension": (b"width", "Dimension.dim_param"),
    "graph": (b"gggg", "GraphProto.name"),
    "key": (b"kkkk", "StringStringEntryProto.key"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_utf8(name: str, tmp_path: Path) -> None:
    old, where = NAMES[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(_model().SerializeToString().replace(old, b"\xff" + old[1:]))
    with pytest.raises(ModelError, match="is not UTF-8") as error:
        read_source(path)
    assert where in str(error.value) and str(error.value).startswith(str(path))


@pytest.mark.parametrize("old", [b"pppp", b"ssss"], ids=["producer", "doc string"])
def test_texts_that_nothing_computes_by_may_be_in_any_encoding(old: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(_model().SerializeToString().replace(old, b"J\xf6rg"))
    assert len(inspect(path).groups) == 1
