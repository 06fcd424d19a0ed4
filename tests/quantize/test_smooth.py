"""Where SmoothQuant is possible, and the reason where it is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from quantizing import planned
from smoothing import C, linear, norm, places

from fusewright.plan.decide import Rules
from fusewright.quantize.smooth import Skip, Smoothing, plan_smoothing

Build = Callable[[Net], str | tuple[str, ...]]


def _input(net: Net, *shape: int | str) -> str:
    return net.input("x", *(shape or ("batch", 6, C)))


def _plain(net: Net) -> str:
    return linear(net, norm(net, _input(net)))


def _no_bias(net: Net) -> str:
    x = net.op("LayerNormalization", _input(net), net.positive(C), axis=-1, name="norm")
    return linear(net, x)


def _one_factor(net: Net) -> str:
    """A norm whose scale is a single number: it becomes a vector."""
    return linear(net, net.op("LayerNormalization", _input(net), [2.5], axis=-1, name="norm"))


def _two_readers(net: Net) -> tuple[str, ...]:
    x = norm(net, _input(net))
    return linear(net, x, name="q"), linear(net, x, name="k")


def _shape_is_read(net: Net) -> str:
    x = norm(net, _input(net))
    rows = net.op("Slice", net.op("Shape", x), [0], [1])
    target = net.op("Concat", rows, [-1], axis=0)
    return net.op("Reshape", linear(net, x), target)


def _token(net: Net) -> str:
    x = norm(net, _input(net))
    return linear(net, net.op("Gather", x, np.array(0), axis=1))


def _windows(net: Net) -> str:
    """Padding with zeros, a cyclic shift, windows of 3x3."""
    x = norm(net, _input(net, "batch", 5, 5, C))
    x = net.op("Pad", x, [0, 0, 0, 0, 0, 1, 1, 0])
    x = net.op(
        "Concat", net.op("Slice", x, [1], [6], [1]), net.op("Slice", x, [0], [1], [1]), axis=1
    )
    x = net.op("Transpose", net.op("Reshape", x, [-1, 2, 3, 2, 3, C]), perm=[0, 1, 3, 2, 4, 5])
    return linear(net, net.op("Reshape", x, [-1, 9, C]))


def _pooled(net: Net) -> str:
    x = net.op("Transpose", norm(net, _input(net, "batch", 4, 4, C)), perm=[0, 3, 1, 2])
    return linear(net, net.op("Flatten", net.op("GlobalAveragePool", x)))


def _mean(net: Net) -> str:
    return linear(net, net.op("ReduceMean", norm(net, _input(net)), axes=[1], keepdims=0))


def _rms(net: Net) -> str:
    """RMSNorm as opsets before 23 write it: what ends in a Mul by a vector."""
    x = _input(net)
    scale = net.op(
        "Sqrt", net.op("Add", net.op("ReduceMean", net.op("Mul", x, x), axes=[-1]), 1e-5)
    )
    return linear(net, net.op("Mul", net.op("Div", x, scale), net.positive(C), name="norm"))


def _mlp(net: Net) -> str:
    hidden = net.op("Relu", linear(net, _input(net), name="norm"))
    return linear(net, hidden, into=12, name="fc")


def _leaky(net: Net) -> str:
    hidden = net.op("LeakyRelu", linear(net, _input(net), name="norm"), alpha=0.1)
    return linear(net, hidden, into=12)


def _no_act(net: Net) -> str:
    hidden = net.op("Identity", linear(net, _input(net), name="norm"))
    return linear(net, hidden, into=12)


@pytest.mark.parametrize(
    "build",
    [
        _plain,
        _no_bias,
        _two_readers,
        _shape_is_read,
        _token,
        _windows,
        _pooled,
        _mean,
        _rms,
        _one_factor,
        _mlp,
        _leaky,
        _no_act,
    ],
)
def test_can_be_smoothed(build: Build) -> None:
    net = Net()
    outputs = build(net)
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    found = places(net, *outputs)
    (site,) = [place for place in found if isinstance(place, Smoothing)]
    assert "norm" in site.producer
    assert site.groups == (("q", "k") if build is _two_readers else ("fc",))
    assert site.channels == (12 if build in (_mlp, _leaky, _no_act) else C)
    assert len(site.weights) == len(site.groups)


def test_what_is_divided_and_what_changes() -> None:
    net = Net()
    plan = planned(net, _windows(net))
    (site,) = plan_smoothing(plan)
    assert isinstance(site, Smoothing)
    assert site.divided == (("norm", 1), ("norm", 2))
    nodes = {node.name: node for node in plan.model.graph.nodes}
    (read,) = site.observe
    assert read == nodes["fc"].inputs[0].name
    between = {t.name for n in nodes.values() for t in n.outputs} - {"fc_y"}
    assert set(site.changed) == {n for n in between if not n.startswith("Add")}


def test_a_linear_in_front_gives_its_bias_too() -> None:
    net = Net()
    found = places(net, _mlp(net))
    (site,) = [place for place in found if isinstance(place, Smoothing)]
    assert [slot for _, slot in site.divided] == [1, 1]
    assert {node.partition("_")[0] for node, _ in site.divided} == {"norm", "Add"}


def _residual(net: Net) -> str:
    x = norm(net, _input(net))
    return net.op("Add", linear(net, x, out=C), x, name="residual")


def _output(net: Net) -> tuple[str, ...]:
    x = norm(net, _input(net))
    return linear(net, x), x


def _float_reader(net: Net) -> tuple[str, ...]:
    x = norm(net, _input(net))
    return linear(net, x), linear(net, x, name="kept")


def _second_operand(net: Net) -> str:
    x = norm(net, _input(net, 1, C, C))
    return net.op("MatMul", linear(net, x, out=C), x, name="product")


def _gelu(net: Net) -> str:
    net.opset = 20
    hidden = net.op("Gelu", linear(net, _input(net), name="first"))
    return linear(net, hidden, into=12)


def _clipped(net: Net) -> str:
    hidden = net.op("Clip", linear(net, _input(net), name="first"), 0.0, 6.0)
    return linear(net, hidden, into=12)


def _attention(net: Net) -> str:
    q, v = net.input("q", 1, 6, 6), net.input("v", 1, 6, C)
    return linear(net, net.op("MatMul", net.op("Softmax", q), v, name="core"))


def _first(net: Net) -> str:
    return linear(net, _input(net))


def _behind_add(net: Net) -> str:
    return linear(net, net.op("Add", norm(net, _input(net)), net.input("y", 1, 6, C), name="sum"))


def _split_channels(net: Net) -> str:
    x = net.op("Reshape", norm(net, _input(net)), [-1, 6, 2, C // 2], name="heads")
    return linear(net, x, into=C // 2)


def _split_linear(net: Net) -> str:
    hidden = net.op("Relu", linear(net, _input(net), name="first"))
    return linear(net, net.op("Reshape", hidden, [-1, 6, 3, 4]), into=4)


def _split_for_one(net: Net) -> tuple[str, ...]:
    x = norm(net, _input(net))
    heads = net.op("Reshape", x, [-1, 6, 2, C // 2], name="heads")
    return linear(net, x), linear(net, heads, into=C // 2, name="other")


def _transposed(net: Net) -> str:
    x = net.op("Transpose", norm(net, _input(net, "batch", C, C)), perm=[0, 2, 1])
    return linear(net, x)


def _part(net: Net) -> str:
    x = net.op("Slice", norm(net, _input(net)), [0], [C // 2], [2], name="part")
    return linear(net, x, into=C // 2)


def _padded_with_ones(net: Net) -> str:
    x = net.op("Pad", norm(net, _input(net)), [0, 1, 0, 0, 1, 0], 1.0, name="pad")
    return linear(net, x)


def _padded_channels(net: Net) -> str:
    x = net.op("Pad", norm(net, _input(net)), [0, 0, 1, 0, 0, 1], name="pad")
    return linear(net, x, into=C + 2)


def _other_values(net: Net) -> str:
    x = net.op("Concat", norm(net, _input(net)), net.input("y", "batch", 1, C), axis=1, name="cat")
    return linear(net, x)


def _stored_values(net: Net) -> str:
    x = net.op("Concat", norm(net, _input(net, 2, 6, C)), net.draw(2, 1, C), axis=1, name="cat")
    return linear(net, x)


def _computed_scale(net: Net) -> str:
    x = net.op("LayerNormalization", _input(net), net.input("gamma", C), axis=-1, name="norm")
    return linear(net, x)


def _shared_weight(net: Net) -> tuple[str, ...]:
    weight = net.draw(C, C, name="shared")
    x = _input(net)
    first = net.op("MatMul", norm(net, x), weight, name="fc")
    return first, net.op("MatMul", net.op("Sigmoid", x), weight, name="other")


def _shared_producer(net: Net) -> tuple[str, ...]:
    weight, x = net.draw(C, 12, name="shared"), _input(net)
    first = net.op("Relu", net.op("MatMul", x, weight, name="first"))
    second = net.op("Tanh", net.op("MatMul", net.op("Exp", x), weight, name="second"))
    return linear(net, first, into=12), second


def _read_in_front(net: Net) -> tuple[str, ...]:
    first = linear(net, _input(net), name="first")
    return linear(net, net.op("Relu", net.op("Identity", first)), into=12), net.op("Exp", first)


def _token_table(net: Net) -> str:
    ids = net.input("ids", 1, 6, dtype=np.int64)
    return linear(net, net.op("Gather", net.draw(20, C, name="table"), ids, name="embedding"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_residual, "is read by Add 'residual' too, which is no quantized Linear"),
        (_output, "is an output of the model"),
        (_float_reader, "is read by MatMul 'kept' too, which is no quantized Linear"),
        (_second_operand, "is read by MatMul 'product' too, which is no quantized Linear"),
        (_gelu, "behind Gelu 'Gelu_"),
        (_clipped, "which stores no factor per channel"),
        (_attention, "behind MatMul 'core' of two computed tensors"),
        (_first, "reads 'x', an input of the model"),
        (_behind_add, "behind Add 'sum', which stores no factor per channel"),
        (_split_channels, f"LayerNormalization 'norm' has other channels than the {C // 2}"),
        (_split_linear, "', which stores no factor per channel"),
        (_split_for_one, "Reshape 'heads' does not keep the channels whole"),
        (_transposed, "MatMul 'fc' reads the channels on another axis"),
        (_part, f"LayerNormalization 'norm' has other channels than the {C // 2}"),
        (_padded_with_ones, "Pad 'pad' pads with another value than 0"),
        (_padded_channels, f"LayerNormalization 'norm' has other channels than the {C + 2}"),
        (_other_values, "Concat 'cat' adds other values ('y')"),
        (_stored_values, "Concat 'cat' adds other values"),
        (_computed_scale, "the scale of LayerNormalization 'norm' is computed"),
        (_shared_weight, "is read by MatMul 'other' too"),
        (_shared_producer, "of MatMul 'first' is read elsewhere too"),
        (_read_in_front, "is read elsewhere too"),
        (_token_table, "behind Gather 'embedding', which stores no factor per channel"),
    ],
)
def test_cannot_be_smoothed(build: Build, reason: str) -> None:
    net = Net()
    outputs = build(net)
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    found = places(net, *outputs, rules=Rules(exclude=("kept",) if build is _float_reader else ()))
    skips = [place for place in found if isinstance(place, Skip)]
    assert not [place for place in found if isinstance(place, Smoothing)]
    assert reason in " | ".join(skip.reason for skip in skips if skip.groups[0] in ("fc", "other"))


def test_a_float_linear_takes_no_part() -> None:
    net = Net()
    assert places(net, _plain(net), rules=Rules(exclude=("fc",))) == []


def test_a_single_channel_is_left_alone() -> None:
    net = Net()
    x = norm(net, net.input("x", 4, 1), channels=1)
    (skip,) = places(net, linear(net, x, into=1))
    assert isinstance(skip, Skip)
    assert skip.reason == "has a single channel"


def test_inside_a_subgraph_is_read_elsewhere() -> None:
    from onnx import TensorProto, helper

    net = Net()
    x = norm(net, net.input("x", 2, C))
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, [x], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2, C])],
        )
        for name, op in (("then", "Exp"), ("else", "Neg"))
    }
    other = net.op("If", net.input("flag", dtype=np.bool_), **branches)
    (skip,) = places(net, linear(net, x), other)
    assert isinstance(skip, Skip)
    assert "read inside a subgraph" in skip.reason
