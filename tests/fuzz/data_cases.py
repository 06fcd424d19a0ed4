"""One hostile data, image, reader or plan file: the command works, or fails in one line."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_data
import onnx
from building import Net
from cases import Outcome
from commands import faults

Make = Callable[[Path, random.Random], list[Any]]
KINDS: dict[str, Make] = {
    "npz": hostile_data.npz,
    "npy": hostile_data.npy,
    "damaged": hostile_data.damaged_archive,
    "image": hostile_data.images,
    "pb": hostile_data.test_data_set,
    "reader": hostile_data.reader,
    "plan": hostile_data.plan,
}


def look(seed: int, option: str | None = None, *, shrink: bool = False) -> Outcome:
    """Writes one hostile file and runs `optimize` or `compare` with it."""
    draw = random.Random(seed)
    kind = option or draw.choice(list(KINDS))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        model = folder / "m.onnx"
        onnx.save(small_model(), model)
        arguments = KINDS[kind](folder, draw)
        command = ["optimize", model, "-o", folder / "o.onnx", "-q", *arguments]
        if kind in ("npz", "npy", "damaged", "pb") and draw.randrange(4) == 0:
            command = ["compare", model, model, "--data", arguments[-1]]
        found = [(kind, detail.replace(name, "")) for kind, detail in faults(command)]
        return Outcome(seed, found, tag=kind, smallest=f"seed {seed}")


def small_model() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 3, 8, 8), 4, 3))
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 4, 4)))
    return net.proto(net.op("Gemm", y, net.draw(4, 3), net.draw(3)))
