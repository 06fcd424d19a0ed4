"""LayerNorm chains to the operator."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from building import Net, as_model, assert_equal, ops
from norms import EPSILON, INVERSES, WIDTH, affine, inverse, mean, square, tokens
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

from fusewright.graph.walk import values

LN = "LayerNormalization"
CHAIN = "ReduceMean Sub Pow ReduceMean Add Sqrt Div"


def _chain(
    shape: tuple[int | str, ...] = ("n", 5, WIDTH),
    axes: tuple[int, ...] = (-1,),
    *,
    power: str = "Pow",
    root: str = "Div by Sqrt",
    again: bool = False,
    parameters: tuple[int, ...] | None = (WIDTH,),
    **options: bool,
):
    """ReduceMean, Sub, square, ReduceMean, Add, Sqrt, Div, Mul, Add."""

    def build(net: Net) -> str:
        x = tokens(net, *shape)
        centred = net.op("Sub", x, mean(net, x, axes))
        other = net.op("Sub", x, mean(net, x, axes)) if again else centred
        shifted = net.op("Add", mean(net, square(net, other, power), axes), EPSILON)
        if root == "Div by Sqrt":
            y = net.op("Div", centred, net.op("Sqrt", shifted))
        else:
            y = net.op("Mul", centred, inverse(net, shifted, root))
        return y if parameters is None else affine(net, y, *parameters, **options)

    return build


def _batchnorm(scale: bool = True, bias: str = "Sub", swap: bool = False, axis: int = -1):
    """x·g + (β − mean·g), as TensorFlow writes it; without β, the shift is negative."""

    def build(net: Net) -> str:
        x = tokens(net)
        shape = [1, 1, WIDTH] if axis == -1 else [1, 5, 1]
        average = mean(net, x, (axis,))
        centred = net.op("Sub", x, average)
        variance = mean(net, net.op("Mul", centred, centred), (axis,))
        gain = inverse(net, net.op("Add", variance, EPSILON), "Reciprocal")
        gain = net.op("Mul", gain, net.positive(*shape)) if scale else gain
        scaled = net.op("Mul", gain, x) if swap else net.op("Mul", x, gain)
        if bias == "Neg of mean":
            return net.op("Add", scaled, net.op("Mul", net.op("Neg", average), gain))
        shift = net.op("Mul", average, gain)
        if bias == "none":
            return net.op("Sub", scaled, shift)
        if bias == "Neg":
            return net.op("Add", net.op("Neg", shift), scaled)
        return net.op("Add", scaled, net.op("Sub", net.draw(*shape, name="b"), shift))

    return build


def _variance_of_squares(net: Net) -> str:
    """mean(x²) − mean(x)², as Flax and ONNX's own function bodies."""
    x = tokens(net)
    average = mean(net, x)
    variance = net.op("Sub", mean(net, square(net, x, "Mul")), square(net, average, "Mul"))
    std = net.op("Sqrt", net.op("Add", variance, EPSILON))
    return affine(net, net.op("Div", net.op("Sub", x, average), std))


def _scale_first(root: str):
    """(x − mean)·γ·rsqrt, as w * (x - u) * torch.rsqrt(v + eps) reads."""

    def build(net: Net) -> str:
        x = tokens(net)
        centred = net.op("Sub", x, mean(net, x))
        shifted = net.op("Add", mean(net, square(net, centred)), EPSILON)
        weighted = net.op("Mul", net.positive(WIDTH), centred)
        if root == "Sqrt":
            y = net.op("Div", weighted, net.op("Sqrt", shifted))
        else:
            y = net.op("Mul", weighted, inverse(net, shifted, root))
        return net.op("Add", y, net.draw(WIDTH))

    return build


def _without_epsilon(net: Net) -> str:
    """PyTorch's dynamo exporter drops an epsilon of 1e-12."""
    x = tokens(net)
    centred = net.op("Sub", x, mean(net, x))
    std = net.op("Sqrt", mean(net, square(net, centred)))
    return affine(net, net.op("Div", centred, std))


def _kept_by_reshape(op: str):
    """tensor.var(keepdim=True) of PyTorch's dynamo exporter."""

    def build(net: Net) -> str:
        x = tokens(net)
        centred = net.op("Sub", x, mean(net, x))
        flat = mean(net, square(net, centred), keepdims=0)
        target = [0, 5, 1] if op == "Reshape" else [-1]
        std = net.op("Sqrt", net.op("Add", net.op(op, flat, target), EPSILON))
        return affine(net, net.op("Div", centred, std))

    return build


