"""TensorRT-RTX's parser, strongly typed, without a build."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fusewright.engine.backend import BuildLog, find_backend
from fusewright.engine.parse_errors import node_errors
from fusewright.errors import EngineError


@cache
def _builder() -> Any:
    """One builder for the process; None where TensorRT-RTX is not installed."""
    try:
        backend = find_backend("tensorrt_rtx")
    except EngineError:
        return None
    log = BuildLog(backend.module)
    return backend.module, log, backend.module.Builder(log.logger)


def refusal(model: Path) -> str | None:
    """Why the parser does not take a model; None where it does, or is not there."""
    if _builder() is None:
        return None
    trt, log, builder = _builder()
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(model)):
        return None
    errors = node_errors(parser)
    return str(errors[0]) if errors else "no reason given"
