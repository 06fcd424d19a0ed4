"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusewright.errors import OutputError
from fusewright.graph.save import write_whole


def test_files_appear_with_ordinary_permissions(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    write_whole({tmp_path / "a": b"1", tmp_path / "b": memoryview(b"23")})
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "b").read_bytes() == b"23"
    assert (tmp_path / "a").stat().st_mode == ordinary.stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_left_when_one_fails(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(OutputError, match="missing"):
        write_whole({tmp_path / "old": b"new", tmp_path / "missing" / "b": b"2"})
    assert (tmp_path / "old").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole({tmp_path / "a": b"1"})
    assert list(tmp_path.iterdir()) == []
