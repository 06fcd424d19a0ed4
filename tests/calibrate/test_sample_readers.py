"""Samples from readers, modules and random numbers: what can be read once, and again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from stored_samples import (
    DATA,
    F4,
    I8,
    IMAGE,
    Reader,
    collected,
)

from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError, FusewrightError, UsageError
from fusewright.graph.session import TensorSpec


def test_a_source_that_reads_once_is_kept_only_as_far_as_taken():
    alive = []

    def stream():
        for k in range(10):
            alive.append(k)
            yield {"x": DATA[k]}

    inputs = (TensorSpec("x", F4, (3, 4, 4)),)
    samples = open_samples(stream(), inputs)
    assert len(samples.take(1)) == 1 and len(alive) <= 2
    assert len(samples.take(1)) == 1 and len(alive) <= 2
    assert len(samples._head) == 1
    assert sum(1 for _ in samples) == 10
    assert not samples._head
    with pytest.raises(DataError, match="only once"):
        list(samples)
    with pytest.raises(DataError, match="only once"):
        samples.take(1)


def test_a_reader_with_rewind_starts_again():
    class Rewinding(Reader):
        def rewind(self) -> None:
            self.parts = iter(np.split(DATA, 5))

    samples = open_samples(Rewinding(), IMAGE)
    for _ in range(2):
        np.testing.assert_array_equal(collected(samples), DATA)


READER = """
import numpy as np
DATA = [{"x": np.full((1, 3, 4, 4), k, np.float32)} for k in range(3)]
NOTHING = 3
class Reader:
    def __init__(self): self.left = iter(DATA)
    def get_next(self): return next(self.left, None)
instance = Reader()
def generate():
    yield from DATA
def broken():
    yield DATA[0]
    raise RuntimeError("camera gone")
def wrong():
    yield 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"reader_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(READER)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["DATA", "Reader", "instance", "generate"])
def test_module_readers(module, attribute):
    path = list(sys.path)
    samples = open_samples(f"{module}:{attribute}", IMAGE)
    assert [feed["x"][0, 0, 0, 0] for feed in samples] == [0, 1, 2]
    assert sys.path == path


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Missing", "has no 'Missing'"),
        ("NOTHING", ":NOTHING': no calibration data"),
        ("broken", "RuntimeError: camera gone"),
        ("wrong", "item 0: a int, not a dict"),
    ],
)
def test_bad_readers(module, attribute, message):
    with pytest.raises(DataError, match=message):
        list(open_samples(f"{module}:{attribute}", IMAGE))


def test_a_reader_without_samples_is_named(tmp_path, monkeypatch):
    (tmp_path / "barren.py").write_text("def feeds():\n    return iter(())\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="reader 'barren:feeds': no calibration samples"):
        list(open_samples("barren:feeds", IMAGE))


def test_reader_module_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syntax_is_wrong.py").write_text("def (")
    for name in ("no_such_module", "syntax_is_wrong"):
        with pytest.raises(DataError, match=f"'{name}:r'.*cannot import"):
            open_samples(f"{name}:r", IMAGE)


def test_random_samples_are_seeded_and_fit():
    inputs = (
        TensorSpec("x", np.dtype(np.float16), ("N", 3, "H")),
        TensorSpec("ids", I8, (1, 5)),
        TensorSpec("flag", np.dtype(np.bool_), ()),
    )
    source = RandomSamples(count=3, seed=1, shapes={"x": (2, 3, 8)})
    samples = open_samples(source, inputs)
    first, second = list(samples), list(samples)
    assert len(first) == samples.total == 3
    for a, b in zip(first, second, strict=True):
        assert [a[s.name].dtype for s in inputs] == [s.dtype for s in inputs]
        assert a["x"].shape == (2, 3, 8) and a["ids"].shape == (1, 5) and a["flag"].shape == ()
        assert all((a[s.name] == b[s.name]).all() for s in inputs)
        assert set(a["ids"].ravel()) <= {0, 1}
    assert (first[0]["x"] != first[1]["x"]).any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RandomSamples(), r"axis 2 .* is dynamic: .*\(--shapes x:\d+x\d+x64\)"),
        (RandomSamples(shapes={"y": (1,)}), "'y': no input"),
        (RandomSamples(shapes={"x": (1, 4, 8)}), "does not fit input 'x'"),
        (RandomSamples(count=0, shapes={"x": (1, 3, 8)}), "at least 1"),
    ],
)
def test_random_samples_that_cannot_be(source, message):
    with pytest.raises(FusewrightError, match=message) as caught:
        open_samples(source, (TensorSpec("x", F4, ("N", 3, "H")),))
    assert isinstance(caught.value, (UsageError, DataError))
