"""Compares two models whose outputs lie behind selections: with the same things selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime as ort

from fusewright.graph.session import Feed, run_session
from fusewright.verify.distance import (
    BEHIND,
    IN_FRONT_OF,
    SELECTED_BY,
    Comparison,
    Distance,
    OutputError,
    Selected,
)
from fusewright.verify.given import Given, behind, with_given
from fusewright.verify.opening import Openable
from fusewright.verify.rows import Rows
from fusewright.verify.selections import Selection

Pairs = Sequence[tuple[Selection, Selection]]
Values = Mapping[str, np.ndarray]


def results_of(selections: Iterable[Selection]) -> list[str]:
    """The tensors that say what is selected."""
    return list(dict.fromkeys(name for s in selections for name in s.results))


def run(session: ort.InferenceSession, feed: Feed, names: Sequence[str]) -> Values:
    """Values of these outputs by name."""
    return dict(zip(names, run_session(session, feed, names), strict=True))


class Forced:
    """A model that is run with the selections of a reference.

    It is made at the first run: the types of what is given are those of the reference's values.
    """

    def __init__(self, model: Openable, pairs: Pairs) -> None:
        """Makes nothing yet."""
        self._model = model
        self._source = {
            mine: theirs
            for one, other in pairs
            for theirs, mine in zip(one.results, other.results, strict=True)
        }
        self._made: tuple[Given, ort.InferenceSession] | None = None

    def run(self, feed: Feed, expected: Values, names: Sequence[str]) -> Values:
        """The values of `names`, on a sample on which the reference has the values `expected`."""
        values = {mine: np.asarray(expected[theirs]) for mine, theirs in self._source.items()}
        if self._made is None:
            given = with_given(self._model.loaded(), values, names)
            self._made = given, self._model.open_edited(given.model)
        given, session = self._made
        more = {source: values[name] for name, source in given.inputs.items()}
        return run(session, {**feed, **more}, names)

    @property
    def live(self) -> set[str]:
        """The tensors that are not told by what is given alone."""
        return self._made[0].live if self._made else set()


class Contest:
    """The distance of one model from another over samples, both with their own selections.

    Where they select otherwise, what lies behind is compared once more on what the first selects,
    and what the selection goes by beside it.
    """

    def __init__(self, names: Sequence[str], pairs: Pairs, model: Openable, rows: Rows) -> None:
        """`model` is the one to judge; `names` are the outputs of both."""
        self._rows = rows
        self._names, self._pairs, self._model = list(names), pairs, model
        self._forced = Forced(model, pairs)
        self._own = {name: Distance(name) for name in names}
        self._same = {name: Distance(name) for name in names}
        self._fronts = _front_rows(pairs, names)
        self._between = {front: Distance(front) for front in self._fronts}
        self._otherwise = [0] * len(pairs)
        self._samples = 0

    @property
    def needed(self) -> list[str]:
        """What `add` is to be given of the reference."""
        theirs = [one for one, _ in self._pairs]
        return list(dict.fromkeys((*self._names, *results_of(theirs), *self._fronts)))

    @property
    def wanted(self) -> list[str]:
        """What `add` is to be given of the model that is judged."""
        mine = [other for _, other in self._pairs]
        fronts = [name for name, _ in self._fronts.values()]
        return list(dict.fromkeys((*self._names, *results_of(mine), *fronts)))

    def add(self, feed: Feed, expected: Values, actual: Values) -> None:
        """Adds one sample, with outputs, results and fronts of both models."""
        self._samples += 1
        otherwise = [_differ(pair, expected, actual) for pair in self._pairs]
        same = actual
        if any(otherwise):
            same = self._forced.run(feed, expected, self.wanted)
        compared = (*self._names, *self._fronts)
        batches = self._rows.of(feed, {name: expected[name] for name in compared})
        for name in self._names:
            self._own[name].add(expected[name], actual[name], name in batches)
            if self._pairs:
                self._same[name].add(expected[name], same[name], name in batches)
        for front, (mine, _) in self._fronts.items():
            add_as(self._between[front], expected[front], same[mine], front in batches)
        self._otherwise = [
            n + differs for n, differs in zip(self._otherwise, otherwise, strict=True)
        ]

    def result(self) -> Comparison:
        """Over everything added."""
        own = [self._own[name].result() for name in self._names]
        counts = [
            Selected(one.label, count, self._samples)
            for (one, _), count in zip(self._pairs, self._otherwise, strict=True)
        ]
        # Class maps that agree say little of the scores that they are made of.
        shown = [c for c in counts if c.samples or not any(output.is_float for output in own)]
        labels = {selected.label for selected in shown}
        fronts = [
            replace(error, role=IN_FRONT_OF, selection=label)
            for front, (_, label) in self._fronts.items()
            if label in labels and (error := self._between[front].result()).is_float
        ]
        return Comparison((*map(self._row, own), *fronts), tuple(shown))

    def _row(self, own: OutputError) -> OutputError:
        labels = [
            one.label
            for (one, other), count in zip(self._pairs, self._otherwise, strict=True)
            if count and own.name in behind(self._model.structure, other.results)
        ]
        if not labels:
            return own
        if own.name not in self._forced.live:
            return replace(own, role=SELECTED_BY, selection=labels[-1])
        return replace(self._same[own.name].result(), role=BEHIND, selection=labels[-1])


def _front_rows(pairs: Pairs, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Tensor in front of the reference's selections → that of the other model, and the selection.

    The outputs of the models are compared anyhow.
    """
    rows: dict[str, tuple[str, str]] = {}
    for one, other in pairs:
        if len(one.fronts) == len(other.fronts):
            for theirs, mine in zip(one.fronts, other.fronts, strict=True):
                if theirs not in names:
                    rows.setdefault(theirs, (mine, one.label))
    return rows


def _differ(pair: tuple[Selection, Selection], expected: Values, actual: Values) -> bool:
    one, other = pair
    return not all(
        np.array_equal(expected[theirs], actual[mine])
        for theirs, mine in zip(one.results, other.results, strict=True)
    )


def add_as(
    distance: Distance, expected: np.ndarray, actual: np.ndarray, is_batch: bool = False
) -> None:
    """Adds a sample of a tensor that may be half in one of the models."""
    one, other = np.asarray(expected), np.asarray(actual)
    same_kind = one.dtype.kind == other.dtype.kind
    distance.add(one, other.astype(one.dtype) if same_kind else other, is_batch)
