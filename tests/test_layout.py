"""A file imports only from its own folder or from those above it in DESIGN.md's list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusewright

PACKAGE = Path(fusewright.__file__).parent
# From the bottom of the house to the top; DESIGN.md's list.
LAYERS = (
    "errors",
    "graph",
    "match",
    "normalize",
    "groups",
    "target",
    "plan",
    "calibrate",
    "quantize",
    "precision",
    "verify",
    "engine",
    "search",
    "report",
    "pipeline",
    "export",
    "cli",
)
# The package itself: its version and its lazy names, which cost nothing and load nothing.
ROOT = "fusewright"
HOME_OF = {
    "onnxruntime": {"graph", "calibrate", "verify"},
    "tensorrt": {"engine"},
    "tensorrt_rtx": {"engine"},
    "torch": {"export"},
}
# Needed by an extra only: importing the package must not need them.
LAZY = {"tensorrt", "tensorrt_rtx", "torch", "PIL"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _layer(file: Path) -> str:
    name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def _imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module, whether at the top, in a function or for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written from the package down"
            yield node, node.module or ""
            if node.module == ROOT:
                yield from ((node, f"{ROOT}.{alias.name}") for alias in node.names)


def _violations(layer: str, source: str) -> list[str]:
    found = []
    for node, module in _imported(ast.parse(source)):
        top, _, rest = module.partition(".")
        if top == ROOT and rest:
            other = rest.split(".")[0]
            if other == "__version__":
                continue
            # A lazy name of the package is a way around the layers.
            if other not in LAYERS or LAYERS.index(other) > LAYERS.index(layer):
                found.append(f"line {node.lineno}: '{layer}' imports '{module}', which is above it")
        elif layer not in HOME_OF.get(top, {layer}):
            found.append(f"line {node.lineno}: '{layer}' imports {top}")
    return found


def test_every_folder_has_a_place_in_the_list() -> None:
    assert {_layer(file) for file in FILES} - {"__init__"} <= set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    if _layer(file) == "__init__":
        return
    assert not _violations(_layer(file), file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_extras_are_imported_inside_functions(file: Path) -> None:
    top = ast.parse(file.read_text(encoding="utf-8")).body
    eager = [n for n in top if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {m.partition(".")[0] for n in eager for _, m in _imported(ast.Module([n], []))}
    assert not names & LAZY


def test_the_package_loads_nothing_of_itself() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not any(m.startswith(ROOT) for _, m in _imported(node))


@pytest.mark.parametrize(
    ("layer", "source", "finds"),
    [
        ("graph", "from fusewright.plan.plan import Plan", True),
        ("graph", "def f():\n    import fusewright.pipeline", True),
        ("plan", "from fusewright.graph.walk import reads", False),
        ("plan", "from fusewright.plan.demand import Edge", False),
        ("plan", "import onnxruntime as ort", True),
        ("verify", "import onnxruntime as ort", False),
        ("pipeline", "from fusewright import cli", True),
        ("pipeline", "import fusewright", False),
        ("cli", "from fusewright import __version__", False),
        ("pipeline", "from fusewright import optimize", True),
        ("cli", "import torch.nn", True),
        ("engine", "import tensorrt_rtx", False),
        ("calibrate", "from tensorrt import Builder", True),
    ],
)
def test_the_check_itself(layer: str, source: str, finds: bool) -> None:
    assert bool(_violations(layer, source)) == finds
