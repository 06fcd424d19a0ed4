"""Plan files with what YAML makes objects of: read as plain text and numbers, or one line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fusewright.errors import PlanError
from fusewright.plan.document import read_document

GROUP = "groups:\n- name: conv\n  decision: {}\n"
_PARTS = [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 14)]
BOMB = "unclaimed:\n- &a0 [x]\n" + "\n".join(_PARTS) + "\ngroups: [{name: q, decision: *a13}]"

READ = {
    "2020-13-41": "2020-13-41",
    "2020-01-01": "2020-01-01",
    "off": False,
    "0.5": 0.5,
    "1.0e-3": 1e-3,
    "12": 12,
    "!!int abc": "abc",
    "!!float abc": "abc",
    "!!bool abc": "abc",
    "!!timestamp abc": "abc",
    "null": None,
    "[0, 1]": [0, 1],
}


@pytest.mark.parametrize("text", READ)
def test_read_as(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GROUP.format(text))
    value = read_document(tmp_path / "p.yaml")["groups"][0]["decision"]
    assert value == READ[text] and type(value) is type(READ[text])


REFUSED = {
    "a tag of Python's": (GROUP.format("!!python/object/apply:os.system ['x']"), "tag .*line 3"),
    "binary": (GROUP.format("!!binary aGVsbG8="), "tag .*binary.*line 3"),
    "a set": (GROUP.format("!!set {a, b}"), "tag .*set.*line 3"),
    "a key that is a list": ("? [a, b]\n: c\n" + GROUP, "named by no text .line 1"),
    "twice": ("model: 1\nmodel: 2\n" + GROUP, "has 'model' twice .line 2"),
    "aliases of aliases": (BOMB, "more than 2000000 entries"),
    "a list inside itself": ("groups: &g [*g]", "is not YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    (tmp_path / "p.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(PlanError, match=rf"p\.yaml: .*{words}") as error:
        read_document(tmp_path / "p.yaml")
    assert "\n" not in str(error.value) and time.perf_counter() - start < 20


def test_very_many_digits_are_a_number(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GROUP.format("9" * 5000))
    assert read_document(tmp_path / "p.yaml")["groups"][0]["decision"] == float("inf")
