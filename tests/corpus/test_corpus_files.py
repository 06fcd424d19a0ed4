"""Every file of the corpus comes out proven, quantized and runnable, or is refused in one line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.inliner
import pytest
from building import as_model
from corpus_files import NAMES, calibration

from fusewright import RandomSamples, Result, optimize, strip_qdq
from fusewright.calibrate import open_samples
from fusewright.engine.backend import BuildLog, available_backends
from fusewright.errors import FusewrightError
from fusewright.graph.load import read_source
from fusewright.graph.session import Feed, open_session, run_session
from fusewright.quantize.existing import count_qdq
from fusewright.quantize.lint import lint
from fusewright.verify import compare_models

TOLERANCE = 1e-5
# Of weights and results rounded to half: a detector's output of 1e-5 on random images loses most.
HALF_TOLERANCE = 0.05
PRECISIONS = ("int8", "int8+fp16")
REFUSED = {"trt_qdq_conv": "is quantized already (QuantizeLinear"}
# Nothing of the kind is recognised yet: it must come out as it went in.
KEPT_AS_THEY_ARE = ("LSTM", "GRU", "If", "Loop", "Scan", "ArgMax", "Softmax")


@dataclass(frozen=True)
class Made:
    """What came out of one file."""

    name: str
    source: Path
    out: Path
    result: Result
    feeds: list[Feed]


@pytest.fixture(
    scope="module",
    params=[(n, p) for n in NAMES if n not in REFUSED for p in PRECISIONS] or [("no corpus", "")],
    ids="-".join,
)
def made(
    request: pytest.FixtureRequest,
    corpus: Path,
    tasks: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    name, precision = request.param
    source = corpus / "onnx" / f"{name}.onnx"
    out = tmp_path_factory.mktemp(name) / "out.onnx"
    data = calibration(name, tasks, 2)
    result = optimize(source, out, data, verify_samples=2, precision=precision)
    feeds = open_samples(data, read_source(source).interface.inputs).take(2)
    return Made(name, source, out, result, feeds)


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_refused_in_one_line(name: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FusewrightError) as error:
        optimize(corpus / "onnx" / f"{name}.onnx", tmp_path / "out.onnx", RandomSamples(2))
    assert REFUSED[name] in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_file_comes_out_proven(made: Made) -> None:
    rewrites = {stage: proof for stage, proof in made.result.proofs.items() if stage != "verify"}
    assert "clean" in rewrites
    for stage, proof in rewrites.items():
        assert proof.outputs, stage
        assert proof.is_within(TOLERANCE), (stage, proof.worst)
    assert made.result.trace.undone() == []


def test_every_decision_has_a_reason(made: Made) -> None:
    assert all(entry.reason for entry in made.result.plan.unclaimed)
    for group in made.result.plan.groups:
        assert group.reason
        if group.spec.inputs_to_quantize and not group.is_quantized:
            assert "channels per group" in group.reason or "both sides" in group.reason


def test_interface_is_what_it_was(made: Made) -> None:
    before, after = read_source(made.source), read_source(made.out)
    assert after.interface == before.interface
    # Also what `TensorSpec` does not hold: names of dimensions, and types that are no tensors.
    stored = {t.name for t in before.proto.graph.initializer}
    inputs = [v.type for v in before.proto.graph.input if v.name not in stored]
    assert [v.type for v in after.proto.graph.input] == inputs
    assert [v.type for v in after.proto.graph.output] == [v.type for v in before.proto.graph.output]


def test_quantized_file_runs(made: Made) -> None:
    session = open_session(made.out)
    for feed in made.feeds:
        for array in run_session(session, feed):
            assert array.dtype.kind != "f" or np.isfinite(array).all()


def test_stripped_file_equals_the_original(made: Made) -> None:
    stripped = strip_qdq(made.out)
    assert count_qdq(stripped) == 0
    comparison, _ = compare_models(made.source, stripped, made.feeds)
    half = made.result.half is not None
    assert comparison.is_within(HALF_TOLERANCE if half else TOLERANCE), comparison.worst


def test_no_half_tensor_overflows(made: Made) -> None:
    assert not [event for event in made.result.trace if event.what == "overflow"]


def test_pairs_are_where_the_contract_allows(made: Made) -> None:
    proto, placement = onnx.load(made.out), made.result.placement
    sites = 0 if placement is None else len(placement.activations) + len(placement.weights)
    assert count_qdq(proto) == 2 * sites
    # The linter reads flat graphs: the calls are taken apart again, constants of bodies stored.
    assert lint(as_model(proto).graph) == []


def test_what_is_not_recognised_is_kept(made: Made) -> None:
    assert _kept(onnx.load(made.out)) == _kept(onnx.load(made.source))


def _kept(proto: onnx.ModelProto) -> Counter[str]:
    flat = onnx.inliner.inline_local_functions(proto)
    return Counter(n.op_type for n in flat.graph.node if n.op_type in KEPT_AS_THEY_ARE)


def test_tensorrt_parses_it_where_it_parses_the_source(made: Made) -> None:
    if not available_backends():
        pytest.skip("no TensorRT: pip install 'fusewright[rtx]'")
    if reason := _parse_error(made.source):
        pytest.skip(f"TensorRT does not parse the source either: {reason}")
    assert not _parse_error(made.out)


def _parse_error(path: Path) -> str:
    backend = available_backends()[0]
    trt, log = backend.module, BuildLog(backend.module)
    builder = trt.Builder(log.logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(path)):
        return ""
    return str(parser.get_error(0).desc()).splitlines()[0] or "no reason given"
