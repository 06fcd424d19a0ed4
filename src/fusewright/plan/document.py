"""A plan file as plain data: YAML without entries that are unknown or there twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusewright.errors import PlanError

_ENTRIES = frozenset({"fusewright", "model", "precision", "residual", "groups", "unclaimed"})
_OF_A_GROUP = frozenset(
    {"name", "kind", "decision", "reason", "nodes", "inputs", "inputs_to_quantize"}
    | {"smooth", "prepared_as"}
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

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            for (key, _), name in zip(node.value, names, strict=True):
                if names.count(name) > 1:
                    line = key.start_mark.line + 1
                    raise PlanError(f"{path}: has '{name}' twice (line {line})")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise PlanError(f"{path}: is not YAML{where}") from error
