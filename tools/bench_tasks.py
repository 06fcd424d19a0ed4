"""The trained models that the accuracy benchmark measures: the shipped digits and a corpus.

A task has `model` (a path), `unit`, `calib()` (arrays by input name, samples on axis 0), `test()`
(inputs and labels), `outputs(run)` (the first output over the evaluation inputs) and
`score(output, label)`, higher being better. A corpus is a folder with a `tasks.py` that holds them
as a dict TASKS of frozen dataclasses.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

MODELS = Path(__file__).resolve().parent.parent / "models"
# Samples to calibrate with: what the figures in the README and the issues are made with.
SAMPLES = {
    "digits_cnn": 128,
    "digits_vit": 128,
    "digits_swin": 128,
    "resnet20_cifar10_ts13_bn": 128,
    "squeezenet10_dc_imagenet_ts13": 100,
    "rlfn_x4_ts13": 16,
    "vit_mnist_ts13": 128,
    "mobilesr_x4_ts13": 16,
}


@dataclass(frozen=True)
class Digits:
    """A shipped example with the interface of a task of the corpus.

    Attributes:
        name: The stem of its file in `models/`.
        data: The stem of its data files.
    """

    name: str = "digits_cnn"
    data: str = "digits_cnn"
    unit: str = "% top-1"

    @property
    def model(self) -> Path:
        """The FP32 file."""
        return MODELS / f"{self.name}.onnx"

    def calib(self) -> dict[str, np.ndarray]:
        """The calibration samples by input name."""
        return dict(np.load(MODELS / f"{self.data}_calib.npz"))

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Held-out inputs and labels."""
        held_out = np.load(MODELS / f"{self.data}_test.npz")
        return held_out["input"], held_out["label"]

    def outputs(self, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> np.ndarray:
        """The logits over the held-out samples."""
        return run({"input": self.test()[0]})[0]

    def score(self, output: np.ndarray, label: np.ndarray) -> float:
        """Top-1 in percent."""
        return 100.0 * float((output.argmax(-1) == label).mean())


DIGITS = (
    Digits(),
    Digits("digits_vit", "digits_32"),
    Digits("digits_swin", "digits_32"),
)


def load_tasks(corpus: Path) -> dict[str, Any]:
    """The digits models, and the corpus' tasks if `corpus` is a folder."""
    tasks: dict[str, Any] = {task.name: task for task in DIGITS}
    if not corpus.is_dir():
        return tasks
    spec = importlib.util.spec_from_file_location("corpus_tasks", corpus / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus_tasks"] = module
    spec.loader.exec_module(module)
    # Images are decoded once, not for every model that is judged on them.
    cached = {k: replace(task, test=functools.cache(task.test)) for k, task in module.TASKS.items()}
    return tasks | cached
