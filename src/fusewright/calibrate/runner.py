"""Runs the samples through onnxruntime and lets observers see the tensors that are placed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from fusewright.calibrate.exposing import Outline, outline, serialized, with_outputs
from fusewright.calibrate.methods import method_for, new_observer_kind, threshold
from fusewright.calibrate.observers import Histogram, MaxObserver, Scratch, from_state
from fusewright.calibrate.ranges import Range, Ranges
from fusewright.errors import DataError, ModelError, UsageError
from fusewright.graph.session import Feed, naming, open_session, run_session, session_options
from fusewright.target import FORMATS
from fusewright.target.precision import INT8


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        method: "mse", "minmax", "percentile" or "entropy".
        percentile: for that method, in percent.
        samples: stop after this many feeds' worth of samples; None takes all.
        data_folder: where external weights lie when the model does not come as a path.
        threads: of onnxruntime; 0 lets it choose.
        formats: site → the number format of its pairs; a site that is not named is INT8.
    """

    method: str = "mse"
    percentile: float = 99.99
    samples: int | None = None
    data_folder: Path | None = None
    threads: int = 0
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an unknown method or an impossible number."""
        new_observer_kind(self.method)
        if not 0.0 < self.percentile <= 100.0:
            raise UsageError(f"percentile {self.percentile} is not above 0 and at most 100")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"{self.samples} calibration samples: at least 1 is needed")

    def method_of(self, site: str) -> str:
        """The method that chooses the threshold of a site."""
        return method_for(FORMATS[self.formats.get(site, INT8)], self.method)


@dataclass
class Observations:
    """What the observers of all sites have seen; parts of several processes merge."""

    observers: dict[str, MaxObserver]
    samples: int

    def merge(self, other: Observations) -> None:
        """Adds another part's: bit-identical to one pass over both, in whatever order.

        Raises:
            DataError: the parts are of different sites or methods.
        """
        if list(self.observers) != list(other.observers):
            raise DataError("parts of a calibration observe different sites")
        for site, observer in self.observers.items():
            if type(observer) is not type(other.observers[site]):
                raise DataError(f"site {site!r}: parts of a calibration use different methods")
            observer.merge(other.observers[site])
        self.samples += other.samples

    @property
    def empty(self) -> list[str]:
        """The sites whose tensors never held a value."""
        return [site for site, observer in self.observers.items() if not observer.count]

    def without(self, sites: Collection[str]) -> Observations:
        """The same, of all other sites."""
        kept = {site: seen for site, seen in self.observers.items() if site not in sites}
        return Observations(kept, self.samples)

    def ranges(self, options: CalibrationOptions) -> Ranges:
        """Applies the method to every site.

        Raises:
            DataError: a site's tensors never held a value.
        """
        for site in self.empty:
            raise DataError(f"site {site!r}: its tensors were empty on every sample")
        sites = {
            site: Range(
                threshold(seen, options.method_of(site), options.percentile),
                seen.maximum,
                seen.count,
            )
            for site, seen in self.observers.items()
        }
        return Ranges(sites, options.method, self.samples)

    def state(self) -> dict[str, Any]:
        """JSON-able; `from_state` is its inverse."""
        sites = {site: observer.state() for site, observer in self.observers.items()}
        return {"samples": self.samples, "sites": sites}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Observations:
        """Rebuilds what `state()` gave.

        Raises:
            DataError: it is not such a state.
        """
        try:
            sites, samples = dict(state["sites"]), int(state["samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the state of a calibration: {error!r}") from error
        return cls({site: from_state(seen) for site, seen in sites.items()}, samples)


def calibrate(
    model: Path | bytes | onnx.ModelProto,
    sites: Mapping[str, Sequence[str]],
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Ranges of the placed tensors over all samples.

    Args:
        model: the flat float model. A path may have external data and be of any size.
        sites: site name → the tensors that share its scale (their values are seen as one).
        samples: feeds, best from `open_samples`; one is in memory at a time.
        options: method and limits.
        progress: called after each feed with the number of samples seen so far.

    Raises:
        ModelError: a tensor is not in the main graph, or the model does not load.
        DataError: there are no samples, the model fails on one, or a tensor holds NaN or Inf.
    """
    return observe(model, sites, samples, options, progress).ranges(options)


def observe(
    model: Path | bytes | onnx.ModelProto,
    sites: Mapping[str, Sequence[str]],
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),
    progress: Callable[[int], None] | None = None,
) -> Observations:
    """`calibrate` without its last step: what a part of the samples shows, ready to merge."""
    seen, watching = begin(sites, options)
    seen.samples = watch(model, watching, samples, options, progress)
    return seen


