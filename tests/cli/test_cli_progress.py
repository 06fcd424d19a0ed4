"""The bar of a build: on a terminal only, and gone afterwards."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fusewright.cli.build_progress import BuildBar
from fusewright.cli.terminal import Terminal


def _drawn(terminal: bool, quiet: bool = False, error: type[Exception] | None = None) -> str:
    stream = io.StringIO()
    shown = Terminal(quiet=quiet)
    shown.err = Console(file=stream, force_terminal=terminal, width=80)
    try:
        with BuildBar(shown) as bar:
            bar("Building Engine", 0, 4)
            bar("Inner", 1, 2)
            bar("Inner", 2, 2)
            bar("Building Engine", 3, 4)
            if error is not None:
                raise error
    except ValueError:
        pass
    return stream.getvalue()


def test_phases_are_drawn_on_a_terminal() -> None:
    text = _drawn(terminal=True)
    assert "Building Engine" in text
    # It is transient: the last thing written erases it.
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[1A" in text


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_logs_and_quiet_get_nothing(terminal: bool, quiet: bool) -> None:
    assert _drawn(terminal, quiet).strip() == ""


def test_an_error_leaves_no_bar() -> None:
    text = _drawn(terminal=True, error=ValueError)
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text.split("Building Engine")[-1]
