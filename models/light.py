"""The onnx package's Caffe2-era networks with seeded random weights instead of constant ones.

    python models/zoo.py light_resnet50 -o DIR

`onnx/backend/test/data/light/` holds nine ImageNet classifiers of opset 9 whose weights are 0.02
throughout, most of them made by ConstantOfShape nodes to keep the files small. With equal weights
any two channels could be swapped unnoticed; here every weight is drawn. What else is odd in the
files stays: initializers that are graph inputs too, BatchNorm unfolded, Sum for Add, LRN, Softmax
at the end, a fixed batch of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableSequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

LIGHT = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_squeezenet",
    "light_vgg19",
    "light_zfnet512",
)

_Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(std: float) -> _Draw:
    return lambda rng, shape: std * rng.standard_normal(shape, np.float32)


def _he_conv(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Keeps the second moment through Conv and Relu."""
    return _normal(float(np.sqrt(2 / np.prod(shape[1:]))))(rng, shape)


def _he_gemm(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The same for a Gemm with transB, whose weight may carry ones in front."""
    return _normal(float(np.sqrt(2 / shape[-1])))(rng, shape)


def _around_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


# What to draw for a weight, by the operator and the input slot it ends in.
_DRAW: Mapping[tuple[str, int], _Draw] = {
    ("Conv", 1): _he_conv,
    ("Conv", 2): _normal(0.1),
    ("Gemm", 1): _he_gemm,
    ("Gemm", 2): _normal(0.1),
    ("Mul", 1): _around_one,
    ("Add", 1): _normal(0.1),
    ("BatchNormalization", 1): _around_one,
    ("BatchNormalization", 2): _normal(0.1),
    ("BatchNormalization", 3): _normal(0.1),  # statistics are settled after the draw
    ("BatchNormalization", 4): _around_one,
}


def light(name: str, seed: int = 0) -> onnx.ModelProto:
    """The light model `name` with weights drawn from `seed`.

    Raises:
        ValueError: no such model.
    """
    if name not in LIGHT:
        raise ValueError(f"no light model {name!r}; there are {', '.join(LIGHT)}")
    model = onnx.load(Path(onnx.__file__).parent / f"backend/test/data/light/{name}.onnx")
    rng = np.random.default_rng(seed)
    _materialize(model.graph)
    slots = _slots(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in slots:
            values = _DRAW[slots[tensor.name]](rng, tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _damp_residuals(model.graph)
    _settle_batch_norms(model, rng)
    return model


def image(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """A feed of one normal random image for the only real input of a light model."""
    stored = {tensor.name for tensor in model.graph.initializer}
    (source,) = (value for value in model.graph.input if value.name not in stored)
    shape = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
    return {source.name: np.random.default_rng(seed).standard_normal(shape, np.float32)}


def _materialize(graph: onnx.GraphProto) -> None:
    """Turns every ConstantOfShape into an initializer (and, as IR 3 demands, a graph input)."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in makers:
        values = np.zeros(shapes[node.input[0]], np.float32)
        (name,) = node.output
        graph.initializer.append(numpy_helper.from_array(values, name))
        kind = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    gone = {node.input[0] for node in makers}
    _keep(graph.node, lambda node: node.op_type != "ConstantOfShape")
    _keep(graph.initializer, lambda tensor: tensor.name not in gone)
    _keep(graph.input, lambda value: value.name not in gone)


def _keep(field: MutableSequence[Any], wanted: Callable[[Any], bool]) -> None:
    kept = [item for item in field if wanted(item)]
    del field[:]
    field.extend(kept)


def _slots(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Where each tensor ends: operator and input slot of its reader, past Reshape and Unsqueeze."""
    slots: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.node):
        for slot, name in enumerate(node.input):
            layout = node.op_type in ("Reshape", "Unsqueeze")
            slots[name] = slots.get(node.output[0], ("", 0)) if layout else (node.op_type, slot)
    return slots


def _damp_residuals(graph: onnx.GraphProto) -> None:
    """Makes the branches of residual blocks small beside their skips, as training does.

    Undamped, one rounding of the image moves the output of light_resnet50 by 2e-5: chaos, in which
    no rewrite can be told from an error.
    """
    norms = {n.output[0]: n for n in graph.node if n.op_type == "BatchNormalization"}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # Caffe2 writes the branch first and the skip (which may be a projection) second.
    branches = [node.input[0] for node in graph.node if node.op_type == "Sum"]
    for node in (norms[name] for name in branches if name in norms):
        gamma = stored[node.input[1]]
        gamma.CopyFrom(numpy_helper.from_array(0.3 * numpy_helper.to_array(gamma), gamma.name))


def _settle_batch_norms(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Gives each BatchNorm the statistics of its activations, so that depth neither dies nor blows.

    For a batch of one, normalizing by the activations at hand is InstanceNormalization: one run of
    such a copy tells every mean and variance.
    """
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not norms:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for node in probe.graph.node:
        if node.op_type == "BatchNormalization":
            node.op_type = "InstanceNormalization"
            del node.input[3:]
            _keep(node.attribute, lambda attribute: attribute.name == "epsilon")
    del probe.graph.output[:]
    names = [node.input[0] for node in norms]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every initializer that the probe leaves unused
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    seen = session.run(names, image(model, int(rng.integers(2**31))))
    for node, activation in zip(norms, seen, strict=True):
        mean, variance = activation.mean((0, 2, 3)), activation.var((0, 2, 3))
        variance = np.maximum(variance, 0.1 * variance.mean())  # a map of few pixels may be flat
        for name, values in zip(node.input[3:5], (mean, variance), strict=True):
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
