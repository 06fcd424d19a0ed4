"""Behind selections models are compared with the same things selected; in front of them as ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from building import Net
from selecting_nets import KEPT, NEAR, ROWS, TAILS, WIDTH, build, feed

from fusewright.errors import DataError, ModelError
from fusewright.pipeline.proof import TOLERANCE, Proof
from fusewright.pipeline.trace import Trace
from fusewright.verify import Comparison, Reference, compare_models
from fusewright.verify.selections import find_selections

FEEDS = [feed(0), feed(1), feed(2)]
# The body of a Loop is compared as a whole: what it makes is given.
_PROVEN = sorted(TAILS)


def _holds(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    reference = Reference(first, FEEDS)
    assert not reference.compare(second).is_within(TOLERANCE), "a test of nothing"
    return Proof(lambda: reference, Trace()).holds("normalize", first, second)


@pytest.mark.parametrize("tail", _PROVEN)
def test_a_rewrite_that_turns_near_ties_over_holds(tail: str) -> None:
    """transformers' RT-DETR: 300 of 8,400 scores, and an exact rewrite in front of them."""
    assert _holds(build(tail), build(tail, NEAR))


@pytest.mark.parametrize("tail", _PROVEN)
@pytest.mark.parametrize(
    "wrong",
    [{"before": 1.001}, {"before": -1.0}, {"behind": 1.001}, {"noise": NEAR * 1000}],
    ids=str,
)
def test_a_wrong_rewrite_does_not(tail: str, wrong: dict[str, float]) -> None:
    assert not _holds(build(tail), build(tail, **{"noise": NEAR, **wrong}))


@pytest.mark.parametrize(
    ("tail", "settings"),
    [("topk", {"k": 4}), ("topk", {"largest": 0}), ("nms", {"k": 4}), ("inside", {"k": 4})],
)
def test_a_rewrite_of_the_selection_itself_does_not(tail: str, settings: dict[str, int]) -> None:
    assert not _holds(build(tail), build(tail, NEAR, **settings))


def test_an_attribute_at_its_default_is_the_same() -> None:
    written = build("argmax", NEAR)
    for node in written.graph.node:
        if node.op_type == "ArgMax":
            node.attribute.append(onnx.helper.make_attribute("select_last_index", 0))
    assert _holds(build("argmax"), written)


def _measured(tail: str, **second: float) -> Comparison:
    return Reference(build(tail), FEEDS).compare(build(tail, **second), is_final=True)


@pytest.mark.parametrize("tail", sorted(TAILS))
def test_what_lies_behind_is_compared_on_the_same(tail: str) -> None:
    """A hundredth of noise: other rows come out, whose values say nothing of the error."""
    found = _measured(tail, noise=NEAR * 1e4, behind=1.01)
    rows = {output.name: output for output in found.outputs}
    (selected,) = found.selections
    assert (selected.samples, selected.of) == (3, 3)
    front = next(name for name, row in rows.items() if row.role == "in front of")
    assert front == ("Reshape_11_y" if tail == "nms" else "scores_y")
    assert 35 < rows[front].sqnr_db < 50
    if tail == "inside":  # all that the Loop makes is given
        assert selected.label == "TopK inside Loop 'loop'"
    assert rows["last_y"].role == "behind"
    assert rows["last_y"].relative == pytest.approx(0.01, rel=1e-3)
    assert found.worst.name in (front, "last_y")
    report = found.to_dict()
    assert report[front]["in_front_of"] == report["last_y"]["behind"] == selected.label


def test_outputs_of_indices_alone_are_no_measure() -> None:
    found = _measured("topk", noise=NEAR * 1e4)
    last, values, indices, front = found.outputs
    assert [o.role for o in found.outputs] == ["behind", "", "selected by", "in front of"]
    assert 0 < indices.relative <= 1
    assert values.sqnr_db > 40, "sorted values do not jump"
    assert indices not in found.rated and found.worst in (values, front, last)
    found = _measured("nms", before=-1.0)
    assert found.outputs[1].relative == np.inf and np.isfinite(found.worst.relative)


def test_what_selects_the_same_is_compared_as_it_is() -> None:
    found = _measured("topk", before=2.0)
    assert not found.selections
    assert [(o.name, o.role) for o in found.outputs] == [
        ("last_y", ""), ("topk_y", ""), ("topk_y1", ""),
    ]  # fmt: skip
    assert found.outputs[1].relative == pytest.approx(1.0)


