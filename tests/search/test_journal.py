"""The journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusewright.errors import OutputError, UsageError
from fusewright.search import Journal


def test_remembers_and_adds(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, "a")
    journal.put("one", figures=1)
    journal.put("one", error=2)
    assert Journal(path, "a").get("one") == {"figures": 1, "error": 2}
    assert Journal(path, "a").get("two") is None
    assert Journal(path, "b").get("one") is None


def test_without_a_path_it_lasts_as_long_as_it_does() -> None:
    journal = Journal(None, "a")
    journal.put("one", figures=1)
    assert journal.get("one") == {"figures": 1}
    assert Journal(None, "a").get("one") is None


def test_a_line_that_was_cut_short_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for number in (1, 2):
        Journal(path, "a").put(f"trial {number}", figures=number)
    path.write_text(path.read_text()[:-10])
    journal = Journal(path, "a")
    assert journal.get("trial 1") == {"figures": 1}
    assert journal.get("trial 2") is None
    journal.put("trial 3", figures=3)
    again = Journal(path, "a")
    assert again.get("trial 1") == {"figures": 1}
    assert again.get("trial 3") == {"figures": 3}


@pytest.mark.parametrize("text", ["groups:\n- a\n", '{"a": 1}\n', "[1]\n", "{\n  1\n}\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a search journal \\(line 1\\)"):
        Journal(path, "a")
    assert path.read_text() == text


def test_no_text_at_all(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a search journal"):
        Journal(path, "a")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be read"):
        Journal(tmp_path, "a")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "no" / "j", "a").put("one", figures=1)