OPERATOR = {
    f"opset {opset}, {power}, {root}{', again' * again}": Row(
        _chain(power=power, root=root, again=again), LN, opset
    )
    for opset, power, root, again in product(
        (17, 18), ("Pow", "Mul"), ("Div by Sqrt", *INVERSES), (False, True)
    )
}
OPERATOR |= {
    "positive axis": Row(_chain(axes=(2,)), LN),
    "last two axes": Row(_chain(axes=(1, 2), parameters=(5, WIDTH)), LN),
    "last two axes, backwards": Row(_chain(axes=(-1, -2), parameters=(5, WIDTH)), LN),
    "last two axes, bias alone": Row(_chain(axes=(-1, -2), parameters=(5, WIDTH), scale=False), LN),
    "map of height and width": Row(_chain((1, 3, 5, WIDTH), (2, 3), parameters=(5, WIDTH)), LN),
    "rank 2": Row(_chain(("n", WIDTH)), LN),
    "without scale and bias": Row(_chain(parameters=None), LN),
    "without scale": Row(_chain(scale=False), LN),
    "without bias": Row(_chain(bias=False), LN),
    "parameters of full rank": Row(_chain(parameters=(1, 1, WIDTH)), LN),
    "parameters of one element": Row(_chain(parameters=(1,)), LN),
    "scalar parameters": Row(_chain(parameters=()), LN),
    "parameters per token": Row(_chain(parameters=(5, 1)), f"{LN} Mul Add"),
    "parameters of higher rank than x": Row(_chain(parameters=(1, 1, 1, WIDTH)), f"{LN} Mul Add"),
    "variance of squares": Row(_variance_of_squares, LN),
    "no epsilon": Row(_without_epsilon, LN),
    "axes kept by a Reshape": Row(_kept_by_reshape("Reshape"), LN),
    "axes kept by an Unsqueeze": Row(_kept_by_reshape("Unsqueeze"), LN),
}
OPERATOR |= {f"scale first, {r}": Row(_scale_first(r), LN) for r in ("Sqrt", "Reciprocal", "Div")}
OPERATOR |= {
    f"batch normalization{', scaled' * scale}, {bias}{', swapped' * swap}": Row(
        _batchnorm(scale, bias, swap), LN
    )
    for scale, bias, swap in product(
        (False, True), ("Sub", "none", "Neg", "Neg of mean"), (False, True)
    )
}
# Before opset 17 there is no operator: one chain stands for all.
STAYS_CHAIN = {
    "as PyTorch writes it": Row(_chain(), f"{CHAIN} Mul Add", 13),
    "Mul for the square": Row(_chain(power="Mul"), f"{CHAIN} Mul Add", 13),
    "rsqrt": Row(_chain(root="Reciprocal"), f"{CHAIN} Mul Add", 13),
    "subtracted twice": Row(_chain(again=True), f"{CHAIN} Mul Add", 13),
    "no parameters": Row(_chain(parameters=None), CHAIN, 13),
    "positive axis": Row(_chain(axes=(2,)), f"{CHAIN} Mul Add", 13),
    "batch normalization": Row(_batchnorm(), f"{CHAIN} Mul Add", 13),
    "scale first": Row(_scale_first("Sqrt"), f"{CHAIN} Mul Add", 13),
}


def _bare(name: str | None = None, **second: object):
    """Without an affine; nodes named, for what leaks; `second` is for the variance's mean."""

    def build(net: Net) -> tuple[str, ...]:
        x = tokens(net)
        centred = net.op("Sub", x, mean(net, x), name="centred")
        squares = net.op("Pow", centred, 2.0, name="squares")
        axes = second.get("axes", [-1])
        variance = mean(net, squares, axes, keepdims=second.get("keepdims", 1), name="variance")
        shifted = net.op("Add", variance, second.get("epsilon", EPSILON))
        y = net.op("Div", centred, net.op("Sqrt", shifted))
        if name is None:
            return (y,)
        return y, f"{name}_y" if second.get("output") else net.op("Neg", f"{name}_y")

    return build


def _epsilon_outside(net: Net) -> str:
    x = tokens(net)
    centred = net.op("Sub", x, mean(net, x))
    std = net.op("Sqrt", mean(net, square(net, centred)))
    return affine(net, net.op("Div", centred, net.op("Add", std, EPSILON)))


