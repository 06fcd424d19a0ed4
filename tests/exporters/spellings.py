"""One model in every spelling, and what is asked of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from architectures import Spec, make
from signature import signature
from zoo import Spelling, exported, write

import fusewright
from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import collapse
from fusewright.plan.plan import Plan
from fusewright.verify.equivalence import compare_models

# Lines on one spelling in a failure; one difference at the start draws many.
_MOST = 40
# Torch's own operator for attention came to ONNX's translation with opset 14.
OLDEST, SDPA = 13, 14


@dataclass(frozen=True)
class Spelled:
    """One file of a model.

    Attributes:
        label: which spelling it is.
        dynamic: whether its batch is open.
    """

    label: str
    path: Path
    dynamic: bool = True

    @property
    def batches(self) -> tuple[int, ...]:
        """What it is compared at; a static batch is the exporters' example's."""
        return (1, 3) if self.dynamic else (2,)


def torchscript(spec: Spec, folder: Path, opset: int = 17, *, dynamic: bool = True) -> Spelled:
    """What the TorchScript exporter writes."""
    label = f"TorchScript {opset}{'' if dynamic else ' static'}"
    path = folder / f"{label}.onnx"
    write(make(spec), spec, Spelling("torchscript", opset, dynamic), path)
    return Spelled(label, path, dynamic)


def dynamo(
    spec: Spec, folder: Path, opsets: tuple[int, ...] = (18,), *, dynamic: bool = True
) -> Iterator[Spelled]:
    """What the dynamo exporter writes at each opset."""
    # A module of its own: a trace leaves tensors behind in transformers' Swin.
    program = exported(make(spec), spec, dynamic=dynamic)
    for opset in opsets:
        label = f"dynamo {opset}{'' if dynamic else ' static'}"
        path = folder / f"{label}.onnx"
        write(program, spec, Spelling("dynamo", opset, dynamic), path)
        yield Spelled(label, path, dynamic)


def optimized(given: Spelled, folder: Path) -> Spelled:
    """What onnxruntime's basic optimizations make of a file."""
    label = f"{given.label}, onnxruntime basic"
    path = folder / f"{label}.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(given.path, options, providers=["CPUExecutionProvider"])
    return Spelled(label, path, given.dynamic)


def slimmed(given: Spelled, folder: Path) -> Spelled:
    """What onnxslim makes of a file."""
    import onnxslim

    label = f"{given.label}, onnxslim"
    path = folder / f"{label}.onnx"
    onnx.save(onnxslim.slim(onnx.load(given.path)), path)
    return Spelled(label, path, given.dynamic)


def feeds(spec: Spec, batch: int) -> dict[str, np.ndarray]:
    """Normal images; token ids; masks that keep some of the first tokens of each text."""
    random = np.random.default_rng(batch)
    found: dict[str, np.ndarray] = {}
    for name, shape in spec.inputs.items():
        if len(shape) > 1:
            found[name] = random.standard_normal((batch, *shape), np.float32)
        elif "mask" in name:
            kept = random.integers(1, shape[0] + 1, (batch, 1))
            found[name] = (np.arange(shape[0]) < kept).astype(np.int64)
        else:
            found[name] = random.integers(0, spec.vocabulary, (batch, *shape))
    return found


@dataclass
class Agreement:
    """Compares spellings of one model with the first.

    Attributes:
        spec: the model.
        tolerance: of a collapsed file's outputs against its own original's.
        plan: of the first spelling.
        problems: what is wrong with any.
    """

    spec: Spec
    tolerance: float = 1e-5
    plan: Plan | None = None
    problems: list[str] = field(default_factory=list)

    def add(self, spelled: Spelled) -> None:
        """Looks at one more spelling."""
        plan = fusewright.inspect(spelled.path)
        self.plan = self.plan or plan
        found = [f"{u.op} {u.name}: {u.reason}" for u in plan.unclaimed]
        lines = unified_diff(signature(self.plan), signature(plan), "first", "this", n=0)
        found += [line.rstrip() for line in lines]
        collapsed = to_proto(collapse(plan.model.graph, plan))
        found += self.differences(spelled, collapsed)
        self.problems += [f"{spelled.label}: {text}" for text in found[:_MOST]]

    def differences(self, spelled: Spelled, model: onnx.ModelProto) -> list[str]:
        """At which batch sizes a model computes something else than the file."""
        found = []
        for batch in spelled.batches:
            comparison, _ = compare_models(spelled.path, model, [feeds(self.spec, batch)])
            if not comparison.is_within(self.tolerance):
                found.append(f"batch {batch}: relative error {comparison.worst.relative:.1e}")
        return found

    def add_proven(self, spelled: Spelled) -> None:
        """The same of the whole job in float; a rewrite that had to be undone is an error."""
        samples = [feeds(self.spec, 1), feeds(self.spec, 2 if spelled.dynamic else 1)]
        result = fusewright.optimize(spelled.path, None, samples, precision="fp32", strict=True)
        found = self.differences(spelled, result.model)
        self.problems += [f"{spelled.label}, collapsed file: {text}" for text in found]
