"""The bar of a build, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fusewright.cli.terminal import Terminal


class BuildBar:
    """Draws TensorRT's own phases; use as a context manager, so that an error leaves no bar."""

    def __init__(self, terminal: Terminal) -> None:
        """Shows nothing where stderr is no terminal, or nothing is wanted."""
        console: Console = terminal.err
        self._shown = console.is_terminal and not terminal.quiet
        self._bar = Progress(
            TextColumn("build"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BuildBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, phase: str, done: int, steps: int) -> None:
        """Moves the bar of one phase; TensorRT nests them, and an ended one goes away."""
        if not self._shown:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=steps)
        self._bar.update(self._tasks[phase], completed=done, visible=done < steps)
