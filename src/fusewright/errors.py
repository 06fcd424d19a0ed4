"""What can go wrong: one small family; a message is one line that names culprit and cure."""

from __future__ import annotations

import signal


def printable(text: str) -> str:
    r"""`text` with nothing in it that a terminal obeys: ESC becomes `\x1b`."""
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: str) -> str:
    """`text`, printable and on one line; names in it may hold line breaks."""
    return text if text.isprintable() else printable(" ".join(text.split()))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class FusewrightError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_code: what the command line returns.
        details: further lines below the message, such as one for each refused node.
    """

    exit_code = 1
    details: tuple[str, ...] = ()

    def __init__(self, message: str = "") -> None:
        """`message` names culprit and cure; line breaks in it do not stay."""
        super().__init__(one_line(message))


class UsageError(FusewrightError):
    """An option, name or pattern given by the user that cannot be."""

    exit_code = 2


class ModelError(FusewrightError):
    """The ONNX file cannot be read, or holds what cannot be handled."""


class DataError(FusewrightError):
    """Calibration data that is missing, malformed or does not fit the model's inputs."""


class PlanError(FusewrightError):
    """A plan file that does not fit the model, or asks for what cannot be."""


class OutputError(FusewrightError):
    """The result cannot be written where it was asked for."""


class VerifyError(FusewrightError):
    """A rewrite changed the model's results, and `--strict` was given."""


class EngineError(FusewrightError):
    """TensorRT refused the model, or is not there."""


class Stopped(BaseException):
    """A signal asked the process to end; not an `Exception`, so that nothing handles it."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        super().__init__(number)
        self.exit_code = 128 + number
        self.word = "interrupted" if number == signal.SIGINT else "terminated"