def test_files_and_streams_are_compared_alike(tmp_path) -> None:
    one, other = build("topk"), build("topk", NEAR * 1e4)
    for name, model in (("a.onnx", one), ("b.onnx", other)):
        onnx.save(model, tmp_path / name)
    streamed, count = compare_models(tmp_path / "a.onnx", tmp_path / "b.onnx", iter(FEEDS))
    assert count == 3 and streamed == Reference(one, FEEDS).compare(other, is_final=True)
    onnx.save(
        other, tmp_path / "b.onnx", save_as_external_data=True, location="w", size_threshold=99
    )
    assert compare_models(tmp_path / "a.onnx", tmp_path / "b.onnx", FEEDS)[0] == streamed
    assert compare_models(tmp_path / "b.onnx", tmp_path / "b.onnx", FEEDS)[0].is_within(0)


def test_files_with_names_of_their_own_are_paired_in_order() -> None:
    """Of another tool: the same selections under other names."""
    other = build("topk", NEAR * 1e4)
    text = other.SerializeToString().replace(b"topk_y1", b"another")
    other = onnx.ModelProto.FromString(text)
    other.graph.output[2].name = "topk_y1"
    other.graph.node.append(onnx.helper.make_node("Identity", ["another"], ["topk_y1"]))
    found, _ = compare_models(build("topk"), other, FEEDS)
    assert [o.role for o in found.outputs] == ["behind", "", "selected by", "in front of"]


@pytest.mark.parametrize(
    ("what", "count"),
    [("layer", 1), ("tokens", 0), ("shape", 0), ("values", 0), ("old", 0), ("embedding", 1)],
)
def test_selections_are_those_that_go_by_computed_floats(what: str, count: int) -> None:
    net = Net(10 if what == "old" else 18)
    x = net.input("x", 2, 8) if what != "tokens" else net.input("x", 2, 8, dtype=np.int64)
    if what in ("layer", "values", "old"):
        x = net.op("MatMul", x, net.draw(8, 8))
    if what == "embedding":
        x = net.op("MatMul", net.op("Gather", net.draw(8, 8), net.op("ArgMax", x, axis=1)), x)
    if what == "shape":
        x = net.op("Shape", x)
    if what == "values":
        outputs = [net.op("TopK", x, [2], outputs=2)[0]]
    elif what == "old":
        outputs = list(net.op("TopK", x, [2], outputs=2))
    else:
        outputs = [net.op("ArgMax" if what != "embedding" else "Relu", x)]
    assert len(find_selections(net.proto(*outputs))) == count


def test_a_selection_of_half_scores() -> None:
    """An FP16 file beside its FP32 one: the scores in front of the selection are half."""

    def net(half: bool) -> onnx.ModelProto:
        net = Net(18)
        x = net.op("MatMul", net.input("x", ROWS, WIDTH), net.positive(WIDTH, 1))
        near = net.op("Add", net.op("Squeeze", x, [1]), 1e4 * NEAR if half else 0.0)
        kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
        scores = net.op("Cast", near, to=kind, name="scores")
        _, which = net.op("TopK", scores, [KEPT], outputs=2, axis=0)
        return net.proto(net.op("Gather", x, which, axis=0, name="rows"))

    found, _ = compare_models(net(False), net(True), [{"x": feed()["x"]}])
    assert [(o.name, o.role) for o in found.outputs] == [
        ("rows_y", "behind"), ("scores_y", "in front of"),
    ]  # fmt: skip
    assert found.outputs[0].relative == 0 and 40 < found.outputs[1].sqnr_db < 70


def test_a_sample_that_only_the_rewrite_fails_on() -> None:
    with pytest.raises((ModelError, DataError)):
        Reference(build("topk"), FEEDS).compare(build("topk", k=ROWS + 1), is_final=True)


def test_proofs_beside_each_other_do_not_disturb() -> None:
    """One runs in a thread while the result is measured: each sees the tensors that it needs."""
    reference = Reference(build("topk"), FEEDS)
    alone = reference.compare(build("topk", NEAR * 1e4), is_final=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in range(4):
            fresh = Reference(build("topk"), FEEDS)
            proven = pool.submit(fresh.compare_selecting_alike, build("topk", NEAR))
            measured = pool.submit(fresh.compare, build("topk", NEAR * 1e4), True)
            assert proven.result().is_within(TOLERANCE) and measured.result() == alone
