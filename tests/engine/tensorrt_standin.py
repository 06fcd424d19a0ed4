"""A module that looks like TensorRT-RTX to a process that loads it, and does what a test asks."""

from __future__ import annotations

from pathlib import Path

_MODULE = """
import enum, os, pathlib, signal, sys, time
from types import SimpleNamespace as Box
__version__ = "9.9"
HERE = pathlib.Path(__file__).parent
class ILogger:
    pass
class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0
class BuilderFlag(enum.IntEnum):
    REFIT = 0
ProfilingVerbosity = Box(DETAILED=0)
ROW = ("Name: k, LayerType: gemm, Inputs: [], Constants: [], Outputs: [], TacticName: t,"
       " StreamId: 0, Metadata: n")
def Builder(logger):
    def build(network, config):
        (HERE / "pid").write_text(str(os.getpid()))
        os.write(1, b"native on stdout"), os.write(2, b"native on stderr")
        logger.log(Box(name="VERBOSE"), ROW)
        {build}
    return Box(
        create_network=lambda flags: Box(num_inputs=0),
        create_builder_config=lambda: Box(),
        create_optimization_profile=lambda: None,
        build_serialized_network=build,
    )
def OnnxParser(network, logger):
    def parse(path):
        {parse}
    return Box(parse_from_file=parse, num_errors=0)
"""


def write_tensorrt(
    folder: Path, build: str = "return b'engine'", parse: str = "return True"
) -> Path:
    """Writes `tensorrt_rtx` to a folder for `sys.path`; the two are bodies of its methods."""
    package = folder / "tensorrt_rtx"
    package.mkdir(parents=True, exist_ok=True)
    text = _MODULE.replace("{build}", build).replace("{parse}", parse)
    (package / "__init__.py").write_text(text)
    return package
