"""ONNX Attention, taken apart."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net, as_model, assert_equal, feeds, ops
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

HEADS, SIZE = 3, 4
CORE = "Mul Transpose MatMul Softmax MatMul"
SPLIT = "Reshape Transpose"
ROWS = "Where Cast ReduceMax Cast Where"


def _inputs(
    net: Net, queries: int | str = 5, keys: int | str = 6, *, heads: int = HEADS, flat: bool = False
) -> list[str]:
    def one(name: str, sequence: int | str, count: int) -> str:
        if flat:
            return net.input(name, "n", sequence, count * SIZE)
        return net.input(name, "n", count, sequence, SIZE)

    return [one("q", queries, HEADS), one("k", keys, heads), one("v", keys, heads)]


def _attention(
    mask: str | tuple[int | str, ...] | None = None,
    dtype: type = np.float32,
    inputs: dict[str, object] | None = None,
    **attrs: object,
):
    """`mask` is a shape for an input, or `stored`."""

    def build(net: Net) -> str:
        given = dict(inputs or {})
        operands: list[str | None] = list(_inputs(net, **given))
        if given.get("flat"):
            counts = {"q_num_heads": HEADS, "kv_num_heads": given.get("heads", HEADS)}
            attrs.update(counts)
        if mask == "stored":
            allowed = np.tri(5, 6, 1, dtype=np.bool_)
            operands.append(net.store(allowed, dtype=None))
        elif mask is not None:
            operands.append(net.input("mask", *mask, dtype=dtype))
        return net.op("Attention", *operands, **attrs)

    return build


FLAT = {"flat": True}
# Of the two Transposes of k one is left.
_PARTS = f"Mul {SPLIT} {SPLIT} {SPLIT} MatMul Softmax MatMul {SPLIT}"
SPELLINGS = {
    "4-D": (_attention(), CORE),
    "scale": (_attention(scale=0.3), CORE),
    "4-D, dynamic sequence": (_attention(inputs={"queries": "s", "keys": "s"}), CORE),
    "3-D": (_attention(inputs=FLAT), _PARTS),
    "3-D, dynamic sequence": (_attention(inputs=FLAT | {"queries": "s", "keys": "t"}), _PARTS),
    "float mask": (_attention((5, 6)), f"{CORE} Add"),
    "float mask per head": (_attention(("n", HEADS, 5, 6)), f"{CORE} Add"),
    "boolean mask": (_attention(("n", 1, 5, 6), np.bool_), f"{CORE} Add {ROWS}"),
    "stored boolean mask": (_attention("stored"), f"{CORE} Add"),
    "causal": (_attention(is_causal=1, inputs={"keys": 5}), f"{CORE} Add"),
    "causal, more keys": (_attention(is_causal=1), f"{CORE} Add"),
    "causal and float mask": (_attention((5, 6), is_causal=1), f"{CORE} Add Add"),
    "soft cap": (_attention(softcap=2.0), f"{CORE} Div Tanh Mul"),
    "soft cap and mask": (_attention((5, 6), softcap=2.0), f"{CORE} Div Tanh Mul Add"),
    "one head of keys": (
        _attention(inputs={"heads": 1}),
        f"{CORE} Expand Expand Reshape Reshape Unsqueeze Unsqueeze",
    ),
    "3-D, one head of keys": (
        _attention(inputs=FLAT | {"heads": 1}),
        f"{_PARTS} Transpose Expand Expand Reshape Reshape Unsqueeze Unsqueeze",
    ),
}


def _expanded(value: np.ndarray):
    """The mask as PyTorch's dynamo exporter writes it, enlarged by the batch alone."""

    def build(net: Net) -> str:
        operands = _inputs(net)
        batch = net.op("Shape", operands[0], start=0, end=1)
        target = net.op("Concat", batch, [1], [5], [6], axis=0)
        mask = net.op("Expand", net.store(value, dtype=None), target)
        return net.op("Attention", *operands, mask)

    return build


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(np.ones((1, 1, 5, 1), np.bool_), CORE, id="nothing masked"),
        pytest.param(np.tri(5, 6, dtype=np.bool_)[None, None], f"{CORE} Add", id="a triangle"),
        pytest.param(np.zeros((5, 1), np.float32), CORE, id="zeros"),
        pytest.param(np.eye(5, 6, dtype=np.float32), f"{CORE} Add", id="numbers"),
    ],
)
def test_a_mask_that_the_batch_enlarges_is_a_stored_one(value: np.ndarray, expected: str) -> None:
    net = Net(23)
    proto = net.proto(_expanded(value)(net))
    model = as_model(proto, clean=True)
    assert _sorted(ops(model)) == _sorted(expected), ops(model)
    assert_equal(proto, model)


