"""What the whole job refuses: outputs, data, models and settings that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, compare, inspect, optimize, strip_qdq
from fusewright.errors import (
    DataError,
    ModelError,
    OutputError,
    PlanError,
    UsageError,
)

DATA = RandomSamples(6)


def test_the_input_is_never_written_to(model: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(OutputError, match="is the input file"):
        optimize(model, model, DATA)
    link = model.with_name("link.onnx")
    link.symlink_to(model)
    with pytest.raises(OutputError, match="is the input file"):
        optimize(model, link, DATA)
    assert model.read_bytes() == before


@pytest.mark.parametrize("out", ["absent/out.onnx", "."])
def test_unwritable_output_is_known_before_the_work(model: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(OutputError):
        optimize(model, tmp_path / out, None)


def test_no_data_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration data"):
        optimize(model, tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"y": np.zeros((2, 4, 8, 8), np.float32)}, "y"),
        ({"x": np.zeros((2, 4, 8, 9), np.float32)}, "x"),
        ({"x": np.zeros((2, 4, 8, 8), np.complex64)}, "x"),
        ({"x": np.full((2, 4, 8, 8), np.nan, np.float32)}, "x"),
    ],
    ids=["name", "shape", "dtype", "nan"],
)
def test_data_that_does_not_fit(model: Path, tmp_path: Path, data, words: str) -> None:
    with pytest.raises(DataError) as error:
        optimize(model, tmp_path / "out.onnx", data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_quantized_model_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    optimize(model, out, DATA)
    with pytest.raises(ModelError, match="is quantized already") as error:
        optimize(out, tmp_path / "twice.onnx", DATA)
    assert "QuantizeLinear" in str(error.value)
    assert not (tmp_path / "twice.onnx").exists()


def test_interrupted_half_way_leaves_no_file(model: Path, tmp_path: Path) -> None:
    class Impatient:
        def stage(self, name: str, detail: str, seconds: float) -> None:
            pass

        def samples(self, done: int, total: int | None) -> None:
            if done >= 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize(model, tmp_path / "out.onnx", DATA, Impatient())
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_model_that_does_not_load_is_named(model: Path, tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "batch", 4, 8, 8)
    # onnxruntime has no maximum of numbers of 16 bits.
    most = net.op("Max", net.op("Cast", x, to=onnx.TensorProto.UINT16), np.array(1, np.uint16))
    y = net.conv(net.op("Cast", most, to=onnx.TensorProto.FLOAT), 8, 4)
    path = tmp_path / "sixteen.onnx"
    onnx.save(net.proto(net.op("Gemm", net.op("Flatten", y), net.draw(512, 5), name="head")), path)
    for call in (
        lambda: optimize(path, None, DATA),
        lambda: inspect(path),
        lambda: compare(model, path, DATA),
    ):
        with pytest.raises(ModelError, match=r"sixteen\.onnx: onnxruntime cannot load") as caught:
            call()
        assert str(caught.value).count("sixteen.onnx: ") == 1


def test_strip_qdq_of_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for name, words in (("text.onnx", "not an ONNX file"), ("absent.onnx", "no such file")):
        with pytest.raises(ModelError, match=words):
            strip_qdq(tmp_path / name)


def test_unknown_setting_and_bad_values(model: Path) -> None:
    with pytest.raises(UsageError, match="no setting 'presicion'"):
        optimize(model, None, DATA, presicion="int8")
    with pytest.raises(UsageError, match="precision 'int7'"):
        optimize(model, None, DATA, precision="int7")
    with pytest.raises(UsageError, match="at least 1"):
        optimize(model, None, DATA, verify_samples=0)
    with pytest.raises(UsageError, match="matches no group"):
        optimize(model, None, DATA, exclude=("absent*",))
    with pytest.raises(UsageError, match="exclude takes a list of patterns"):
        optimize(model, None, DATA, exclude="absent*")
    with pytest.raises(UsageError, match="--plan holds every decision"):
        optimize(model, None, DATA, plan="plan.yaml", include=("head",))
    with pytest.raises(PlanError, match=r"plan\.yaml: cannot be read"):
        optimize(model, None, DATA, plan="plan.yaml")


def _of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("odd", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


NO_MODELS = {
    "twice": (
        _of(*(onnx.helper.make_node(op, ["x"], ["y"]) for op in ("Relu", "Exp"))),
        "node 'y' (Exp) writes 'y', and so does node 'y' (Relu)",
    ),
    "output": (
        _of(onnx.helper.make_node("Relu", ["x"], ["z"])),
        "nothing writes the output 'y'",
    ),
    "arity": (
        _of(onnx.helper.make_node("Relu", ["x", "x"], ["y"])),
        "onnxruntime cannot load the model: This is an invalid model. In Node, (",
    ),
    "custom": (
        _of(onnx.helper.make_node("Odd", ["x"], ["y"], domain="odd")),
        "everything in it depends on custom operators (odd::Odd), so nothing can be run",
    ),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_that_cannot_run_is_said_so_without_addresses(name: str, tmp_path: Path) -> None:
    """onnxruntime's messages begin with codes, its own source files and ours once more."""
    model, said = NO_MODELS[name]
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        optimize(path, tmp_path / "out.onnx", DATA)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_what_fails_on_a_sample_names_file_sample_and_node(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Gather", net.draw(10, 8), net.input("ids", 1, 4, dtype=np.int64))
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(net.op("MatMul", y, net.draw(8, 8))), path)
    ids = np.array([[0, 1, 2, 3], [3, 4, 5, 6], [7, 8, 9, 10]])
    said = r"sample 2: onnxruntime fails at node 'Gather_\d+' \(Gather\): .*out of data bounds"
    with pytest.raises(DataError, match=rf"^{path}: {said}"):
        optimize(path, None, {"ids": ids})
    with pytest.raises(DataError, match=rf"^{path}: {said}"):
        compare(path, path, {"ids": ids})
    np.savez(tmp_path / "d.npz", ids=np.concatenate([ids[:2]] * 3 + [ids[2:]]))
    with pytest.raises(DataError, match=r"^calibration sample 6 \(.*d\.npz\): onnxruntime fails"):
        optimize(path, None, tmp_path / "d.npz")


