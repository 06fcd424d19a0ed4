"""What a command says, and where: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.segment import Segment
from rich.text import Text

from fusewright.errors import OutputError, UsageError, printable

# Logs have no width of their own; Rich would take 80.
_LOG_WIDTH = 100
_STAGE_WIDTH = 10
_SECONDS_WIDTH = 9


class Terminal:
    """The two streams, as wide as the terminal, and how much is wanted on them."""

    def __init__(self, verbose: bool = False, quiet: bool = False, writes: bool = False) -> None:
        """Takes how much is said.

        `writes`: the command's product is files, and what stdout gets is a summary: a reader of it
        that goes away (`| head`) is no failure.

        Raises:
            UsageError: both more and nothing are asked for.
        """
        if verbose and quiet:
            raise UsageError("--verbose and --quiet exclude each other")
        self.verbose, self.quiet = verbose, quiet
        self.out = _console(_Unheard if writes else _Harmless)
        self.err = _console(stderr=True)

    @property
    def width(self) -> int:
        """Columns of stdout."""
        return self.out.width

    def show(self, parts: Sequence[RenderableType]) -> None:
        """Prints tables and texts to stdout, unless nothing is wanted."""
        if not self.quiet:
            with _to_stdout():
                for part in parts:
                    self.out.print(part)

    def line(self, text: str) -> None:
        """Prints one line to stdout as it is, however wide, unless nothing is wanted."""
        if not self.quiet:
            self.data(text)

    def data(self, text: str) -> None:
        """Prints what was asked for itself (JSON, a command) to stdout, always."""
        with _to_stdout():
            self.out.out(text, highlight=False)

    def flush(self) -> None:
        """Hands stdout over what was printed: a disk that is full says so now, not at the end."""
        with _to_stdout():
            try:
                self.out.file.flush()
            except BrokenPipeError:
                self.out.on_broken_pipe()

    def tell(self, text: str) -> None:
        """Prints one line of progress to stderr, unless nothing is wanted."""
        if not self.quiet:
            self.err.out(text, highlight=False)


class StageLines:
    """Draws a job's progress: a line for each finished stage, a bar over the samples."""

    def __init__(self, terminal: Terminal, shown: bool = True) -> None:
        """Use as a context manager, so that an error does not leave a bar behind."""
        self._console, self._shown = terminal.err, shown and not terminal.quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> StageLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_bar()

    def stage(self, name: str, detail: str, seconds: float) -> None:
        """One line: name, seconds, detail."""
        self._drop_bar()
        if self._shown:
            took = f"{seconds:.2f} s".rjust(_SECONDS_WIDTH)
            words = Text.assemble((name.ljust(_STAGE_WIDTH), "bold"), (took, "dim"), "  ", detail)
            self._console.print(words, soft_wrap=True)

    def samples(self, done: int, total: int | None) -> None:
        """Moves the bar, on a terminal."""
        if not self._shown or not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("calibrate "),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("samples"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("samples", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"stdout: cannot be written: {error.strerror or error}") from error


class _Harmless(Console):
    """A console that shows what a name has for the terminal (ESC, BEL) instead of obeying it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Rich's own, with the text of each segment made printable."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable() or not text.strip("\n"):
                yield segment
            else:
                lines = (printable(line) for line in text.split("\n"))
                yield Segment("\n".join(lines), style)


class _Unheard(_Harmless):
    """A console that goes on in silence where its reader has gone."""

    def on_broken_pipe(self) -> None:
        """Rich's own ends the program."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


def _console(kind: type[Console] = _Harmless, stderr: bool = False) -> Console:
    console = kind(stderr=stderr, highlight=False, markup=False, emoji=False)
    # A shell without a terminal may say COLUMNS=0, at which Rich prints nothing.
    if console.width < 1 or (not console.is_terminal and "COLUMNS" not in os.environ):
        console.width = _LOG_WIDTH
    return console
