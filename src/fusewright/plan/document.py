"""A plan file as plain data: YAML without entries that are unknown or there twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusewright.errors import PlanError

_ENTRIES = frozenset({"fusewright", "model", "precision", "residual", "groups", "unclaimed"})
_OF_A_GROUP = frozenset(
    {"name", "kind", "decision", "reason", "nodes", "inputs", "inputs_to_quantize"}
    | {"asked", "smooth", "prepared_as"}
)


def read_document(path: Path) -> Mapping[str, Any]:
    """The entries of a plan file; each of its `groups` has a `name` and a `decision`.

    Raises:
        PlanError: it cannot be read, is not YAML or not a plan, or has an entry twice or one that
            no plan has, such as a misspelt one.
    """
    data = _yaml(path)
    if not isinstance(data, Mapping) or "groups" not in data:
        raise PlanError(f"{path}: is not a Fusewright plan (it has no `groups`)")
    if not isinstance(data["groups"], list):
        raise PlanError(f"{path}: `groups` is not a list")
    _refuse_unknown(data, _ENTRIES, f"{path}:")
    for number, entry in enumerate(data["groups"], 1):
        if not isinstance(entry, Mapping) or "name" not in entry or "decision" not in entry:
            raise PlanError(f"{path}: group {number} has no `name` or no `decision`")
        _refuse_unknown(entry, _OF_A_GROUP, f"{path}: group '{entry['name']}'")
    return data


def _refuse_unknown(entries: Mapping[Any, Any], known: frozenset[str], where: str) -> None:
    unknown = next((name for name in entries if name not in known), None)
    if unknown is not None:
        raise PlanError(f"{where} no entry '{unknown}'; there are {', '.join(sorted(known))}")


def _yaml(path: Path) -> Any:
    import yaml  # only where a plan file is: it takes as long to load as a small job's stages

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        return _Plain(path).of(root) if root is not None else None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise PlanError(f"{path}: is not YAML{where}") from error


class _Plain:
    """YAML's nodes as texts, numbers, lists and mappings; a plan has nothing else.

    YAML would make objects of tags and dates, each with errors of its own, and let a few lines of
    aliases stand for billions of entries.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, _MOST_ENTRIES

    def of(self, node: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise PlanError(f"{self._path}: has more than {_MOST_ENTRIES} entries")
        kind = node.tag.removeprefix(_TAG)
        if node.id == "mapping" and kind == "map":
            return self._mapping(node)
        if node.id == "sequence" and kind == "seq":
            return [self.of(part) for part in node.value]
        if node.id != "scalar" or kind not in _SCALARS:
            raise self._refused(node, f"tag {node.tag!r}")
        return _SCALARS[kind](node.value)

    def _mapping(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.id != "scalar":
                raise self._refused(key, "an entry that is named by no text")
            if key.value in found:
                line = key.start_mark.line + 1
                raise PlanError(f"{self._path}: has '{key.value}' twice (line {line})")
            found[key.value] = self.of(value)
        return found

    def _refused(self, node: Any, what: str) -> PlanError:
        return PlanError(f"{self._path}: has {what} (line {node.start_mark.line + 1})")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


_MOST_ENTRIES = 2_000_000
_TAG = "tag:yaml.org,2002:"
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# A date, or what YAML merges by, is a text here: it may be the name of a node.
_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: _SWITCHES.get(text.lower(), text),
    "int": _number,
    "float": _number,
    "timestamp": str,
    "merge": str,
    "value": str,
}
