"""Builds small ONNX graphs tersely, and proves two models equal in onnxruntime.

net = Net()
x = net.input("x", 1, 4, 8, 8)
y = net.op("Relu", net.op("Conv", x, net.draw(6, 4, 3, 3), pads=[1, 1, 1, 1]))
model = net.model(y)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from fusewright.graph.convert import to_model, to_proto
from fusewright.graph.load import read_source
from fusewright.graph.model import Model
from fusewright.graph.opset import INT8_OPSET, convert_opset
from fusewright.pipeline.prepare import Preparation, plain
from fusewright.pipeline.trace import Silent, Trace

TOLERANCE = 1e-5
# A dynamic dimension gets this size when the model is run.
DYNAMIC = 2


class Net:
    """One graph, built node by node; weights are drawn from a seeded generator."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.stored: dict[str, np.ndarray] = {}
        self._count = 0

    def input(self, name: str, *shape: int | str, dtype: type = np.float32) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def draw(self, *shape: int, name: str = "w", dtype: type = np.float32) -> str:
        """A stored tensor of random numbers, scaled so that activations keep their size."""
        fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1
        return self.store(self.random.standard_normal(shape) / np.sqrt(fan_in), name, dtype)

    def positive(self, *shape: int, name: str = "p", dtype: type = np.float32) -> str:
        """A stored tensor of random numbers between 0.5 and 1.5."""
        return self.store(self.random.uniform(0.5, 1.5, shape), name, dtype)

    def store(self, value: Any, name: str = "c", dtype: type | None = np.float32) -> str:
        name = self._fresh(name)
        self.stored[name] = np.asarray(value, dtype=dtype)
        return name

    def op(self, op: str, *inputs: Any, outputs: int = 1, name: str | None = None, **attrs: Any):
        """Adds a node and returns the name of its output, or of all where there are several.

        An input is a name, None (omitted), a number or list (float32; ints in a list are int64),
        or an array.
        """
        domain = attrs.pop("domain", "")
        name = self._fresh(op) if name is None else name
        results = [f"{name}_y" if i == 0 else f"{name}_y{i}" for i in range(outputs)]
        sources = [self._operand(value) for value in inputs]
        self.nodes.append(helper.make_node(op, sources, results, name, domain=domain, **attrs))
        return results[0] if outputs == 1 else tuple(results)

    def conv(self, x: str, out: int, into: int, kernel: int = 3, **options: Any) -> str:
        """Conv with drawn weights that keeps the size of the map; `bias=False` leaves it out."""
        rank, group = options.pop("rank", 2), options.get("group", 1)
        dtype = options.pop("dtype", np.float32)
        weight = options.pop("weight", None)
        weight = weight or self.draw(out, into // group, *(kernel,) * rank, dtype=dtype)
        bias = [self.draw(out, name="b", dtype=dtype)] if options.pop("bias", True) else []
        options.setdefault("pads", [kernel // 2] * 2 * rank)
        return self.op("Conv", x, weight, *bias, **options)

    def batchnorm(self, x: str, channels: int, dtype: type = np.float32, **options: Any) -> str:
        """BatchNormalization with drawn parameters, none of which is the identity."""
        parameters = [self.positive(channels, name="gamma", dtype=dtype)]
        parameters += [self.draw(channels, name=n, dtype=dtype) for n in ("beta", "mean")]
        parameters += [self.positive(channels, name="variance", dtype=dtype)]
        return self.op("BatchNormalization", x, *parameters, **options)

    def proto(self, *outputs: str) -> onnx.ModelProto:
        """The model with these outputs, their types inferred."""
        initializers = [numpy_helper.from_array(a, n) for n, a in self.stored.items()]
        declared = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, declared, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [
            helper.make_opsetid(domain, 1)
            for domain in sorted({n.domain for n in self.nodes} - {""})
        ]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = max(8, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value in model.graph.output:
            if value.name in self.stored:
                array = self.stored[value.name]
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
        del model.graph.value_info[:]
        return model

    def model(self, *outputs: str) -> Model:
        """As the stages see it, the file's own nodes: not cleaned, so that spellings survive."""
        return as_model(self.proto(*outputs))

    def _operand(self, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        integers = isinstance(value, list) and all(isinstance(v, int) for v in value)
        kept = isinstance(value, (np.ndarray, np.generic))
        return self.store(value, dtype=None if kept else np.int64 if integers else np.float32)

    def _fresh(self, name: str) -> str:
        self._count += 1
        return f"{name}_{self._count}"


def as_model(proto: onnx.ModelProto, *, clean: bool = False) -> Model:
    """Takes a proto through a file and the real loader; `clean` adds onnxruntime's optimizer.

    A cleaned model is normalized too.
    """
    with tempfile.TemporaryDirectory(prefix="fusewright-test-") as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(proto, path)
        source = read_source(path)
        if clean:
            return Preparation(source, Trace(Silent())).run()
        return to_model(convert_opset(plain(source), INT8_OPSET), source)


def ops(model: Model) -> str:
    """Operators in topological order, separated by spaces."""
    return " ".join(node.op for node in model.graph.nodes)


def feeds(proto: onnx.ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs; normal with deviation 3, so that both ends of an activation are met."""
    random = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    result = {}
    for value in proto.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or DYNAMIC for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        result[value.name] = np.asarray(3 * random.standard_normal(shape), np.float64).astype(dtype)
    return result


def run(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs a model, optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[np.ndarray] = session.run([v.name for v in proto.graph.output], dict(feed))
    return results


def assert_equal(
    before: onnx.ModelProto,
    after: onnx.ModelProto | Model,
    feed: Mapping[str, np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Same interface, and the same results on random inputs, by relative norm.

    Constant results are refused: they would make any two models equal.
    """
    after = to_proto(after.graph) if isinstance(after, Model) else after
    assert _interface(before.graph.input) == _interface(after.graph.input)
    assert [v.name for v in before.graph.output] == [v.name for v in after.graph.output]
    feed = feeds(before) if feed is None else feed
    for value, old, new in zip(
        before.graph.output, run(before, feed), run(after, feed), strict=True
    ):
        assert (old.shape, old.dtype) == (new.shape, new.dtype), value.name
        if old.dtype.kind != "f":
            assert np.array_equal(old, new), value.name
            continue
        assert np.all(np.isfinite(old)), f"{value.name}: the reference is not finite"
        norm = np.linalg.norm(old.astype(np.float64))
        assert norm > 0, f"{value.name}: the reference is all zeros"
        error = np.linalg.norm(old.astype(np.float64) - new.astype(np.float64)) / norm
        assert error <= tolerance, f"{value.name}: relative error {error:.2e}"


def _interface(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, bytes]]:
    return [(v.name, v.type.SerializeToString()) for v in values]
