"""What the corpus holds, and the data each of its files is calibrated with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fusewright import RandomSamples

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FUSEWRIGHT_CORPUS", ROOT.parent / "shared" / "corpus"))
NAMES = sorted(path.stem for path in FOLDER.glob("onnx/*.onnx"))
# Inputs of open shape. TensorRT's attention examples multiply Q and K as they come: square ones.
SHAPES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)},
    "tract_bidi_lstm": {"input": (1, 16)},
    "trt_attention": dict.fromkeys(("q", "k", "v"), (2, 16, 16)),
    "trt_multi_attention": dict.fromkeys(("q", "q1", "k", "k2", "v", "v2"), (2, 16, 16)),
}


def calibration(name: str, tasks: ModuleType, count: int) -> Any:
    """Real samples where the corpus has some, else seeded random ones."""
    if name in tasks.TASKS:
        return {key: array[:count] for key, array in tasks.TASKS[name].calib().items()}
    return RandomSamples(count, shapes=SHAPES.get(name, {}))
