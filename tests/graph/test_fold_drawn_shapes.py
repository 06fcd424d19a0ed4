"""Any graph of layout operators with computed shapes: the shape it must have, and its results."""

from __future__ import annotations

from building import Net
from hypothesis import given, settings
from hypothesis import strategies as st
from propagating import assert_true, found_in
from shape_nets import END, assert_same, dim_of, shape_of

from fusewright.graph.dims import Dim, Size, quotient
from fusewright.graph.fold_shapes import fold_shapes

B, S = Dim.symbol("batch"), Dim.symbol("seq")


class _Drawn:
    """A graph of layout operators with computed shapes, and the shape it must have."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.net = data, Net()
        self.x = self.net.op("Sin", self.net.input("x", "batch", "seq", 12))
        self.shape: list[Size] = [B, S, 12]

    def axis(self) -> int:
        return int(self.data.draw(st.integers(0, len(self.shape) - 1)))

    def _reshape(self, axis: int, parts: list[str | int], shape: list[Size], over: int = 1) -> None:
        """Puts `parts` in the place of `over` axes."""
        sizes = [dim_of(self.net, self.x, i) for i in range(len(self.shape))]
        target = shape_of(self.net, *sizes[:axis], *parts, *sizes[axis + over :])
        self.x = self.net.op("Reshape", self.x, target)
        self.shape[axis : axis + over] = shape

    def transpose(self) -> None:
        perm = self.data.draw(st.permutations(range(len(self.shape))))
        self.x = self.net.op("Transpose", self.x, perm=perm)
        self.shape = [self.shape[i] for i in perm]

    def merge(self) -> None:
        if len(self.shape) > 1:
            axis = self.axis() % (len(self.shape) - 1)
            sizes = [dim_of(self.net, self.x, axis + i) for i in range(2)]
            joined = self.data.draw(st.sampled_from([-1, self.net.op("Mul", *sizes)]))
            self._reshape(axis, [joined], [self.shape[axis] * self.shape[axis + 1]], over=2)

    def cut(self) -> None:
        axis, by = self.axis(), self.data.draw(st.sampled_from([2, 3, 4]))
        whole = quotient(self.shape[axis], by)
        if whole is not None and len(self.shape) < 6:
            rest = self.net.op("Div", dim_of(self.net, self.x, axis), [by])
            self._reshape(axis, [rest, by], [whole, by])

    def double(self) -> None:
        axis = self.axis()
        self.x = self.net.op("Concat", self.x, self.net.op("Cos", self.x), axis=axis)
        self.shape[axis] = self.shape[axis] * 2

    def tail(self) -> None:
        """The second of two copies."""
        axis = self.axis()
        both = self.net.op("Concat", self.net.op("Cos", self.x), self.x, axis=axis)
        self.x = self.net.op("Slice", both, dim_of(self.net, self.x, axis), END, [axis])

    def pad(self) -> None:
        axis, amounts = self.axis(), [0] * 2 * len(self.shape)
        amounts[axis] = 1
        self.x = self.net.op("Pad", self.x, amounts)
        self.shape[axis] = self.shape[axis] + 1

    def same(self) -> None:
        op = self.data.draw(st.sampled_from(["Reshape", "Expand"]))
        self.x = self.net.op(op, self.x, self.net.op("Shape", self.x))

    def scale(self) -> None:
        size = self.net.op("Cast", dim_of(self.net, self.x, self.axis()), to=1)
        self.x = self.net.op("Div", self.x, size)

    def widen(self) -> None:
        """A mean that is expanded to what it is subtracted from."""
        mean = self.net.op("ReduceMean", self.x, axes=[self.axis()])
        wide = self.net.op("Expand", mean, self.net.op("Shape", self.x))
        self.x = self.net.op("Sub", self.x, wide)


STEPS = ("transpose", "merge", "cut", "double", "tail", "pad", "same", "scale", "widen")


SIZE = st.fixed_dictionaries({"batch": st.integers(1, 6), "seq": st.integers(1, 9)})


@settings(deadline=None, max_examples=40)
@given(st.data(), st.lists(SIZE, min_size=2, max_size=2))
def test_any_layout_is_known_and_keeps_its_results(
    data: st.DataObject, sizes: list[dict[str, int]]
) -> None:
    drawn = _Drawn(data)
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)):
        getattr(drawn, step)()
    proto = drawn.net.proto(drawn.net.op("Cos", drawn.x))
    assert_true(proto, sizes)
    model, facts = found_in(proto)
    assert facts.shape(model.graph.outputs[0]) == tuple(drawn.shape)
    fold_shapes(model)
    assert_same(proto, model, sizes)
