"""Writers of hostile files; each returns the options of `optimize` that name them."""

from __future__ import annotations

import io
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from damage import FLOATS, NUMBERS, TEXTS, bytes_damaged
from onnx import numpy_helper
from PIL import Image

GOOD = (2, 3, 8, 8)
SHAPES = (
    GOOD,
    (0, 3, 8, 8),
    (2, 3, 8),
    (3, 8, 8),
    (2, 8, 8, 3),
    (),
    (1,),
    (2, 3, 8, 8, 1),
    (1, 3, 8, 8),
)
DTYPES = ("<f4", ">f4", "<f8", "<f2", "i1", "u1", "<i4", "<i8", "?", "<c8", "<M8[s]", "<m8[s]",
          "S4", "<U4", "V8", "O", "<f4,<i4")  # fmt: skip


def _array(draw: random.Random) -> np.ndarray:
    shape = draw.choice((GOOD, GOOD, *SHAPES))
    array = np.asarray(np.random.default_rng(draw.randrange(99)).standard_normal(shape))
    dtype = draw.choice(("<f4", "<f4", *DTYPES))
    if dtype == "O":
        return array.astype(object)
    if dtype in ("V8", "<f4,<i4", "<M8[s]", "<m8[s]"):
        return np.zeros(shape, dtype)
    array = array.astype(dtype)
    if array.dtype.kind == "f" and array.size and draw.randrange(3) == 0:
        array.flat[draw.randrange(array.size)] = draw.choice(FLOATS)
    return np.asfortranarray(array) if draw.randrange(4) == 0 else array


def npy(folder: Path, draw: random.Random) -> list[Any]:
    path = folder / "d.npy"
    np.save(path, _array(draw), allow_pickle=True)
    if draw.randrange(2):
        path.write_bytes(_header_damaged(path.read_bytes(), draw))
    return ["--calib", path]


def _header_damaged(data: bytes, draw: random.Random) -> bytes:
    """Another shape, type or order in the header than the data has."""
    old, new = draw.choice(
        [
            (b"(2, 3, 8, 8)", b"(9, 3, 8, 8)"),
            (b"(2, 3, 8, 8)", b"(-1, 3, 8,8)"),
            (b"(2, 3, 8, 8)", b"(2, 3, 8, 8 "),
            (b"(2, 3, 8, 8)", b"(99999999,3)"),
            (b"<f4", b"<f9"),
            (b"<f4", b"|O8"),
            (b"False", b"True "),
            (b"descr", b"dtype"),
            (b"NUMPY", b"NUMPZ"),
            (b"{", b"["),
        ]
    )
    return data.replace(old, new, 1)