def test_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Relu", net.input("x", 1, 4))
    model = net.proto(net.op("SequenceConstruct", y, y))
    del model.graph.output[:]
    name = model.graph.node[-1].output[0]
    model.graph.output.append(onnx.helper.make_tensor_sequence_value_info(name, 1, None))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=rf"net\.onnx: output '{name}' is a seq\(tensor"):
        optimize(tmp_path / "net.onnx", None, DATA)


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    net = Net()
    model = net.proto(net.op("OptionalGetElement", net.input("x", 1, 4)))
    tensor = onnx.helper.make_tensor_type_proto(1, [1, 4])
    optional = onnx.helper.make_optional_type_proto(tensor)
    model.graph.input[0].CopyFrom(onnx.helper.make_value_info("x", optional))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net\.onnx: input 'x' is of type optional: samples"):
        optimize(tmp_path / "net.onnx", None, DATA)


def test_names_with_line_breaks_stay_on_one_line(tmp_path: Path) -> None:
    net = Net()
    weight = net.store(np.full((4, 4), np.nan, np.float32), "w\n\x1b[31m")
    onnx.save(net.proto(net.op("MatMul", net.input("x", 2, 4), weight)), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"stored tensor 'w \\x1b\[31m\w*' holds 16 NaN") as error:
        optimize(tmp_path / "net.onnx", None, DATA)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": "3"}, "setting 'samples' takes int or None, not '3'"),
        ({"samples": 2.5}, "setting 'samples' takes int or None, not 2.5"),
        ({"verify_samples": True}, "setting 'verify_samples' takes int, not True"),
        ({"percentile": "x"}, "setting 'percentile' takes float, not 'x'"),
        ({"precision": 8}, "setting 'precision' takes str or None, not 8"),
        ({"strict": "yes"}, "setting 'strict' takes bool, not 'yes'"),
        ({"exclude": (5,)}, "setting 'exclude' takes (str, …), not (5,)"),
        ({"images": 5}, "setting 'images' takes ImageOptions, not 5"),
        (
            {"shapes": {"x": (1, 4, 8, 8)}},
            "setting 'shapes' takes a dict from str to ((int, …), (int, …), (int, …)), not {'x'",
        ),
        ({"search": "plan", "search_budget": float("nan")}, "a search budget of nan s"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_another_type(model: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as error:
        optimize(model, None, DATA, **settings)
    assert str(error.value).startswith(words)


def test_settings_may_be_lists_and_numbers_of_numpy(model: Path) -> None:
    shapes = {"x": [[2, 4, 8, 8]] * 3}
    result = optimize(model, None, DATA, samples=np.int64(2), percentile=99, shapes=shapes)
    assert result.samples == 2
