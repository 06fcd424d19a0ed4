"""Shapes found for every family of operators, beside what onnxruntime gives at two sizes."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from propagating import Row, assert_true, found_in, written

INT = np.int64


def _x(net: Net) -> str:
    return net.input("x", "batch", 4, 8, 8)


def _tokens(net: Net) -> str:
    return net.input("x", "batch", "seq", 12)


def _size(net: Net, x: str, axis: int) -> str:
    """One dimension of `x` as a tensor of one element."""
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), np.int64(axis)), [0])


def _reshaped(net: Net, x: str, *parts: int | str) -> str:
    """Reshape to a computed target; a number is stored."""
    return net.op(
        "Reshape", x, net.op("Concat", *[[p] if isinstance(p, int) else p for p in parts], axis=0)
    )


def _windows(net: Net) -> str:
    x = net.input("x", "batch", 56, 56, 6)
    parts = [_size(net, x, 0), 8, 7, 8, 7, _size(net, x, 3)]
    y = net.op("Transpose", _reshaped(net, x, *parts), perm=[0, 1, 3, 2, 4, 5])
    count = net.op("Mul", _size(net, y, 0), net.op("Mul", _size(net, y, 1), _size(net, y, 2)))
    return _reshaped(net, y, count, 49, 6)


def _heads(net: Net) -> str:
    x = _tokens(net)
    y = _reshaped(net, x, _size(net, x, 0), _size(net, x, 1), 3, -1)
    return net.op("Transpose", y, perm=[0, 2, 1, 3])


LAYOUT = {
    "Reshape to windows": Row(_windows, ["64*batch", 49, 6]),
    "Reshape to heads": Row(_heads, ["batch", 3, "seq", 4]),
    "Reshape by zero": Row(
        lambda net: net.op("Reshape", _tokens(net), [0, 0, 3, 4]), ["batch", "seq", 3, 4]
    ),
    "Reshape, one left over": Row(
        lambda net: net.op("Reshape", _tokens(net), [-1, 6]), ["2*batch*seq", 6]
    ),
    "Reshape, one left over that is a number": Row(
        lambda net: _reshaped(net, x := _tokens(net), _size(net, x, 0), _size(net, x, 1), -1),
        ["batch", "seq", 12],
    ),
    "Flatten": Row(lambda net: net.op("Flatten", _x(net)), ["batch", 256]),
    "Flatten in the middle": Row(
        lambda net: net.op("Flatten", _tokens(net), axis=-1), ["batch*seq", 12]
    ),
    "Transpose": Row(
        lambda net: net.op("Transpose", _tokens(net), perm=[1, 0, 2]), ["seq", "batch", 12]
    ),
    "Transpose reversed": Row(lambda net: net.op("Transpose", _tokens(net)), [12, "seq", "batch"]),
    "Squeeze": Row(
        lambda net: net.op("Squeeze", net.op("ReduceMean", _tokens(net), axes=[1]), [-2]),
        ["batch", 12],
    ),
    "Unsqueeze": Row(
        lambda net: net.op("Unsqueeze", _tokens(net), [-1, 0]), [1, "batch", "seq", 12, 1]
    ),
    "Concat": Row(
        lambda net: net.op("Concat", x := _tokens(net), net.op("Relu", x), x, axis=1),
        ["batch", "3*seq", 12],
    ),
    "Concat with a token": Row(
        lambda net: net.op(
            "Concat",
            net.op("Expand", net.draw(1, 1, 12), _target(net, x := _tokens(net), 1, 12)),
            x,
            axis=-2,
        ),
        ["batch", "seq + 1", 12],
    ),
    "Split": Row(
        lambda net: net.op("Split", _tokens(net), axis=2, outputs=3)[1], ["batch", "seq", 4]
    ),
    "Split in unequal parts": Row(
        lambda net: net.op("Split", _tokens(net), [5, 7], axis=-1, outputs=2)[1],
        ["batch", "seq", 7],
    ),
    "Tile": Row(lambda net: net.op("Tile", _tokens(net), [2, 1, 3]), ["2*batch", "seq", 36]),
    "Expand": Row(
        lambda net: net.op("Expand", net.draw(1, 1, 12), _target(net, _tokens(net), 5, 1)),
        ["batch", 5, 12],
    ),
    "Pad": Row(
        lambda net: net.op("Pad", _tokens(net), [0, 1, 0, 0, 2, 3]), ["batch", "seq + 3", 15]
    ),
    "Pad of an axis": Row(
        lambda net: net.op("Pad", _tokens(net), [1, 2], None, [-1]), ["batch", "seq", 15], opset=18
    ),
    "DepthToSpace": Row(
        lambda net: net.op("DepthToSpace", _x(net), blocksize=2), ["batch", 1, 16, 16]
    ),
    "SpaceToDepth": Row(
        lambda net: net.op("SpaceToDepth", _x(net), blocksize=4), ["batch", 64, 2, 2]
    ),
}


def _target(net: Net, x: str, *rest: int) -> str:
    return net.op("Concat", _size(net, x, 0), list(rest), axis=0)


def _sliced(net: Net, *arguments: object) -> str:
    return net.op("Slice", _tokens(net), *arguments)


BIG = [(1 << 63) - 1]
INDEXING = {
    "Slice of a number": Row(lambda net: _sliced(net, [2], [-3], [2]), ["batch", "seq", 7]),
    "Slice by steps": Row(lambda net: _sliced(net, [1], BIG, [2], [3]), ["batch", "seq", 4]),
    "Slice to the end": Row(lambda net: _sliced(net, [0], BIG, [1]), ["batch", "seq", 12]),
    "Slice turned round": Row(
        lambda net: _sliced(net, [-1], [-(1 << 63) + 1], [1], [-1]), ["batch", "seq", 12]
    ),
    "Slice of the last": Row(lambda net: _sliced(net, [-1], BIG, [1]), ["batch", None, 12]),
    "Slice of an open size": Row(lambda net: _sliced(net, [1], BIG, [1]), ["batch", None, 12]),
    "Slice of all but the token": Row(
        lambda net: net.op(
            "Slice",
            net.op("Concat", x := _tokens(net), net.op("Relu", x), axis=1),
            _size(net, x, 1),
            BIG,
            [1],
        ),
        ["batch", "seq", 12],
    ),
    "Slice behind what is added": Row(
        lambda net: net.op("Slice", net.op("Pad", _tokens(net), [0, 1, 0, 0, 0, 0]), [1], BIG, [1]),
        ["batch", "seq", 12],
    ),
    "Slice of a table": Row(
        lambda net: net.op("Slice", net.draw(1, 6, 12), [0], _size(net, _tokens(net), 1), [1]),
        [1, "min(6, seq)", 12],
    ),
    "Slice, without axes": Row(lambda net: _sliced(net, [0, 0], BIG * 2), ["batch", "seq", 12]),
    "Gather of a row": Row(
        lambda net: net.op("Gather", _tokens(net), np.int64(3), axis=-1), ["batch", "seq"]
    ),
    "Gather from a table": Row(
        lambda net: net.op("Gather", net.draw(9, 12), net.input("i", "batch", "seq", dtype=INT)),
        ["batch", "seq", 12],
    ),
    "GatherElements": Row(
        lambda net: net.op(
            "GatherElements",
            net.input("x", "batch", 4),
            net.input("i", "batch", 2, dtype=INT),
            axis=1,
        ),
        ["batch", 2],
    ),
    "GatherND": Row(
        lambda net: net.op("GatherND", net.draw(3, 4, 5), net.input("i", "batch", 6, 2, dtype=INT)),
        ["batch", 6, 5],
    ),
    "ScatterND": Row(
        lambda net: net.op("ScatterND", _tokens(net), np.zeros((1, 3), INT), net.store([1.0])),
        ["batch", "seq", 12],
    ),
    "TopK": Row(
        lambda net: net.op("TopK", _tokens(net), [3], axis=-1, outputs=2)[1], ["batch", "seq", 3]
    ),
    "OneHot": Row(
        lambda net: net.op(
            "OneHot", net.input("i", "batch", 3, dtype=INT), np.int64(7), net.store([0, 1])
        ),
        ["batch", 3, 7],
    ),
    "NonZero": Row(lambda net: net.op("NonZero", _tokens(net)), [3, None]),
    "ArgMax": Row(lambda net: net.op("ArgMax", _tokens(net), axis=-1), ["batch", "seq", 1]),
    "ArgMax, axis dropped": Row(
        lambda net: net.op("ArgMax", _tokens(net), axis=1, keepdims=0), ["batch", 12]
    ),
    "Range": Row(
        lambda net: net.op(
            "Range",
            np.int64(0),
            net.op("Gather", net.op("Shape", _tokens(net)), np.int64(1)),
            np.int64(1),
        ),
        ["seq"],
    ),
    "ConstantOfShape": Row(
        lambda net: net.op("ConstantOfShape", net.op("Shape", _tokens(net))), ["batch", "seq", 12]
    ),
    "Resize by scale": Row(
        lambda net: net.op(
            "Resize",
            net.input("x", "batch", 3, "h", 5),
            None,
            net.store([1, 1, 2, 1.5]),
            mode="nearest",
        ),
        ["batch", 3, "2*h", 7],
    ),
    "Resize to a size": Row(
        lambda net: net.op("Resize", x := _x(net), None, None, _target(net, x, 4, 5, 6)),
        ["batch", 4, 5, 6],
    ),
}
COMPUTING = {
    "Relu": Row(lambda net: net.op("Relu", _tokens(net)), ["batch", "seq", 12]),
    "Add": Row(lambda net: net.op("Add", _tokens(net), net.draw(12)), ["batch", "seq", 12]),
    "Add of a position": Row(
        lambda net: net.op("Add", _tokens(net), net.draw(1, 1, 12)), ["batch", "seq", 12]
    ),
    "Add of a cut table": Row(
        lambda net: net.op(
            "Add",
            x := _tokens(net),
            net.op("Slice", net.draw(1, 64, 12), [0], _size(net, x, 1), [1]),
        ),
        ["batch", "seq", 12],
    ),
    "Add, a number against an open size": Row(
        lambda net: net.op("Add", net.draw(5, 12), net.op("ReduceMean", _tokens(net), axes=[1])),
        ["batch", 5, 12],
    ),
    "Where": Row(
        lambda net: net.op("Where", net.op("IsNaN", x := _tokens(net)), np.float32(0), x),
        ["batch", "seq", 12],
    ),
    "MatMul": Row(lambda net: net.op("MatMul", _tokens(net), net.draw(12, 5)), ["batch", "seq", 5]),
    "MatMul of two": Row(
        lambda net: net.op("MatMul", x := _tokens(net), net.op("Transpose", x, perm=[0, 2, 1])),
        ["batch", "seq", "seq"],
    ),
    "MatMul with a vector": Row(
        lambda net: net.op("MatMul", _tokens(net), net.draw(12)), ["batch", "seq"]
    ),
    "Gemm": Row(
        lambda net: net.op(
            "Gemm", net.input("x", 12, "batch"), net.draw(5, 12), transA=1, transB=1
        ),
        ["batch", 5],
    ),
    "Einsum": Row(
        lambda net: net.op("Einsum", x := _tokens(net), x, equation="bsc, btc -> bst"),
        ["batch", "seq", "seq"],
    ),
    "Softmax": Row(lambda net: net.op("Softmax", _tokens(net)), ["batch", "seq", 12]),
    "LayerNormalization": Row(
        lambda net: net.op("LayerNormalization", _tokens(net), net.draw(12)), ["batch", "seq", 12]
    ),
    "ReduceMean": Row(
        lambda net: net.op("ReduceMean", _tokens(net), axes=[-1]), ["batch", "seq", 1]
    ),
    "ReduceMean by input": Row(
        lambda net: net.op("ReduceMean", _tokens(net), [-2], keepdims=0), ["batch", 12], opset=18
    ),
    "ReduceSum of all": Row(lambda net: net.op("ReduceSum", _tokens(net), keepdims=0), []),
    "Conv": Row(lambda net: net.conv(_x(net), 6, 4, strides=[2, 2]), ["batch", 6, 4, 4]),
    "Conv of an open size": Row(
        lambda net: net.conv(net.input("x", "batch", 4, "h", "w"), 6, 4), ["batch", 6, "h", "w"]
    ),
    "Conv with a stride over an open size": Row(
        lambda net: net.conv(net.input("x", "batch", 4, "h", "w"), 6, 4, strides=[2, 1]),
        ["batch", 6, None, "w"],
    ),
    "Conv, same size": Row(
        lambda net: net.op(
            "Conv", _x(net), net.draw(6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[3, 3]
        ),
        ["batch", 6, 3, 3],
    ),
    "Conv, valid": Row(
        lambda net: net.op(
            "Conv", _x(net), net.draw(6, 4, 3, 3), auto_pad="VALID", dilations=[2, 2]
        ),
        ["batch", 6, 4, 4],
    ),
    "ConvTranspose": Row(
        lambda net: net.op(
            "ConvTranspose",
            net.input("x", "batch", 4, "h", 8),
            net.draw(4, 3, 3, 3),
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            output_padding=[1, 1],
            group=2,
        ),
        ["batch", 6, "2*h", 16],
    ),
    "ConvTranspose to a size": Row(
        lambda net: net.op(
            "ConvTranspose", _x(net), net.draw(4, 3, 3, 3), strides=[2, 2], output_shape=[16, 16]
        ),
        ["batch", 3, 16, 16],
    ),
    "MaxPool": Row(
        lambda net: net.op(
            "MaxPool", _x(net), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        ["batch", 4, 4, 4],
    ),
    "AveragePool, rounded up": Row(
        lambda net: net.op(
            "AveragePool", _x(net), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
        ),
        ["batch", 4, 4, 4],
    ),
    "GlobalAveragePool": Row(
        lambda net: net.op("GlobalAveragePool", net.input("x", "batch", 4, "h", "w")),
        ["batch", 4, 1, 1],
    ),
    "BatchNormalization": Row(lambda net: net.batchnorm(_x(net), 4), ["batch", 4, 8, 8]),
    "CumSum": Row(lambda net: net.op("CumSum", _tokens(net), np.int64(1)), ["batch", "seq", 12]),
    "QuantizeLinear": Row(
        lambda net: net.op("QuantizeLinear", _tokens(net), np.float32(0.1), np.int8(0)),
        ["batch", "seq", 12],
    ),
}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name)
        for table in (LAYOUT, INDEXING, COMPUTING)
        for name, row in table.items()
    ],
)
def test_shape(row: Row) -> None:
    net = Net(row.opset)
    proto = net.proto(row.build(net))
    model, facts = found_in(proto)
    assert written(facts.shape(model.graph.outputs[0])) == row.expected
    assert_true(proto)
