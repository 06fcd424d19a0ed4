"""The journal of a search: a JSON line for each trial, so that a second run need not repeat it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusewright.errors import OutputError, UsageError


class Journal:
    """Trials by key: read when it is opened, added to as they end.

    Lines of other models, settings and data stay in the file and are not looked at. A last line
    that was cut short counts as not written.
    """

    def __init__(self, path: Path | None, context: str) -> None:
        """Reads what `path` holds of `context`; without a path nothing is kept.

        Raises:
            UsageError: the file is something else.
            OutputError: it cannot be read.
        """
        self.path, self._context = path, context
        self._records: dict[str, dict[str, Any]] = {}
        self._cut = False
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The record of a trial, or None."""
        return self._records.get(self._full(key))

    def put(self, key: str, **values: Any) -> None:
        """Adds to the record of a trial, and writes it.

        Raises:
            OutputError: the disk refused.
        """
        full = self._full(key)
        record = self._records.setdefault(full, {})
        record |= values
        if self.path is None:
            return
        line = json.dumps({"trial": full, **record}, separators=(",", ":"))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._cut + line + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._cut = False

    def _full(self, key: str) -> str:
        return hashlib.sha256(f"{self._context}\n{key}".encode()).hexdigest()

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: is not a search journal") from error
        self._cut = bool(text) and not text.endswith("\n")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                self._add(line, f"{path}: is not a search journal (line {number})")

    def _add(self, line: str, problem: str) -> None:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if line.startswith('{"trial":'):
                return  # cut short
            raise UsageError(problem) from error
        if not isinstance(record, dict) or not isinstance(record.get("trial"), str):
            raise UsageError(problem)
        self._records.setdefault(record.pop("trial"), {}).update(record)
