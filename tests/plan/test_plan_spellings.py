"""Random nets in random spellings: groups, placement and results do not depend on the spelling."""

from __future__ import annotations

import os
import random

import onnx
from building import Net, assert_equal
from canonical import canonical
from hypothesis import given, note, settings
from hypothesis import strategies as st
from planning import planned
from spelling import ACTS, Speller

from fusewright.graph.convert import to_proto
from fusewright.normalize import normalize
from fusewright.plan.collapse import collapse

# CI must not fail by chance; elsewhere every run looks at other nets. A failure prints its example,
# with the seed of the spelling.
SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
BLOCKS = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from(ACTS), st.sampled_from((4, 8))),
    st.tuples(st.just("residual"), st.sampled_from(ACTS), st.sampled_from((4, 8))),
    st.tuples(st.just("act_add"), st.sampled_from(ACTS), st.just(0)),
    st.tuples(st.just("excite"), st.sampled_from(ACTS), st.just(0)),
    st.tuples(st.just("branches"), st.sampled_from(ACTS), st.sampled_from((2, 3))),
    st.tuples(st.just("pool"), st.just("relu"), st.just(0)),
    st.tuples(st.just("depthwise"), st.sampled_from(ACTS), st.just(0)),
)
HEADS = st.sampled_from(("none", "linear", "two linears"))


class Drawn(Speller):
    """A whole net; without a seed in the plainest spelling."""

    def __init__(self, seed: int | None) -> None:
        net = Net(seed=7)
        spelling = None if seed is None else random.Random(seed)
        super().__init__(net, spelling, net.input("x", 1, 4, 8, 8), channels=4)

    def proto(self, blocks: list[tuple[str, str, int]], head: str) -> onnx.ModelProto:
        for block in blocks:
            self.block(*block)
        self.head(head)
        # A name of its own, and an operator that no spelling changes.
        return self.net.proto(self.net.op("Tanh", self.net.op("Exp", self.x), name="out"))

    def shuffled(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        nodes = list(proto.graph.node)
        assert self.random is not None
        self.random.shuffle(nodes)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        return proto


NETS = given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=4), head=HEADS, seed=st.integers(0, 2**32 - 1)
)


@SETTINGS
@NETS
def test_spelling_does_not_matter(blocks: list[tuple[str, str, int]], head: str, seed: int) -> None:
    plain, spelled = Drawn(None).proto(blocks, head), Drawn(seed).proto(blocks, head)
    note(" ".join(node.op_type for node in spelled.graph.node))
    reference, plan = planned(plain), planned(spelled)
    assert canonical(plan) == canonical(reference)
    assert_equal(plain, reference.model)
    assert_equal(plain, plan.model)
    assert_equal(plain, to_proto(collapse(plan.model.graph, plan)))
    assert not [o.rule for o in normalize(plan.model) if o.applied], "normalizing twice"


@SETTINGS
@NETS
def test_node_order_and_cleaning_do_not_matter(
    blocks: list[tuple[str, str, int]], head: str, seed: int
) -> None:
    plain, speller = Drawn(None).proto(blocks, head), Drawn(seed)
    shuffled = speller.shuffled(speller.proto(blocks, head))
    note(" ".join(node.op_type for node in shuffled.graph.node))
    plan = planned(shuffled, clean=True)
    assert canonical(plan) == canonical(planned(plain))
    assert_equal(plain, plan.model)
