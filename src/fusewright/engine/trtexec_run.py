"""Running `trtexec` where it is on the PATH, and reading what it says of the engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fusewright.engine.build import BuildOptions, engine_targets
from fusewright.engine.describe import describe
from fusewright.engine.layers import read_layers, read_times
from fusewright.engine.outline import Outline
from fusewright.engine.parse_errors import explained
from fusewright.engine.profiles import choose_profiles
from fusewright.engine.report import EngineReport
from fusewright.engine.trtexec import TrtexecOptions, check_version, trtexec_command
from fusewright.engine.types import formats_of
from fusewright.errors import EngineError, OutputError, UsageError
from fusewright.graph.load import Source, read_source
from fusewright.graph.save import Pending, committed

PROGRAM = "trtexec"
Line = Callable[[str], None]

# `&&&& RUNNING TensorRT.trtexec [TensorRT v8601]`, since 10 `v100300`.
_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d+)\]")
_ERROR = re.compile(r"\[E\] (?:\[TRT\] )?(?P<text>.+)$")
_LAST_WORDS = re.compile(r"^&&&& FAILED|Engine set up failed|Failed to (?:build|create|parse)")


def find_trtexec() -> str:
    """The path of `trtexec`.

    Raises:
        EngineError: it is not on the PATH.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise EngineError(
            "trtexec is not on the PATH: it comes with TensorRT's tar, deb and container packages,"
            " not with pip; `fusewright build --print-trtexec` prints the line to run elsewhere"
        )
    return found


def build_with_trtexec(
    model: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    times: bool = False,
    said: Line | None = None,
    pending: Pending | None = None,
) -> EngineReport:
    """Builds `model` with `trtexec` and reads its layer file back.

    It works in a folder beside `out`, so the engine and its report appear whole or not at all.

    Args:
        model: the ONNX file.
        out: the engine.
        options: how; `backend` is not looked at.
        times: also run the engine and measure each kernel.
        said: told each line that trtexec prints.
        pending: takes what is written, to appear when it is committed.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: options that trtexec lacks.
        EngineError: no trtexec, or a build that fails, with the errors it printed.
        OutputError: `out` cannot be written.
    """
    options = options or BuildOptions()
    if options.sm is not None:
        raise UsageError("--sm: trtexec builds for the GPU it runs on")
    source = read_source(model)
    targets = engine_targets(source.path, out, options)
    program = find_trtexec()
    number = trtexec_version(program)
    asked = _asked(source, options, _line_version(number))
    profiles, notes = choose_profiles(source.interface.inputs, options.shapes, options.typed)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".fusewright-") as folder:
            asked = _into(asked, Path(folder), times)
            command = trtexec_command(source.path, profiles, asked)
            _run([program, *command[1:]], str(model), said)
            _require_written(asked, str(model))
            report = replace(
                _report(source, asked),
                model=str(model),
                engine=str(out),
                version=number,
                seconds=time.perf_counter() - start,
                profiles=profiles,
                notes=notes,
            )
            with committed(pending) as files:
                _move(asked, targets, report, files)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return report


def trtexec_version(program: str) -> str:
    """`8.6.1` or `10.3.0`, as its banner says.

    Raises:
        EngineError: it does not start, or says nothing of the kind.
    """
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{program}: does not start: {error.strerror}") from error
    found = _BANNER.search(done.stdout + done.stderr)
    if found is None:
        raise EngineError(f"{program}: does not say which TensorRT it belongs to")
    number = int(found[1])
    # 8601 is 8.6.1, 100300 is 10.3.0.
    major, rest = divmod(number, 10000) if number >= 100000 else divmod(number, 1000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"


def _line_version(number: str) -> str:
    major, minor = (int(part) for part in number.split(".")[:2])
    if major >= 10:
        return "10" if major == 10 else "11"
    if (major, minor) == (8, 6):
        return "8.6"
    raise EngineError(f"trtexec {number} is not supported: 8.6, 10 and 11 are")


def _run(command: list[str], model: str, said: Line | None) -> None:
    """Runs it to its end; it ends with us where we are stopped."""
    errors: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                if said is not None:
                    said(line.rstrip("\n"))
                found = _ERROR.search(line)
                if found:
                    errors.append(found["text"].strip())
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if code:
        raise _failure(model, code, errors)


def _require_written(asked: TrtexecOptions, model: str) -> None:
    wanted = {"engine": asked.engine, "layer file": asked.layers, "profile": asked.times}
    for what, path in wanted.items():
        if path is not None and not path.is_file():
            raise EngineError(f"trtexec built {model} without an error and wrote no {what}")


def _failure(model: str, code: int, errors: list[str]) -> EngineError:
    telling = [explained(text) for text in errors if not _LAST_WORDS.search(text)]
    reasons = tuple(dict.fromkeys(telling or errors or [f"it ended with code {code}, no reason"]))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    error = EngineError(f"trtexec cannot build {model}: {reasons[0]}{more}")
    error.details = reasons if len(reasons) > 1 else ()
    return error


def _asked(source: Source, options: BuildOptions, version: str) -> TrtexecOptions:
    check_version(source.proto, version)
    return TrtexecOptions(
        version=version,
        timing_cache=options.timing_cache,
        refit=options.refit,
        strip_weights=options.strip_weights,
        formats=formats_of(source.proto),
    )


def _into(asked: TrtexecOptions, folder: Path, times: bool) -> TrtexecOptions:
    """Has everything written to `folder`."""
    return replace(
        asked,
        engine=folder / "engine",
        layers=folder / "layers.json",
        times=folder / "times.json" if times else None,
    )


def _report(source: Source, asked: TrtexecOptions) -> EngineReport:
    """What the files that trtexec wrote say; model, engine and version are the caller's."""
    engine, layers = asked.engine, asked.layers
    assert engine is not None and layers is not None
    times = read_times(asked.times) if asked.times is not None else None
    plan = describe(read_layers(layers), Outline(source.proto), times)
    return EngineReport(
        model=str(source.path),
        engine=None,
        backend=PROGRAM,
        version="",
        seconds=0.0,
        engine_bytes=engine.stat().st_size,
        profiles={},
        kernels=plan.kernels,
        operators=plan.operators,
        groups=plan.groups,
        findings=plan.findings,
    )


def _move(asked: TrtexecOptions, targets: list[Path], report: EngineReport, files: Pending) -> None:
    parts = [part for part in (asked.engine, asked.layers) if part is not None]
    if len(targets) > 1:
        parts[1].write_text(report.to_json(), encoding="utf-8")
    for part, target in zip(parts, targets, strict=False):
        part.replace(files.part(target))
