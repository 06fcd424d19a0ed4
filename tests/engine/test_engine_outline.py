"""The flat view of a file: TensorRT's names, groups, and what is quantized."""

from __future__ import annotations

import engine_models
import finding_models
import onnx
import pytest
from onnx import TensorProto, helper

from fusewright.engine.attribution import kernels_by_group
from fusewright.engine.describe import describe
from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.outline import Outline, kind_of
from fusewright.engine.types import formats_of


def test_nodes_of_calls_are_named_as_tensorrt_names_them() -> None:
    outline = Outline(engine_models.parallel_convs(collapsed=True))
    assert outline.heavy() == tuple(f"conv | {g} (ConvAct_0)" for g in ("left", "right", "after"))
    assert set(outline.kinds) == {"left", "right", "after"}
    conv = outline.nodes["conv | left (ConvAct_0)"]
    assert conv.group == "left" and conv.op == "Conv"
    assert [node.name for node in outline.before(conv)] == ["x_dq", "left_w_dq"]
    (relu,) = outline.after(conv)
    assert [node.name for node in outline.after(relu)] == ["left_out_q"]


@pytest.mark.parametrize("collapsed", [False, True])
def test_what_a_conv_is_quantized_as(collapsed: bool) -> None:
    outline = Outline(engine_models.parallel_convs(collapsed))
    for name in outline.heavy():
        # Through the Concat in front of the third.
        assert outline.planned(outline.nodes[name]) == ("Int8", "Int8")


def test_a_float_operand_is_not_quantized() -> None:
    outline = Outline(engine_models.weight_only())
    (name,) = outline.heavy()
    assert outline.planned(outline.nodes[name]) == (None, "Int8")
    assert outline.is_stored(outline.nodes[name].reads[1])
    assert not outline.is_stored("x")


def test_kinds_of_functions() -> None:
    assert [kind_of(name) for name in ("ConvBNAct", "ConvBNAct_12", "Linear_3")] == [
        "ConvBNAct",
        "ConvBNAct",
        "Linear",
    ]


def test_a_group_that_moves_nothing_has_the_kernel_in_front_of_it() -> None:
    """A Reshape call between two others is in nobody's list of nodes."""
    body = [helper.make_node("Reshape", ["x", "s"], ["y"], "r")]
    domain, opsets = "fusewright", [helper.make_opsetid("", 19)]
    function = helper.make_function(domain, "SwinWindowPartition", ["x", "s"], ["y"], body, opsets)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("SwinWindowPartition", ["a", "shape"], ["b"], "part", domain=domain),
        helper.make_node("Sin", ["b"], ["c"], "sin"),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "c")]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [-1])
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [shape])
    imports = [*opsets, helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function])
    t = [TensorType(name, "Float", (4,)) for name in "abc"]
    kernels = [
        Kernel("first", "kgen", (t[0],), (t[1],), (), ("relu",)),
        Kernel("second", "kgen", (t[1],), (t[2],), (), ("sin",)),
    ]
    outline = Outline(model)
    plan = describe(kernels, outline)
    (group,) = plan.groups
    assert group.merged and group.kernels == (0,)
    # Where nothing writes it, the kernel behind it.
    plan = describe(kernels[1:], outline)
    assert kernels_by_group(plan.kernels, outline, outline.kinds) == {"part": (0,)}


def test_formats_of_a_file() -> None:
    assert formats_of(engine_models.one_conv()) == {"int8"}
    assert formats_of(engine_models.one_conv(quantized=False)) == {"int8"}  # its spare zero-point
    half = finding_models.attention(finding_models.ATTENTIONS["half"])
    assert formats_of(half) == {"fp16"}
    plain = finding_models.attention(finding_models.ATTENTIONS["float"])
    assert formats_of(plain) == set()
    plain.graph.node.append(helper.make_node("Cast", ["q"], ["z"], to=TensorProto.BFLOAT16))
    assert formats_of(plain) == {"bf16"}
    assert isinstance(plain, onnx.ModelProto)