def begin(
    sites: Mapping[str, Sequence[str]], options: CalibrationOptions
) -> tuple[Observations, dict[str, list[Watcher]]]:
    """Observers that have seen nothing, and by tensor those that `watch` is to show it to."""
    scratch = Scratch()
    observers: dict[str, MaxObserver] = {}
    for site in sites:
        needs_bins = new_observer_kind(options.method_of(site)) is Histogram
        observers[site] = Histogram(scratch) if needs_bins else MaxObserver()
    watching: dict[str, list[Watcher]] = {}
    for site, tensors in sites.items():
        for tensor in dict.fromkeys(tensors):
            watching.setdefault(tensor, []).append(observers[site])
    return Observations(observers, 0), watching


class Watcher(Protocol):
    """What is shown the values of a tensor."""

    def update(self, array: np.ndarray, name: str) -> None:
        """Adds one sample's values."""


def watch(
    model: Path | bytes | onnx.ModelProto,
    watching: Mapping[str, Sequence[Watcher]],
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),
    progress: Callable[[int], None] | None = None,
) -> int:
    """Shows every sample's value of the tensors in `watching` to their watchers.

    Returns:
        How many samples there were.

    Raises:
        ModelError: a tensor is not in the main graph, or the model does not load.
        DataError: there are no samples, the model fails on one, or a watcher refuses a value.
    """
    session, fetched, fed = _prepare(model, list(watching), options)
    seen = 0
    # Counting takes a third of the time that running does: it goes on beside the next sample.
    with ThreadPoolExecutor(max_workers=1) as counter:
        counting: Future[None] | None = None
        for index, feed in enumerate(_limited(samples, options.samples)):
            where = _where(samples, index)
            values = _values(session, feed, fetched, fed, where)
            if counting is not None:
                counting.result()
            counting = counter.submit(_count, watching, values, where)
            seen += getattr(samples, "batch", 1)
            if progress is not None:
                progress(seen)
        if counting is not None:
            counting.result()
    if not seen:
        raise DataError("no calibration samples")
    return seen


def _values(
    session: ort.InferenceSession, feed: Feed, fetched: list[str], fed: list[str], where: str
) -> dict[str, object]:
    """The placed tensors of one sample, by name."""
    values: dict[str, object] = {name: feed[name] for name in fed}
    if fetched:
        with naming(where):
            values |= zip(fetched, run_session(session, feed, fetched), strict=True)
    return values


def _count(
    watching: Mapping[str, Sequence[Watcher]], values: Mapping[str, object], where: str
) -> None:
    with naming(where):
        for name, value in values.items():
            _update(watching[name], value, name)


def _where(samples: Iterable[Feed], index: int) -> str:
    """Which sample it is, for messages; `Samples` know its file, too."""
    places: Sequence[str] = getattr(samples, "places", ())
    return f"calibration sample {index}" + (f" ({places[index]})" if index < len(places) else "")


def _update(observers: Sequence[Watcher], value: object, name: str) -> None:
    if not isinstance(value, np.ndarray):
        raise DataError(f"tensor {name!r} is a {type(value).__name__}, not an array")
    for observer in observers:
        observer.update(value, name)


def _limited(samples: Iterable[Feed], limit: int | None) -> Iterator[Feed]:
    per_feed = getattr(samples, "batch", 1)
    stream = iter(samples)
    if limit is None:
        yield from stream
        return
    for _ in range(max(1, limit // per_feed)):
        feed = next(stream, None)
        if feed is None:
            return
        yield feed


def _prepare(
    model: Path | bytes | onnx.ModelProto, tensors: list[str], options: CalibrationOptions
) -> tuple[ort.InferenceSession, list[str], list[str]]:
    """A session, the tensors to fetch from it, and those that are in the feed already."""
    data = serialized(model)
    known = outline(data)
    _check(tensors, known)
    fed = [name for name in tensors if name in known.inputs and name not in known.tensors]
    fetched = [name for name in tensors if name not in fed]
    folder = model.parent if isinstance(model, Path) else options.data_folder
    added = [name for name in fetched if name not in known.outputs]
    chosen = _session_options(options, folder)
    if isinstance(model, Path) and not added:
        return open_session(model, options=chosen), fetched, fed
    with with_outputs(data, added) as path:
        return open_session(path, options=chosen), fetched, fed


def _check(tensors: list[str], known: Outline) -> None:
    for name in tensors:
        if name not in known.tensors and name not in known.inputs:
            raise ModelError(f"tensor {name!r} to calibrate is not in the model's main graph")


def _session_options(options: CalibrationOptions, folder: Path | None) -> ort.SessionOptions:
    """Optimizations on: graph outputs are kept, and what feeds them differs by rounding only."""
    chosen = session_options(optimize=True)
    chosen.intra_op_num_threads = options.threads
    if folder is not None:
        chosen.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
    return chosen
