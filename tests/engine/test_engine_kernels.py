"""The kernel list: parsed from a recorded log, and counted as TENSORRT.md counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusewright.engine.attribution import describe_kernels
from fusewright.engine.kernels import Kernel, TensorType, groups_of, parse_kernels
from fusewright.engine.report import EngineReport, KernelReport

# The end of a VERBOSE build log of `engine_models.parallel_convs(collapsed=True)`.
RECORDED = (Path(__file__).parent / "tensorrt_rtx_1.7.1.log").read_text()
GROUPS = {"left", "right", "after"}


def _kernel(nodes: tuple[str, ...] = (), **fields: object) -> Kernel:
    empty = {"name": "k", "type": "kgen", "inputs": (), "outputs": (), "constants": ()}
    return Kernel(**{**empty, **fields}, nodes=nodes)


def _tensor(dtype: str, *shape: int, name: str = "t") -> TensorType:
    return TensorType(name, dtype, shape)


def _report(rows: tuple[KernelReport, ...]) -> EngineReport:
    return EngineReport("m.onnx", None, "tensorrt_rtx", "1.7", 0.1, 10, {}, rows)


def test_rows_are_kernels_without_stream_synchronisation() -> None:
    kernels = parse_kernels(RECORDED)
    assert RECORDED.count("LayerType: ") == 11
    assert [kernel.type for kernel in kernels] == [
        "kgen", "correlation", "kgen", "correlation", "kgen", "correlation", "kgen",
    ]  # fmt: skip


def test_a_row_gives_types_shapes_and_nodes() -> None:
    conv = parse_kernels(RECORDED)[1]
    assert conv.name == "conv_7_myl0_2"
    assert conv.inputs == (TensorType("left_out.1_2_myl0", "Int8", (1, 16, 16, 16)),)
    assert [(t.dtype, t.shape) for t in conv.outputs] == [("Float", (1, 32, 16, 16))]
    assert [(t.dtype, t.shape) for t in conv.constants] == [
        ("Int8", (32, 16, 3, 3)), ("Float", (1, 32, 1, 1)), ("Float", (1, 32, 1, 1)),
        ("Float", (1, 32, 1, 1)),
    ]  # fmt: skip
    assert conv.nodes == (
        "conv | right (ConvAct_0)", "x_dq", "right_w_dq", "relu | right (ConvAct_0)", "right_w_q",
    )  # fmt: skip


def test_scalar_and_dynamic_dimensions() -> None:
    row = (
        "Name: k, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [], Strides: [], "
        "StrideOrder: [], Datatype: Int64, Format: x }, { Name: b, Dimensions: [-1,4], "
        "Strides: [4,1], StrideOrder: [1,0], Datatype: Half, Format: x }], Constants: [], "
        "Outputs: [], TacticName: , StreamId: 0, Metadata: "
    )
    (kernel,) = parse_kernels(row)
    assert [(t.shape, t.elements, t.nbytes) for t in kernel.inputs] == [
        ((), 1, 8),
        ((-1, 4), None, None),
    ]


def test_a_log_without_a_list_has_no_kernels() -> None:
    assert parse_kernels("") == ()
    assert parse_kernels("I/O Tensors:\n Name: x, IOMode: Input, DataType: Float") == ()


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("Int8", (3, 5), 15), ("Half", (3, 5), 30), ("Int4", (3, 5), 8), ("Mystery", (3,), None)],
)
def test_bytes(dtype: str, shape: tuple[int, ...], size: int | None) -> None:
    assert TensorType("t", dtype, shape).nbytes == size


@pytest.mark.parametrize(
    ("node", "names", "found"),
    [
        ("conv | grp/0 (ConvAct_0)", {"grp/0"}, ("grp/0",)),
        ("n | inner (F) | outer (G)", {"outer"}, ("outer",)),
        ("n | a | b (c) (ConvAct_0)", {"a | b (c)"}, ("a | b (c)",)),
        ("conv | grp/1 (ConvAct_0)", {"grp/10", "grp", "conv1"}, ()),
        ("layer1/conv", {"layer1/conv"}, ("layer1/conv",)),
        # The function's name is no group, nor is a node that merely ends like one.
        ("conv | g (ConvAct_0)", {"ConvAct_0"}, ()),
        ("relu (2)", {"relu"}, ()),
    ],
)
def test_groups_of_a_node(node: str, names: set[str], found: tuple[str, ...]) -> None:
    assert groups_of(_kernel((node,)), names) == found


def test_every_recorded_kernel_has_groups_or_nodes() -> None:
    rows = describe_kernels(parse_kernels(RECORDED), GROUPS)
    assert [row.groups for row in rows] == [
        (),
        ("right",),
        (),
        ("left",),
        (),
        ("after",),
        ("after",),
    ]
    assert [row.inferred for row in rows] == [False] * 6 + [True]
    assert rows[0].nodes == ("x_q",)
    assert all(row.nodes for row in rows)


def test_figures_of_the_recorded_plan() -> None:
    report = _report(describe_kernels(parse_kernels(RECORDED), GROUPS))
    assert report.operations == {"conv": {"Int8": 3}}
    image = 16 * 16
    moved = (
        16 * image * (4 + 1)  # x: Float to Int8
        + 2 * (16 * image + 4 * 32 * image)  # left, right: Int8 in, Float out
        + 2 * (4 + 1) * 32 * image  # both requantized
        + 64 * image + 4 * 32 * image  # after: Int8 in, Float out
        + 2 * 4 * 32 * image  # its output to rows
    )  # fmt: skip
    assert report.activation_bytes == moved
    assert report.to_dict()["kernel_count"] == 7
    assert [row.kernel.name for row in report.kernels_of("after")] == [
        "conv_15_myl0_9",
        "__myl_Tran_myl0_10",
    ]


def test_constants_count_once() -> None:
    kernels = [
        _kernel(("a",), constants=tuple(_tensor("Float", 4, 4, name="w") for _ in range(2)))
        for _ in range(2)
    ]
    rows = describe_kernels(kernels, ())
    assert _report(rows).weight_bytes == 64


def test_unknown_bytes_make_the_sum_unknown() -> None:
    rows = describe_kernels([_kernel(("a",), inputs=(_tensor("Float", -1, 4),))], ())
    assert _report(rows).activation_bytes is None


def _row_of(kind: str, inputs: tuple, weight: tuple = (), name: str = "k") -> Kernel:
    """A kernel from `(dtype, shape)` pairs; a bias of 8 channels is always among its constants."""
    constants = tuple(_tensor(*pair) for pair in (weight, BIAS) if pair)
    tensors = tuple(_tensor(*pair) for pair in inputs)
    return _kernel(("n",), type=kind, inputs=tensors, constants=constants, name=name)


BIAS = ("Float", 1, 8, 1, 1)
INT8_IMAGE, HALF_IMAGE, FLOAT_IMAGE = ((dtype, 1, 8, 4, 4) for dtype in ("Int8", "Half", "Float"))
INT8_FILTER, HALF_FILTER, FLOAT_FILTER = ((d, 8, 8, 3, 3) for d in ("Int8", "Half", "Float"))
INT8_ROWS, HALF_MATRIX = ("Int8", 4, 8), ("Half", 8, 8)


@pytest.mark.parametrize(
    ("kernel", "operation", "dtype"),
    [
        (_row_of("correlation", (INT8_IMAGE,), INT8_FILTER), "conv", "Int8"),
        # The weight is dequantized by another kernel and arrives as an input.
        (_row_of("correlation", (FLOAT_IMAGE, FLOAT_FILTER)), "conv", "Float"),
        (_row_of("correlation", (INT8_IMAGE, FLOAT_FILTER)), "conv", "Int8*Float"),
        # A fused skip is an input too, and no operand.
        (_row_of("correlation", (HALF_IMAGE, FLOAT_IMAGE), HALF_FILTER), "conv", "Half"),
        (_row_of("correlation", (FLOAT_IMAGE,), INT8_FILTER), "conv", "Float*Int8"),
        (_row_of("deconv", (FLOAT_IMAGE,), FLOAT_FILTER), "conv", "Float"),
        (_row_of("gemm", (INT8_ROWS, INT8_ROWS)), "gemm", "Int8"),
        (_row_of("runtime_fusion", (HALF_IMAGE,), HALF_FILTER, "__myl_CorrSilu"), "conv", "Half"),
        (_row_of("runtime_fusion", (HALF_MATRIX,), HALF_MATRIX, "__myl_FcAdd"), "gemm", "Half"),
        (_row_of("kgen", (INT8_ROWS, INT8_ROWS), (), "_gemm_mha_v2_myl0_9"), "attention", "Int8"),
        (_row_of("kgen", (INT8_ROWS,)), None, None),
        (_row_of("maxpool", (INT8_IMAGE,)), None, None),
    ],
)
def test_operation_and_data_type(kernel: Kernel, operation: str | None, dtype: str | None) -> None:
    (row,) = describe_kernels([kernel], ())
    assert (row.operation, row.dtype) == (operation, dtype)