def npz(folder: Path, draw: random.Random) -> list[Any]:
    path = folder / "d.npz"
    names = draw.choice([("x",), ("x",), ("x", "y"), ("X",), (), ("x", "x"), ("../x",), ("層",)])
    with zipfile.ZipFile(path, "w", draw.choice([0, 8, 8, 12, 14])) as archive:
        for name in names:
            member = io.BytesIO()
            np.save(member, _array(draw), allow_pickle=True)
            data = member.getvalue()
            if draw.randrange(4) == 0:
                data = draw.choice([data[: len(data) // 2], b"", bytes_damaged(data, draw)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a name twice
                archive.writestr(f"{name}.npy", data)
        if draw.randrange(4) == 0:
            archive.writestr(draw.choice(["notes.txt", "x", "dir/", "x.npy.bak"]), b"words")
    return ["--calib", path]


def damaged_archive(folder: Path, draw: random.Random) -> list[Any]:
    """A good npz or npy whose bytes are damaged."""
    path = folder / draw.choice(["d.npz", "d.npy"])
    array = np.ones(GOOD, np.float32)
    save = np.savez if path.suffix == ".npz" else np.save
    if path.suffix == ".npz":
        draw.choice([np.savez, np.savez_compressed])(path, x=array)
    else:
        save(path, array)
    data = path.read_bytes()
    if path.suffix == ".npz" and draw.randrange(4) == 0:
        # The flag of encryption, in the local header and in the directory.
        data = data[:6] + b"\1" + data[7:]
        data = data.replace(b"PK\1\2\x14\0\x14\0\0", b"PK\1\2\x14\0\x14\0\1", 1)
    else:
        data = bytes_damaged(data, draw)
    path.write_bytes(data)
    return ["--calib", path]


def images(folder: Path, draw: random.Random) -> list[Any]:
    """A folder of pictures in odd modes and formats, some of them damaged."""
    inner = folder / "images"
    inner.mkdir()
    for i in range(draw.choice([1, 2])):
        mode = draw.choice(["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "I", "F", "LA"])
        size = draw.choice([(8, 8), (1, 1), (31, 7), (3000, 1)])
        kind = draw.choice(["png", "jpg", "bmp", "tiff", "gif", "webp", "ppm"])
        path = inner / f"{i}.{kind}"
        try:
            Image.new(mode, size).save(path)
        except (OSError, KeyError, ValueError):  # a format without that mode
            path.write_bytes(b"")
        if draw.randrange(2):
            path.write_bytes(bytes_damaged(path.read_bytes() or b"x", draw))
    more: list[Any] = []
    number = draw.choice(
        ["0.5", "1", "0", "inf", "nan", "-1", "1e-40", "1e400", "x", "1,2", "0.1,0.2,0.3"]
    )
    if draw.randrange(2):
        more += [draw.choice(["--mean", "--std", "--scale", "--size"]), number]
    return ["--calib", inner, *more]


def test_data_set(folder: Path, draw: random.Random) -> list[Any]:
    """ONNX's folders of protobuf tensors."""
    inner = folder / "set" / draw.choice(["test_data_set_0", "test_data_set_x", "other"])
    inner.mkdir(parents=True)
    tensor = numpy_helper.from_array(np.ones(draw.choice(SHAPES), np.float32), "x")
    if draw.randrange(2):
        tensor.data_type = draw.randrange(26)
    if draw.randrange(3) == 0:
        tensor.dims.extend([draw.choice(NUMBERS)])
    data = tensor.SerializeToString()
    if draw.randrange(3) == 0:
        data = bytes_damaged(data, draw)
    (inner / draw.choice(["input_0.pb", "input_0.pb", "input_1.pb", "x.pb"])).write_bytes(data)
    return ["--calib", folder / "set"]


_ODD = """class Odd:
    def __array__(self, *a, **k):
        {does}
feeds = [dict(x=Odd())]
"""
READERS = (
    "def feeds():\n    raise {error}\n",
    "feeds = [{sample}]\n",
    "feeds = [dict(x={sample})] * 2\n",
    "def feeds():\n    yield dict(x={sample})\n    raise {error}\n",
    "class feeds:\n    def get_next(self):\n        return {sample}\n",
    "class feeds:\n    def get_next(self):\n        raise {error}\n",
    "class feeds:\n    def __iter__(self):\n        return {sample}\n",
    "feeds = {sample}\n",
    "raise {error}\n",
    "def feeds(:\n",
    _ODD.format(does="return {sample}"),
    _ODD.format(does="raise {error}"),
)
ERRORS = (
    "ValueError('no')",
    "SystemExit(0)",
    "SystemExit('bye')",
    "KeyError(1)",
    "StopIteration",
    "GeneratorExit",
    "MemoryError",
    "RecursionError",
    "OSError('a\\nb')",
    "BaseException('x')",
)
VALUES = (
    "np.ones((1, 3, 8, 8), np.float32)",
    "None",
    "1",
    "'x'",
    "[]",
    "{}",
    "[[1, 2], [3]]",
    "np.array([None])",
    "np.ones((1, 3, 8, 8), complex)",
    "object()",
    "lambda: 0",
    "np.ones((1, 3, 8, 8), '<M8[s]')",
    "np.ma.ones((1, 3, 8, 8))",
    "{1: 2}",
    "{'x': {}}",
    "memoryview(b'12')",
    "np.full((1, 3, 8, 8), np.nan, np.float32)",
    "10 ** 400",
)


def reader(folder: Path, draw: random.Random) -> list[Any]:
    """A Python reader that raises, ends the process, or gives anything at all."""
    text = draw.choice(READERS).format(error=draw.choice(ERRORS), sample=draw.choice(VALUES))
    name = f"reader_{draw.randrange(10**9)}"
    (folder / f"{name}.py").write_text(f"import numpy as np\n{text}")
    return ["--calib", f"{folder / name}.py:feeds"]


PLANS = (
    "groups:\n  - &a [*a]\n",
    "a: &a [1,1]\nb: &b [*a,*a]\ngroups: [*b,*b]\n",
    "groups: 2020-01-01\n",
    "!!python/object/apply:os.system [true]\n",
    "groups: !!binary aGVsbG8=\n",
    "- 1\n",
    "",
    "\0",
    "groups:\n  - {name: 1, decision: int8}\n",
    "groups: {}\n",
    "groups:\n- name: []\n",
    "? [1]\n: 2\n",
    "groups: [null]\n",
    "groups: !!set {a}\n",
    "!!timestamp 2001-12-14\n",
    "groups: .nan\n",
)


def plan(folder: Path, draw: random.Random) -> list[Any]:
    """A plan file: one of odd YAML, or a real one with a line changed."""
    path = folder / "p.yaml"
    if draw.randrange(2):
        path.write_text(draw.choice(PLANS))
    else:
        path.write_text(_edited(folder, draw))
    return ["--random-data", "--samples", 2, "--plan", path]


def _edited(folder: Path, draw: random.Random) -> str:
    from fusewright import inspect
    from fusewright.plan.file import plan_text

    lines = plan_text(inspect(folder / "m.onnx")).splitlines()
    for _ in range(draw.choice([1, 2])):
        place = draw.randrange(len(lines))
        key = lines[place].partition(":")[0]
        odd = draw.choice(
            [*TEXTS[:8], "2020-01-01", "[1]", "{}", "1e999", "null", "true", "0x1F", "!!x y"]
        )
        way = draw.randrange(4)
        if way == 0:
            del lines[place]
        elif way == 1:
            lines.insert(place, lines[place])
        else:
            lines[place] = f"{key}: {odd}"
    return "\n".join(lines).replace("\0", "") + "\n"