def _sorted(text: str) -> list[str]:
    return sorted(text.split())


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("name", SPELLINGS)
def test_parts(name: str, opset: int) -> None:
    build, expected = SPELLINGS[name]
    net = Net(opset)
    proto = net.proto(build(net))
    model = as_model(proto, clean=True)
    # A float mask is guarded like a boolean one: it may hold -inf for every key.
    guard = " IsNaN Where" if "float mask" in name or "cap and mask" in name else ""
    assert _sorted(ops(model)) == _sorted(expected + guard), ops(model)
    assert_equal(proto, model)


def test_a_query_that_sees_no_key_gives_zero() -> None:
    net = Net(23)
    proto = net.proto(_attention(("n", 1, 5, 6), np.bool_)(net))
    feed = feeds(proto)
    feed["mask"] = np.ones((2, 1, 5, 6), np.bool_)
    feed["mask"][0, 0, 2] = False
    assert_equal(proto, as_model(proto, clean=True), feed)


def test_groups_of_queries() -> None:
    net = Net(23)
    x = [net.input(n, "n", 4 if n == "q" else 2, 5, SIZE) for n in "qkv"]
    proto = net.proto(net.op("Attention", *x))
    assert_equal(proto, as_model(proto, clean=True))


def test_scale_is_on_q_and_k_is_transposed_once() -> None:
    model = assert_rewritten(Row(_attention(), "Mul Transpose MatMul Softmax MatMul", 23))
    first = next(node for node in model.graph.nodes if node.op == "MatMul")
    assert [t.inputs[0].op for t in first.inputs] == ["Mul", "Transpose"]
    assert list(first.outputs[0].shape) == ["n", HEADS, 5, 6]


def _with_past(net: Net) -> tuple[str, ...]:
    past = [net.input(f"past_{n}", "n", HEADS, 2, SIZE) for n in "kv"]
    return net.op("Attention", *_inputs(net), None, *past, outputs=3)


def _with_scores(net: Net) -> tuple[str, ...]:
    results = net.op("Attention", *_inputs(net), outputs=4)
    return results[0], results[3]


def _float16(net: Net) -> str:
    x = [net.input(n, "n", HEADS, 5, SIZE, dtype=np.float16) for n in "qkv"]
    return net.op("Attention", *x)


LEFT_ALONE = {
    "past key and value": Row(_with_past, "it reads a past key", 23),
    "scores given out": Row(_with_scores, "its scores is read", 23),
    "number of valid keys": Row(
        lambda n: n.op("Attention", *_inputs(n), None, None, None, n.store([6, 6], dtype=np.int64)),
        "it reads a number of valid keys",
        24,
    ),
    "causal, dynamic sequence": Row(
        _attention(is_causal=1, inputs={"queries": "s", "keys": "s"}),
        "causal over a sequence of unknown length",
        23,
    ),
    "mask that may be shorter than the keys": Row(
        _attention((5, "m"), inputs={"keys": "t"}), "not known to be as long as the keys", 24
    ),
    "float16": Row(_float16, "type float16", 23),
    "head size not known": Row(
        lambda n: n.op("Attention", *(n.input(name, "n", 3, 5, "d") for name in "qkv")),
        "a head size, that are not known",
        23,
    ),
}


@pytest.mark.parametrize(("rule", "row"), by_rule({"AttentionParts": LEFT_ALONE}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
