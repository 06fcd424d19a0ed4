"""trtexec where it is on the PATH: a stand-in of each version that writes its layer file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_models
import layer_files
import onnx
import pytest

from fusewright.engine.build import BuildOptions
from fusewright.engine.trtexec_run import build_with_trtexec, find_trtexec, trtexec_version
from fusewright.errors import EngineError, OutputError, UsageError

_STAND_IN = """#!{python}
import json, sys, time
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # " + " ".join(sys.argv))
options = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
if "help" in options:
    sys.exit(0)
{body}
open(options["saveEngine"], "wb").write(b"engine of " + " ".join(sys.argv[2:]).encode())
json.dump({layers}, open(options["exportLayerInfo"], "w"))
if "exportProfile" in options:
    json.dump({profile}, open(options["exportProfile"], "w"))
print("&&&& PASSED TensorRT.trtexec")
"""


_WRITES_NOTHING = "sys.exit(0)"
_WRITES_AN_ENGINE = "open(options['saveEngine'], 'wb').write(b'e'); sys.exit(0)"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    proto = engine_models.one_conv()
    onnx.save(onnx.version_converter.convert_version(proto, 17), path)
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a stand-in first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(number: int, layers: object, body: str = "", profile: object = None) -> Path:
        text = _STAND_IN.format(
            python=sys.executable, number=number, layers=layers, body=body, profile=profile
        )
        (folder / "trtexec").write_text(text)
        (folder / "trtexec").chmod(0o755)
        return folder / "trtexec"

    return write


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "bin")


@pytest.mark.parametrize(
    ("number", "version", "layers", "flags"),
    [
        (8601, "8.6.1", layer_files.VERSION_8_6, "--int8"),
        (100300, "10.3.0", layer_files.VERSION_10, "--stronglyTyped"),
        (110400, "11.4.0", layer_files.VERSION_11, ""),
    ],
)
def test_each_version_is_asked_in_its_own_words(
    number, version, layers, flags, model, install, tmp_path
) -> None:
    install(number, layers)
    lines: list[str] = []
    out = tmp_path / "e.engine"
    report = build_with_trtexec(model, out, said=lines.append)
    assert (report.backend, report.version) == ("trtexec", version)
    said = out.read_text()
    assert all(flag in said for flag in flags.split())
    assert ("--stronglyTyped" in said) == (number == 100300)
    assert ("--int8" in said) == (number == 8601)
    assert "--skipInference" in said and "--profilingVerbosity=detailed" in said
    assert lines[0].startswith("&&&& RUNNING") and lines[-1].startswith("&&&& PASSED")
    assert report.kernels and report.engine_bytes == out.stat().st_size
    written = json.loads((tmp_path / "e.engine.layers.json").read_text())
    assert written == json.loads(report.to_json()) and written["schema"]
    assert _left(tmp_path) == ["e.engine", "e.engine.layers.json", "model.onnx"]


def test_times_are_read(model, install, tmp_path) -> None:
    install(8601, layer_files.VERSION_8_4, profile=layer_files.PROFILE)
    report = build_with_trtexec(model, tmp_path / "e", times=True)
    assert report.milliseconds == pytest.approx(0.5)
    assert "--skipInference" not in (tmp_path / "e").read_text()


def test_options_reach_it(model, install, tmp_path) -> None:
    install(110400, layer_files.VERSION_11)
    cache = tmp_path / "t.cache"
    options = BuildOptions(timing_cache=cache, refit=True, strip_weights=True, layers=False)
    build_with_trtexec(model, tmp_path / "e", options)
    said = (tmp_path / "e").read_text()
    assert f"--timingCacheFile={cache}" in said
    assert "--refit" in said and "--stripWeights" in said
    assert _left(tmp_path) == ["e", "model.onnx"]


def test_its_errors_are_told_and_nothing_is_left(model, install, tmp_path) -> None:
    body = """
print("[11/22/2026-10:00:00] [E] Error[2]: [b.cpp::b::1] Error Code 2: Internal (no tactic)")
print("[11/22/2026-10:00:00] [E] [TRT] Plugin not found, are the plugin name right?")
print("[11/22/2026-10:00:00] [E] Engine set up failed")
open(options["saveEngine"], "wb").write(b"half")
sys.exit(1)
"""
    install(100300, layer_files.VERSION_10, body)
    with pytest.raises(
        EngineError, match=r"trtexec cannot build .*no tactic.*and 1 more"
    ) as caught:
        build_with_trtexec(model, tmp_path / "e")
    assert len(caught.value.details) == 2 and "no such operator" in caught.value.details[1]
    assert _left(tmp_path) == ["model.onnx"]


def test_a_failure_without_words(model, install, tmp_path) -> None:
    install(100300, layer_files.VERSION_10, "sys.exit(3)")
    with pytest.raises(EngineError, match="ended with code 3"):
        build_with_trtexec(model, tmp_path / "e")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_us(stop, model, install, tmp_path) -> None:
    """Stopped, the program leaves neither files nor a running trtexec."""
    body = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n"
    install(100300, layer_files.VERSION_10, body + "time.sleep(60)")
    command = [sys.executable, "-m", "fusewright", "build", model, "-o", tmp_path / "e"]
    process = subprocess.Popen([*map(str, command), "--with", "trtexec"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(stop)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + stop and len(said.splitlines()) == 1
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    (tmp_path / "pid").unlink()
    assert _left(tmp_path) == ["model.onnx"]


def test_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match=r"not on the PATH.*--print-trtexec"):
        find_trtexec()


@pytest.mark.parametrize(("number", "version"), [(8502, "8.5.2"), (7200, "7.2.0")])
def test_older_ones_are_refused(number, version, model, install, tmp_path) -> None:
    program = install(number, layer_files.VERSION_8_4)
    assert trtexec_version(str(program)) == version
    with pytest.raises(EngineError, match=f"{version} is not supported"):
        build_with_trtexec(model, tmp_path / "e")


def test_another_program_of_that_name(install) -> None:
    program = install(8601, {})
    program.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(EngineError, match="does not say which TensorRT"):
        trtexec_version(str(program))


def test_what_it_cannot_be_asked(model, install, tmp_path) -> None:
    install(8601, layer_files.VERSION_8_6)
    with pytest.raises(UsageError, match="--sm: trtexec builds for the GPU"):
        build_with_trtexec(model, tmp_path / "e", BuildOptions(sm=89))
    with pytest.raises(UsageError, match=r"--strip-weights: TensorRT 8\.6"):
        build_with_trtexec(model, tmp_path / "e", BuildOptions(strip_weights=True))
    with pytest.raises(OutputError, match="there is no folder"):
        build_with_trtexec(model, tmp_path / "no" / "e")
    onnx.save(engine_models.parallel_convs(collapsed=True), model)
    with pytest.raises(EngineError, match=r"no local functions.*--flat"):
        build_with_trtexec(model, tmp_path / "e")


@pytest.mark.parametrize(
    ("body", "what"), [(_WRITES_NOTHING, "engine"), (_WRITES_AN_ENGINE, "layer file")]
)
def test_it_ends_well_and_writes_nothing(body, what, model, install, tmp_path) -> None:
    install(100300, layer_files.VERSION_10, body=body)
    with pytest.raises(EngineError, match=f"without an error and wrote no {what}$"):
        build_with_trtexec(model, tmp_path / "e")
    assert _left(tmp_path) == ["model.onnx"]
