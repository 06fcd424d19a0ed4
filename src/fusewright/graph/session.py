"""onnxruntime sessions: one place that opens them and turns their failures into our errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fusewright.errors import DataError, ModelError
from fusewright.graph.refused import explained

Feed = Mapping[str, np.ndarray]

# onnxruntime's severity 4 (fatal): a failure reaches the user once, as our exception.
_QUIET = 4


# Error code, path (ours names the file) and place in the C++ code, in front of the reason.
_ADDRESS = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(/\S+:\d+ \S.*?\) )?"
)
# A kernel's failure: which node, and behind the place in the C++ code, why.
_FAILED = re.compile(
    r"while running (?P<op>\S+) node\. Name:'(?P<node>.*?)' Status Message: "
    r"(?:/\S+:\d+ \S.*?\) )?(?P<reason>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class TensorSpec:
    """A model input or output: its name, NumPy dtype and declared shape.

    A dimension is an int, a name (dynamic) or None (unknown); `shape` is None when the rank is
    not declared.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None

    @property
    def may_hold_sizes(self) -> bool:
        """Whether it may be read as a shape: integers, one axis at most, and a known number."""
        few = self.shape is not None and len(self.shape) <= 1
        known = few and all(isinstance(dim, int) for dim in self.shape or ())
        return known and self.dtype in (np.dtype(np.int64), np.dtype(np.int32))


def session_options(optimize: bool = True) -> ort.SessionOptions:
    """Options shared by every session: quiet, and with all graph optimizations or none."""
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # Observers work between runs, and stages beside each other: threads that spin meanwhile take
    # their cores (resnet20, 512 images, two busy cores: 2.9 s spinning, 1.6 s not, though the
    # median run takes 10 to 15 % longer).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planning which buffer to use again takes longer than it saves (6,261 nodes of a raw Swin-T:
    # 0.8 of the 0.9 s that opening takes); buffers are freed when they are read, either way.
    options.enable_mem_reuse = False
    return options


def open_session(
    model: bytes | str | Path,
    *,
    optimize: bool = False,
    options: ort.SessionOptions | None = None,
    left_out: Sequence[str] = (),
) -> ort.InferenceSession:
    """Opens `model` (serialized bytes or a path) on the CPU.

    `left_out` names onnxruntime's optimizers that are not to run.

    Raises:
        ModelError: onnxruntime cannot load it; the message is the first line of its reason, or
            names the tensor of a type that it lacks.
    """
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(
            source,
            options or session_options(optimize),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(left_out),
        )
    except Exception as error:  # onnxruntime's exceptions share no public base
        known = explained(str(error), source)
        reason = first_line(_ADDRESS.sub("", str(error)))
        said = known or f"onnxruntime cannot load the model: {reason}"
        raise ModelError(said) from error


def run_session(
    session: ort.InferenceSession, feed: Feed, outputs: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Runs `feed`; `outputs` limits what is fetched, None fetches every output in order.

    Raises:
        DataError: the feed does not fit the model, or a kernel failed on it.
    """
    try:
        results: list[np.ndarray] = session.run(outputs, dict(feed))
    except Exception as error:  # as above
        raise DataError(_failure(str(error))) from error
    return results


def _failure(text: str) -> str:
    found = _FAILED.search(text)
    if found is None:
        return f"onnxruntime fails: {first_line(_ADDRESS.sub('', text))}"
    return f"onnxruntime fails at node '{found['node']}' ({found['op']}): " + first_line(
        found["reason"]
    )


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Puts a name in front of an error that lacks it: of the model's file, or of the sample."""
    try:
        yield
    except (ModelError, DataError) as error:
        if str(error).startswith(str(path)):
            raise
        kind = ModelError if isinstance(error, ModelError) else DataError
        raise kind(f"{path}: {error}") from error


def tensor_outputs(session: ort.InferenceSession) -> list[str]:
    """The names of a model's outputs.

    Raises:
        ModelError: one is no tensor, such as a sequence or a map.
    """
    for output in session.get_outputs():
        if not output.type.startswith("tensor("):
            raise ModelError(
                f"output '{output.name}' is a {output.type}: results are compared as tensors alone,"
                " give the model without it"
            )
    return [output.name for output in session.get_outputs()]


def first_line(error: BaseException | str) -> str:
    """The first non-empty line of a text or an exception's, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
