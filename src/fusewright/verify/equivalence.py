"""How far two models' outputs are apart on the same samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

from fusewright.errors import DataError, ModelError
from fusewright.graph.session import Feed, naming, tensor_outputs
from fusewright.verify.distance import BEHIND, IN_FRONT_OF, Comparison, Distance
from fusewright.verify.last_bits import with_other_last_bits
from fusewright.verify.opening import Openable
from fusewright.verify.outputs import with_float_outputs
from fusewright.verify.rows import Rows
from fusewright.verify.selecting import Contest, Forced, Pairs, Values, results_of, run
from fusewright.verify.selections import does_the_same, find_selections, opset_of, paired

# Two ways to round are at most so much farther apart than one is from what it rounds. Beyond the
# largest error (of a norm, of the share of what is selected) nothing is proven.
_AS_FAR = 2.0
_MOST, _MOST_SELECTED = 1e-3, 0.05
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Reference:
    """What the original computes on a few samples; rewrites are compared with it."""

    def __init__(
        self, model: onnx.ModelProto | Path, feeds: Sequence[Feed], folder: Path | None = None
    ) -> None:
        """Runs `model`, optimizations off, once.

        `folder` holds the weights that models refer to.

        Raises:
            DataError: there is no sample, or the model fails on one.
            ModelError: onnxruntime cannot load it, or an output is no tensor.
        """
        if not feeds:
            raise DataError("no sample to verify with")
        self.feeds, self.folder = list(feeds), folder
        original = model if isinstance(model, Path) else with_float_outputs(model)
        self._in_float = original is not model
        self._original = Openable(original, folder)
        session = self._original.open()
        self._known: list[Values] = []
        with self._original.named():
            self.names = tensor_outputs(session)
            for index, feed in enumerate(self.feeds):
                with naming(f"sample {index}"):
                    self._known.append(run(session, feed, self.names))
        self._rows = _rows_of(self._original)

    @property
    def outputs(self) -> list[list[np.ndarray]]:
        """What the original gives on each sample, in the order of `names`."""
        return [[values[name] for name in self.names] for values in self._known]

    def compare(self, model: onnx.ModelProto | Path, is_final: bool = False) -> Comparison:
        """Runs a rewritten model on the same samples.

        Args:
            model: with the interface of the original.
            is_final: it is meant to differ, so that it may select otherwise, and what depends on
                stored tensors alone is computed once, not in every run: the weights behind Q/DQ
                pairs.

        Raises:
            ModelError: onnxruntime cannot load it, or it fails on samples that the original takes.
        """
        return self.compare_and_fetch(model, (), is_final)[0]

    def compare_and_fetch(
        self, model: onnx.ModelProto | Path, also: Sequence[str], is_final: bool = True
    ) -> tuple[Comparison, list[list[np.ndarray]]]:
        """`compare`, and the values of further outputs on each sample, from the same runs.

        Raises:
            ModelError: as `compare`.
        """
        if self._in_float and not isinstance(model, Path):
            model = with_float_outputs(model)
        judged = Openable(model, self.folder, is_final)
        with _as_its_fault():
            contest = Contest(
                self.names, self._pairs(judged) if is_final else (), judged, self._rows
            )
            wanted = list(dict.fromkeys((*contest.wanted, *also)))
            session, fetched = judged.open_with(wanted), []
            for feed, expected in zip(self.feeds, self._expected(contest.needed), strict=True):
                actual = run(session, feed, wanted)
                contest.add(feed, self._rounded_as(actual, expected), actual)
                fetched.append([actual[name] for name in also])
        return contest.result(), fetched

    def compare_selecting_alike(self, model: onnx.ModelProto) -> Comparison | None:
        """Runs a rewritten model with the selections of the original; None if there are none.

        Two models are equal but for near ties where what each selection reads is equal, and what
        lies behind it is, with the same things selected: by induction over their order. Nodes that
        select otherwise from the same inputs are no such selections.

        Raises:
            ModelError: as `compare`.
        """
        judged = Openable(with_float_outputs(model) if self._in_float else model, self.folder)
        with _as_its_fault():
            pairs = self._pairs(judged, comparing=True)
            if not pairs:
                return None
            read, forced = _read_by(pairs, self.names), Forced(judged, pairs)
            distances = {name: Distance(name) for name in (*self.names, *read)}
            needed = [*distances, *results_of(one for one, _ in pairs)]
            for feed, expected in zip(self.feeds, self._expected(needed), strict=True):
                actual = forced.run(feed, expected, [*self.names, *read.values()])
                rounded = self._rounded_as(actual, expected)
                for name, distance in distances.items():
                    distance.add(rounded[name], actual[read.get(name, name)])
        rows = (distance.result() for distance in distances.values())
        roles = (IN_FRONT_OF if name in read else BEHIND for name in distances)
        return Comparison(tuple(replace(row, role=r) for row, r in zip(rows, roles, strict=True)))

    def is_rounding(self, comparison: Comparison, tolerance: float) -> bool:
        """Whether a rewritten model is no farther than the original's last bits account for.

        Args:
            comparison: with it, by `compare`.
            tolerance: what every float output may be off anyhow.
        """
        beyond = comparison.beyond(tolerance)
        if any(o.relative > (_MOST if o.is_float else _MOST_SELECTED) for o in beyond):
            return False
        return all(o.relative <= _AS_FAR * self._own.get(o.name, 0.0) for o in beyond)

    @cached_property
    def _own(self) -> dict[str, float]:
        """Output → how far it is from itself with other last bits; none where that is no number.

        Where the last bits decide what is selected, or how large a tensor is, they say nothing of
        how exact its values are.
        """
        model = with_other_last_bits(self._original.model, self.folder or Path())
        if model is None:
            return {}
        distances = {name: Distance(name) for name in self.names}
        try:
            session = Openable(model).open()
            for feed, expected in zip(self.feeds, self._known, strict=True):
                actual = run(session, feed, self.names)
                for name, distance in distances.items():
                    distance.add(expected[name], actual[name])
        except (DataError, ModelError):
            return {}  # a Resize made 13 rows where the skip has 14
        found = {name: distance.result().relative for name, distance in distances.items()}
        return {name: error for name, error in found.items() if math.isfinite(error)}

    def _rounded_as(self, actual: Values, expected: Values) -> Values:
        """What is expected, in half where a rewritten model gives an output so: it stores it."""
        if not self._in_float:
            return expected
        given = {n: actual[n].dtype for n in self.names if actual[n].dtype in _HALVES}
        return {n: a.astype(given[n]) if n in given else a for n, a in expected.items()}

    def _pairs(self, judged: Openable, comparing: bool = False) -> Pairs:
        return same_selections(self._original, judged, comparing)

    def _expected(self, names: Sequence[str]) -> list[Values]:
        """Tensors of the original on each sample; it runs again for those that are new."""
        # One proof may run beside another: what is returned is not what the other one keeps.
        known = self._known
        new = [name for name in dict.fromkeys(names) if name not in known[0]]
        if new:
            session = self._original.open_with(new)
            again = (run(session, feed, new) for feed in self.feeds)
            known = [{**old, **more} for old, more in zip(known, again, strict=True)]
            self._known = known
        return known


def same_selections(first: Openable, second: Openable, comparing: bool = False) -> Pairs:
    """The selections that two models have in common.

    Args:
        first: the reference.
        second: the other.
        comparing: with comparisons and Casts to integers, and those alone that do the same.
    """
    mine = find_selections(second.structure, comparing)
    if not mine:
        return ()
    pairs = paired(find_selections(first.structure, comparing), mine)
    opsets = opset_of(first.structure), opset_of(second.structure)
    return [pair for pair in pairs if not comparing or does_the_same(*pair, opsets)]


def _rows_of(model: Openable) -> Rows:
    return Rows(lambda feed, names: run(model.open_with(names), feed, names))


def _read_by(pairs: Pairs, outputs: Sequence[str]) -> dict[str, str]:
    """Tensor that a selection of the first model reads → its counterpart in the second."""
    read = (pair for one, other in pairs for pair in zip(one.inputs, other.inputs, strict=True))
    return {theirs: mine for theirs, mine in read if theirs not in outputs}


@contextmanager
def _as_its_fault() -> Iterator[None]:
    """A sample that the original takes is not to blame."""
    try:
        yield
    except DataError as error:
        raise ModelError(f"the original runs on the samples, this model not: {error}") from error


def compare_models(
    first: onnx.ModelProto | Path,
    second: onnx.ModelProto | Path,
    feeds: Iterable[Feed],
    folder: Path | None = None,
) -> tuple[Comparison, int]:
    """Runs two models on the same samples, one sample in memory; also says how many there were.

    Args:
        first: the reference.
        second: the model to judge.
        feeds: the samples.
        folder: where weights lie that `second` refers to, where it is no path.

    Raises:
        ModelError: their outputs differ in name, or one cannot be loaded.
        DataError: there are no samples, or a model fails on one.
    """
    one, other = Openable(first), Openable(second, folder)
    first_session, second_session = one.open(), other.open()
    with one.named():
        names = tensor_outputs(first_session)
    if names != [output.name for output in second_session.get_outputs()]:
        raise ModelError("the two models have different outputs")
    contest = Contest(names, same_selections(one, other), other, _rows_of(one))
    needed, wanted = contest.needed, contest.wanted
    if wanted != names:
        first_session, second_session = one.open_with(needed), other.open_with(wanted)
    count = 0
    for feed in feeds:
        with one.named(), naming(f"sample {count}"):
            expected = run(first_session, feed, needed)
        with other.named(), naming(f"sample {count}"):
            actual = run(second_session, feed, wanted)
        count += 1
        contest.add(feed, expected, actual)
    if not count:
        raise DataError("no sample to compare with")
    return contest.result(), count
