"""One damaged model file through a command: it works, or fails in one line."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import onnx
from asking import PRECISIONS
from cases import Outcome
from commands import faults
from damage import bytes_damaged, fields_damaged, moved_out
from recipe import Drawn, build, draw_recipe

import fusewright
from fusewright.errors import FusewrightError

WAYS = ("bytes", "fields", "fields", "external", "both")
COMMANDS = ("optimize", "optimize", "optimize", "inspect", "plan", "compare", "build", "strip")
# Models to damage; few, because it is the damage that counts.
MODELS = 40


def look(seed: int, option: str | None = None, *, shrink: bool = False) -> Outcome:
    """Damages a file of a drawn model, or of its quantized form, and runs a command on it."""
    draw = random.Random(seed)
    way, command = draw.choice(WAYS), option or draw.choice(COMMANDS)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        drawn, model = _model(draw.randrange(MODELS), folder, draw)
        path = folder / "m.onnx"
        (folder / "w.bin").write_bytes(bytes(64))
        path.write_bytes(damaged(model, way, draw))
        onnx.save(drawn.proto, folder / "whole.onnx")
        _save(drawn, folder / "data.npz")
        found = _ran(command, path, folder, draw)
        kept = [(kind, detail.replace(name, "")) for kind, detail in found]
        return Outcome(seed, kept, tag=f"{way} {command}", smallest=f"seed {seed}")


def _model(seed: int, folder: Path, draw: random.Random) -> tuple[Drawn, onnx.ModelProto]:
    """A drawn model, and in one case of three what the tool makes of it."""
    drawn = build(draw_recipe(seed))
    if draw.randrange(3):
        return drawn, drawn.proto
    onnx.save(drawn.proto, folder / "float.onnx")
    try:
        result = fusewright.optimize(
            folder / "float.onnx", None, drawn.feeds[:2], precision=draw.choice(PRECISIONS)
        )
    except FusewrightError:
        return drawn, drawn.proto
    return drawn, result.model


def damaged(model: onnx.ModelProto, way: str, draw: random.Random) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if way == "external":
        moved_out(copy, draw)
    if way in ("fields", "both"):
        fields_damaged(copy, draw)
    data = copy.SerializeToString()
    return bytes_damaged(data, draw) if way in ("bytes", "both") else data


def _save(drawn: Drawn, path: Path) -> None:
    """The first sample's shape only: an npz holds arrays of one shape."""
    first = drawn.feeds[0]
    alike = [f for f in drawn.feeds if all(f[n].shape == first[n].shape for n in first)]
    arrays = {
        name: np.concatenate([f[name] for f in alike[:2]]) if first[name].ndim else first[name]
        for name in first
    }
    np.savez(path, **arrays)


def _ran(command: str, path: Path, folder: Path, draw: random.Random) -> list[tuple[str, str]]:
    data, out = folder / "data.npz", folder / "o.onnx"
    if command == "optimize":
        precision = draw.choice(PRECISIONS)
        rest = ["--calib", data] if draw.randrange(2) else ["--random-data", "--samples", 2]
        return faults(["optimize", path, "-o", out, "-q", "--precision", precision, *rest])
    if command == "compare":
        return faults(["compare", folder / "whole.onnx", path, "--data", data])
    if command == "plan":
        return faults(["plan", path, "-o", folder / "p.yaml"])
    if command == "build":
        return faults(["build", path, "-o", folder / "e.engine", "-q"])
    if command == "inspect":
        return faults(["inspect", path])
    try:
        fusewright.strip_qdq(path)
    except FusewrightError as error:
        return [("not one line", str(error)[:300])] if "\n" in str(error) else []
    except Exception as error:  # noqa: BLE001 - what must not come out
        return [("escaped", f"strip_qdq: {type(error).__name__}: {error}"[:300])]
    return []
