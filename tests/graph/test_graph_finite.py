"""Stored NaN and Inf: an error that names the tensor where a weight is read, else what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.errors import ModelError
from fusewright.pipeline import inspect

NAN, INF = np.nan, np.inf
Build = Callable[[Net, float], str]


def _bad(net: Net, value: float, *shape: int, at: int = 0, name: str = "bad") -> str:
    array = net.random.standard_normal(shape).astype(np.float32)
    array.reshape(-1)[at] = value
    return net.store(array, name)


def _image(net: Net) -> str:
    return net.input("x", 1, 4, 8, 8)


def _rows(net: Net) -> str:
    return net.input("x", 1, 6, 8)


def _bn(net: Net, value: float) -> str:
    x = net.op("Conv", _image(net), net.draw(8, 4, 3, 3))
    parts = [net.positive(8), net.draw(8), net.draw(8)]
    return net.op("BatchNormalization", x, *parts, net.store([-1.0 * (value == value)] + [1.0] * 7))


def _norm(net: Net, value: float) -> str:
    return net.op("LayerNormalization", _rows(net), _bad(net, value, 8), net.draw(8))


def _table(net: Net, value: float) -> str:
    found = net.op("Gather", _bad(net, value, 10, 8), net.input("x", 1, 6, dtype=np.int64))
    return net.op("LayerNormalization", found, net.positive(8), net.draw(8))


def _scores(net: Net) -> str:
    q, k = (net.op("MatMul", _rows(net) if i == 0 else "x", net.draw(8, 8)) for i in range(2))
    return net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))


def _linear_bias(net: Net, value: float) -> str:
    y = net.op("Add", net.op("MatMul", _rows(net), net.draw(8, 8)), _bad(net, value, 8))
    return net.op("MatMul", net.op("Relu", y), net.draw(8, 8))


def _gemm_bias(net: Net, value: float) -> str:
    y = net.op("Gemm", net.input("x", 2, 8), net.draw(8, 8), _bad(net, value, 8))
    return net.op("Gemm", net.op("Relu", y), net.draw(8, 8))


WEIGHTS: dict[str, Build] = {
    "Conv": lambda n, v: n.op("Conv", _image(n), _bad(n, v, 8, 4, 3, 3)),
    "its bias": lambda n, v: n.op("Conv", _image(n), n.draw(8, 4, 3, 3), _bad(n, v, 8)),
    "ConvTranspose": lambda n, v: n.op("ConvTranspose", _image(n), _bad(n, v, 4, 8, 3, 3)),
    "MatMul": lambda n, v: n.op("MatMul", _rows(n), _bad(n, v, 8, 8)),
    "Gemm's bias": _gemm_bias,
    "a Linear's bias": _linear_bias,
    "LayerNorm": _norm,
    "an embedding": _table,
    "PRelu": lambda n, v: n.op("PRelu", _image(n), _bad(n, v, 4, 1, 1)),
}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_named(name: str, value: float, tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.proto(WEIGHTS[name](net, value)), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="stored tensor") as error:
        inspect(tmp_path / "net.onnx")
    text = str(error.value)
    assert "1 NaN" in text if value != value else "1 Inf" in text
    assert "'bad" in text and "first at [0" in text and text.startswith(str(tmp_path))


def test_a_weight_that_folding_makes_nan(tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.proto(_bn(net, 1.0)), tmp_path / "net.onnx")
    with pytest.raises(
        ModelError,
        match=r"36 NaN .* \(Conv\), folded from Conv_\d+, BatchNormalization_\d+, reads it",
    ):
        inspect(tmp_path / "net.onnx")


def _normalized(net: Net, value: float, bad: str) -> str:
    x = net.op("Conv", _image(net), net.draw(8, 4, 3, 3))
    parts = {name: net.random.random(8) + 1.0 for name in ("scale", "bias", "mean", "var")}
    parts[bad][2] = value
    return net.op("BatchNormalization", x, *(net.store(a, f"bn.{n}") for n, a in parts.items()))


@pytest.mark.parametrize("bad", ["scale", "bias", "mean", "var"])
def test_what_is_folded_goes_by_its_name_in_the_file(bad: str, tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.proto(_normalized(net, NAN, bad)), tmp_path / "net.onnx")
    with pytest.raises(
        ModelError, match=rf"'bn\.{bad}\w*' holds 1 NaN .*, the first at \[2\]"
    ) as e:
        inspect(tmp_path / "net.onnx")
    assert "(BatchNormalization) reads it" in str(e.value)


@pytest.mark.parametrize("op", ["Mul", "Transpose"])
def test_so_does_what_a_weight_is_computed_from(op: str, tmp_path: Path) -> None:
    net = Net()
    bad = _bad(net, NAN, 8, 8, at=3)
    other = [net.positive(8)] if op == "Mul" else []
    y = net.op("Relu", net.op("MatMul", _rows(net), net.op(op, bad, *other)))
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=rf"'{bad}' holds 1 NaN .* at \[0, 3\], .*\({op}\) reads"):
        inspect(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("op", "key", "value"),
    [("LeakyRelu", "alpha", NAN), ("LeakyRelu", "alpha", INF), ("Elu", "alpha", NAN)],
)
def test_an_attribute_is_named(op: str, key: str, value: float, tmp_path: Path) -> None:
    net = Net()
    onnx.save(
        net.proto(net.op(op, net.conv(_image(net), 8, 4), **{key: value})), tmp_path / "n.onnx"
    )
    with pytest.raises(ModelError, match=rf"attribute '{key}' of node '{op}_\d+' .* {value}:"):
        inspect(tmp_path / "n.onnx")


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp8", "fp16", "int4", "fp32"])
def test_every_precision_refuses_it_and_leaves_nothing(precision: str, tmp_path: Path) -> None:
    net = Net()
    y = net.op("MatMul", net.op("MatMul", _rows(net), _bad(net, NAN, 8, 64)), net.draw(64, 8))
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="1 NaN among its 512 values"):
        optimize(
            tmp_path / "net.onnx", tmp_path / "out.onnx", RandomSamples(2), precision=precision
        )
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("outside", [False, True], ids=["one file", "external data"])
def test_other_floats(dtype: type, outside: bool, tmp_path: Path) -> None:
    net = Net()
    x = net.op("Cast", _rows(net), to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    weight = net.random.standard_normal((8, 64))
    weight[3, 5] = INF  # what a cast to FP16 makes of 1e5
    y = net.op("MatMul", x, net.store(weight, "bad", dtype))
    where = {"save_as_external_data": True, "size_threshold": 0} if outside else {}
    onnx.save(net.proto(net.op("Cast", y, to=1)), tmp_path / "net.onnx", **where)
    with pytest.raises(ModelError, match=r"1 Inf among its 512 values, the first at \[3, 5\]"):
        inspect(tmp_path / "net.onnx")


def _mask(net: Net, value: float) -> str:
    scores = net.op("Add", _scores(net), _bad(net, value, 6, 6))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), "x")


def _cut_mask(net: Net, value: float) -> str:
    mask = net.op(
        "Slice",
        _bad(net, value, 9, 9, at=80),
        *(net.store(i, "i", np.int64) for i in ([3, 3], [9, 9])),
    )
    scores = net.op("Div", net.op("Add", _scores(net), mask), net.store(2.0))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), "x")


def _mask_of_read_size(net: Net, value: float) -> str:
    x = net.input("x", "n", 6, 8)
    keys = net.op("Transpose", net.op("MatMul", x, net.draw(8, 8)), perm=[0, 2, 1])
    scores = net.op("Add", net.op("MatMul", x, keys), _bad(net, value, 6, 6))
    size = net.op("Cast", net.op("ReduceProd", net.op("Shape", scores)), to=onnx.TensorProto.FLOAT)
    return net.op("Mul", net.op("MatMul", net.op("Softmax", scores, axis=-1), x), size)


def _where(net: Net, value: float) -> str:
    hidden = net.store(np.tri(6) == 0, "hidden", bool)
    scores = net.op("Where", hidden, net.store(value, "bad"), _scores(net))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), "x")


def _pad_and_pool(net: Net, value: float) -> str:
    pads = net.store([0, 0, 1, 1, 0, 0, 1, 1], "pads", np.int64)
    x = net.op("Pad", net.op("Relu", net.conv(_image(net), 8, 4)), pads, net.store(value, "bad"))
    return net.op("MaxPool", x, kernel_shape=[3, 3])


def _logits(net: Net, value: float) -> str:
    return net.op(
        "Add", net.op("Gemm", net.input("x", 2, 8), net.draw(8, 8)), _bad(net, value, 2, 8)
    )


ALLOWED: dict[str, tuple[Build, float]] = {
    "a mask": (_mask, -INF),
    "a mask cut out of a larger one": (_cut_mask, -INF),
    "a mask whose size is read": (_mask_of_read_size, -INF),
    "Where": (_where, -INF),
    "Clip": (
        lambda n, v: n.op("Clip", n.conv(_image(n), 8, 4), n.store(0.0), n.store(v, "bad")),
        INF,
    ),
    "Pad in front of MaxPool": (_pad_and_pool, -INF),
    "tokens that may not be chosen": (_logits, -INF),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_inf_that_means_something(name: str, tmp_path: Path) -> None:
    build, value = ALLOWED[name]
    net = Net()
    onnx.save(net.proto(build(net, value)), tmp_path / "net.onnx")
    assert inspect(tmp_path / "net.onnx").groups
    net = Net()
    onnx.save(net.proto(build(net, NAN)), tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match="1 NaN"):
        inspect(tmp_path / "nan.onnx")