def _unbiased(net: Net) -> str:
    """tensor.var(), over one element less."""
    x = tokens(net)
    centred = net.op("Sub", x, mean(net, x))
    variance = net.op("Mul", mean(net, square(net, centred)), WIDTH / (WIDTH - 1))
    return affine(net, net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, EPSILON))))


def _of_another(net: Net) -> str:
    x, z = tokens(net), net.input("z", "n", 5, WIDTH)
    other = net.op("Sub", z, mean(net, z))
    std = net.op("Sqrt", net.op("Add", mean(net, square(net, other)), EPSILON))
    return net.op("Div", net.op("Sub", x, mean(net, x)), std)


def _flat_mean(net: Net) -> str:
    x = net.input("x", WIDTH, WIDTH)
    centred = net.op("Sub", x, mean(net, x, keepdims=0))
    std = net.op("Sqrt", net.op("Add", mean(net, square(net, centred)), EPSILON))
    return net.op("Div", centred, std)


def _float64(net: Net) -> str:
    x = tokens(net, dtype=np.float64)
    centred = net.op("Sub", x, mean(net, x))
    variance = mean(net, net.op("Mul", centred, centred))
    std = net.op("Sqrt", net.op("Add", variance, np.float64(EPSILON)))
    return net.op("Div", centred, std)


LEFT_ALONE = {
    "two axes that are not the last": Row(
        _chain((2, 3, 5, WIDTH), (1, 2), parameters=None), "other axes than the last ones"
    ),
    "channels of an image": Row(
        _chain((2, 3, 5, WIDTH), (1,), parameters=(3, 1, 1)), "other axes than the last ones"
    ),
    "first and last axis": Row(_chain(axes=(0, 2), parameters=None), "other axes"),
    "every axis": Row(_chain((2, WIDTH), (0, 1), parameters=None), "other axes"),
    "height and width, scaled per channel": Row(
        _chain((2, 3, 5, WIDTH), (2, 3), parameters=(3, 1, 1)), "without a scale or bias"
    ),
    "height and width, not scaled": Row(
        _chain((2, 3, 5, WIDTH), (2, 3), parameters=None), "without a scale or bias"
    ),
    "tokens, as a batch normalization": Row(_batchnorm(axis=1), "other axes than the last ones"),
    "mean and variance over different axes": Row(_bare(axes=[1]), "other axes than the last ones"),
    "epsilon outside the root": Row(_epsilon_outside, "outside the square root"),
    "an epsilon per token": Row(
        _bare(epsilon=np.full((5, 1), EPSILON, np.float32)), "a one-element constant 'eps'"
    ),
    "unbiased variance": Row(_unbiased, "expected ReduceMean, found Mul"),
    "mean without its axis": Row(_flat_mean, "ReduceMean.keepdims = 1, found 0"),
    "variance without its axis": Row(
        lambda n: n.op(
            "Div",
            n.op("Sub", n.input("x", WIDTH, WIDTH), mean(n, "x"), name="centred"),
            n.op("Sqrt", n.op("Add", mean(n, square(n, "centred_y"), keepdims=0), EPSILON)),
        ),
        "ReduceMean.keepdims = 1, found 0",
    ),
    "variance of another tensor": Row(_of_another, "'x' again, found 'z'"),
    "centred value read elsewhere": Row(_bare("centred"), "'centred_y' used elsewhere"),
    "variance read elsewhere": Row(_bare("variance"), "'variance_y' used elsewhere"),
    "squares are an output": Row(_bare("squares", output=True), "'squares_y' used elsewhere"),
    "float64": Row(_float64, "type float64"),
    "size of the axis not known": Row(
        _chain(("n", 5, "w"), parameters=None), "size of the normalized axis is not known"
    ),
    "opset 13": Row(_chain(), "needs opset 17; the chain stays", 13),
}


def _layer(net: Net, *, bias: bool, ones: bool = False) -> str:
    scale = net.store(np.ones(WIDTH)) if ones else net.positive(WIDTH)
    return net.op(LN, tokens(net), scale, *([net.draw(WIDTH)] if bias else []))


