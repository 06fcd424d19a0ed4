"""Inputs of models and samples for them, as the tests of calibration data share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusewright.calibrate.samples import Samples
from fusewright.graph.session import TensorSpec

F4, I8 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = (TensorSpec("x", F4, ("N", 3, 4, 4)),)
FIXED = (TensorSpec("x", F4, (4, 3, 4, 4)),)
PAIR = (TensorSpec("x", F4, ("N", 2)), TensorSpec("ids", I8, ("N", "L")))
AUDIO = (TensorSpec("x", F4, ("N", "L")), TensorSpec("sr", I8, ()))
STATE = (TensorSpec("x", F4, (1, 3)), TensorSpec("h", F4, (2, 1, 5)))
DATA = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)


def collected(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in samples])


def npz_file(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=DATA)
    return folder / "a.npz"


def npy_file(folder: Path) -> Path:
    np.save(folder / "a.npy", DATA)
    return folder / "a.npy"


def deflated_file(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=DATA)
    return folder / "a.npz"


class Reader:
    def __init__(self) -> None:
        self.parts = iter(np.split(DATA, 5))

    def get_next(self):
        part = next(self.parts, None)
        return None if part is None else {"x": part}