FOLDED = {
    f"{op}{', biased' * bias}{', ones' * ones}": Row(
        lambda n, o=op, b=bias, e=ones: n.op(o, _layer(n, bias=b, ones=e), n.draw(WIDTH)), LN
    )
    for op, bias, ones in product(("Mul", "Add"), (False, True), (False, True))
}
FOLDED |= {
    "Mul, then Add": Row(lambda n: affine(n, _layer(n, bias=False)), LN),
    "Add, then Mul": Row(
        lambda n: n.op("Mul", n.op("Add", _layer(n, bias=True), n.draw(WIDTH)), 2.0), LN
    ),
    "bias left out by name": Row(
        lambda n: n.op("Add", n.op(LN, tokens(n), n.positive(WIDTH), None), n.draw(WIDTH)), LN
    ),
    "one scale for two layers": Row(
        lambda n: n.op(
            "Mul", n.op(LN, n.op(LN, tokens(n), n.positive(WIDTH, name="s")), "s_1"), n.draw(WIDTH)
        ),
        f"{LN} {LN}",
    ),
}
NOT_FOLDED = {
    "position embedding": Row(
        lambda n: n.op("Add", _layer(n, bias=True), n.draw(5, WIDTH)), "a constant of shape [5, 6]"
    ),
    "computed": Row(
        lambda n: n.op("Mul", _layer(n, bias=True), n.input("c", WIDTH)), "a stored tensor"
    ),
    "read elsewhere": Row(
        lambda n: (
            n.op("Mul", n.op(LN, tokens(n), n.positive(WIDTH), name="l"), n.draw(WIDTH)),
            n.op("Neg", "l_y"),
        ),
        "used elsewhere",
    ),
}


@pytest.mark.parametrize("row", OPERATOR.values(), ids=list(OPERATOR))
def test_operator(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", STAYS_CHAIN.values(), ids=list(STAYS_CHAIN))
def test_one_chain_before_opset_17(row: Row) -> None:
    model = assert_rewritten(row)
    for node in model.graph.nodes:
        if node.op == "ReduceMean":
            assert node.attrs["axes"] == [-1]


@pytest.mark.parametrize("row", FOLDED.values(), ids=list(FOLDED))
def test_affine_is_folded(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(
    ("rule", "row"), by_rule({"LayerNormChain": LEFT_ALONE, "LayerNormAffine": NOT_FOLDED})
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_parameters_have_the_shape_of_the_axes() -> None:
    model = assert_rewritten(Row(_chain(axes=(-2, -1), parameters=(1, WIDTH)), LN))
    (node,) = model.graph.nodes
    assert node.attrs["axis"] == -2
    assert [values(t).shape for t in node.inputs[1:]] == [(5, WIDTH)] * 2


def test_epsilon_is_kept() -> None:
    (node,) = assert_rewritten(Row(_chain(), LN)).graph.nodes
    assert node.attrs["epsilon"] == pytest.approx(EPSILON)


def test_size_that_only_the_scale_knows() -> None:
    model = assert_rewritten(Row(_untyped, f"Mul Add Cast Reshape {LN}"))
    assert values(model.graph.nodes[-1].inputs[1]).shape == (WIDTH,)


@pytest.mark.parametrize("shape", [("n", 5, WIDTH), ("n", "s", WIDTH), (2, 5, WIDTH)])
def test_paddle_reshapes_the_parameters_to_what_it_reads_off_x(
    shape: tuple[int | str, ...],
) -> None:
    net = Net(11)
    x = tokens(net, *shape)
    centred = net.op("Sub", x, mean(net, x, (2,)))
    shifted = net.op("Add", mean(net, net.op("Pow", centred, [2.0]), (2,)), [EPSILON])
    y = net.op("Div", centred, net.op("Sqrt", shifted))
    size = net.op("Slice", net.op("Shape", x), [2], [3], [0])
    y = net.op("Mul", y, net.op("Reshape", net.positive(WIDTH), size))
    proto = net.proto(net.op("Add", y, net.op("Reshape", net.draw(WIDTH), size)))
    model = as_model(proto, clean=True)
    assert (ops(model), model.opset) == (LN, 17)
    assert_equal(proto, model)


def _untyped(net: Net) -> str:
    """Behind a Reshape to a computed shape nothing is known, not even the rank."""
    sizes = net.op("Add", net.op("Mul", net.input("z", 3), 0.0), [2.0, 5.0, float(WIDTH)])
    x = net.op("Reshape", tokens(net), net.op("Cast", sizes, to=onnx.TensorProto.INT64))
    centred = net.op("Sub", x, mean(net, x))
    std = net.op("Sqrt", net.op("Add", mean(net, square(net, centred)), EPSILON))
    return affine(net, net.op("Div", centred, std))
