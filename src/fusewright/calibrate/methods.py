"""Calibration methods: from what an observer saw to a symmetric clipping threshold.

A threshold T means the scale T / 127 in INT8 and T / 448 in FP8: values beyond ±T saturate. All
methods look at magnitudes only, so signed tensors and those behind a ReLU are treated alike.
"""

from __future__ import annotations

import numpy as np

from fusewright.calibrate.observers import Bins, Histogram, MaxObserver
from fusewright.errors import UsageError
from fusewright.target import Format

METHODS = ("mse", "minmax", "percentile", "entropy")

# Threshold of a tensor that was zero throughout: zero is exact under any scale, and 1 keeps the
# scale (1/127) an ordinary number in float32 and float16.
ALL_ZERO_THRESHOLD = 1.0
# A smaller threshold would make the scale a subnormal float32, which engines flush to zero.
_SMALLEST = 128.0 * float(np.finfo(np.float32).tiny)

# Candidates tried exactly by `mse` on either side of the estimate: 48 bins are about a third
# of an octave; every third is tried, the error being flat within 2 % of the best T.
_AROUND, _STRIDE = 48, 3
_LINEAR_BINS = 2048


def method_for(form: Format, method: str) -> str:
    """The method that a format's thresholds are chosen by, where a user asks for `method`.

    What mse and entropy weigh is INT8's: a smaller step for what is clipped. Steps of FP8 grow with
    the value, so clipping wins nothing. On its own grid the best of all thresholds beats the
    maximum by 0.03 to 0.12 dB (Gauss, its ReLU, Laplace, Student's t; 0.7 dB where it is uniform),
    and the threshold that mse finds for INT8 loses 3.6 dB on Student's t, 12 dB behind an outlier.
    """
    return "minmax" if form.grows and method in ("mse", "entropy") else method


def new_observer_kind(method: str) -> type[MaxObserver]:
    """The cheapest observer that `method` can work from.

    Raises:
        UsageError: no such method.
    """
    if method not in METHODS:
        raise UsageError(f"no calibration method {method!r}; choose one of {', '.join(METHODS)}")
    return MaxObserver if method == "minmax" else Histogram


def threshold(observer: MaxObserver, method: str, percent: float = 99.99) -> float:
    """The threshold that `method` chooses; positive and at most the maximum seen.

    The two exceptions to "at most": a tensor of zeros gives `ALL_ZERO_THRESHOLD`, and one whose
    maximum is below 1.5e-36 gives that, so that the scale is always a normal float32.
    """
    needed = new_observer_kind(method)
    if not isinstance(observer, needed):
        raise UsageError(f"method {method!r} needs a {needed.__name__}")
    if observer.maximum == 0.0:
        return ALL_ZERO_THRESHOLD
    return max(_choose(observer, method, percent), _SMALLEST)


def _choose(observer: MaxObserver, method: str, percent: float) -> float:
    if not isinstance(observer, Histogram) or method == "minmax":
        return observer.maximum
    bins = observer.bins()
    if not bins.counts.size:  # nothing but subnormals
        return observer.maximum
    if method == "percentile":
        return percentile(bins, percent)
    return entropy(bins) if method == "entropy" else mse(bins)


def percentile(bins: Bins, percent: float) -> float:
    """Smallest T with `percent` of all magnitudes (zeros included) at or below it.

    Values count as spread evenly inside their bin, so T is off by less than a bin's width, 1/128.

    Raises:
        UsageError: `percent` is not in (0, 100].
    """
    if not 0.0 < percent <= 100.0:
        raise UsageError(f"percentile {percent} is not above 0 and at most 100")
    below = np.concatenate([[0], np.cumsum(bins.counts)]) + float(bins.zeros)
    target = percent / 100.0 * bins.total
    if target <= bins.zeros:  # that many are zero; the next best is the smallest value seen
        return float(bins.edges[1])
    return float(np.interp(target, below, bins.edges))


def mse(bins: Bins, levels: int = 127) -> float:
    """T that minimizes the mean squared error of rounding to `levels` steps and clipping at T.

    A closed-form estimate at every bin edge finds the region; the error integrated exactly over
    the bins decides inside it.
    """
    best = int(np.argmin(_estimated_error(bins, levels))) + 1
    candidates = bins.edges[max(best - _AROUND, 1) : best + _AROUND + 1]
    candidates = np.unique(np.append(candidates[::_STRIDE], candidates[-1]))
    coarse = _argmin_last(squared_error(bins, candidates, levels))
    near = candidates[max(coarse - 1, 0) : coarse + 2]
    fine = np.interp(np.linspace(0, len(near) - 1, 25), np.arange(len(near)), near)
    return float(fine[_argmin_last(squared_error(bins, fine, levels))])


def _argmin_last(errors: np.ndarray) -> int:
    """The largest threshold among equals: clipping that wins nothing is not worth having."""
    return len(errors) - 1 - int(np.argmin(errors[::-1]))


def _estimated_error(bins: Bins, levels: int) -> np.ndarray:
    """Σ(x − Q(x))² for T at each upper edge [n], from running sums.

    Below half a step x²; from there to T the rounding noise step²/12; above T (x − T)².
    """
    low, high = bins.edges[:-1], bins.edges[1:]
    moments = bins.counts * np.stack(
        [np.ones_like(low), (low + high) / 2, (low * low + low * high + high * high) / 3]
    )
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(moments, axis=1)], axis=1)
    tops = bins.edges[1:]
    step = tops / levels
    dead = np.searchsorted(bins.edges, step / 2, side="right") - 1
    dead = np.clip(dead, 0, len(tops))
    beyond = sums[:, -1:] - sums[:, 1:]
    clipped = beyond[2] - 2 * tops * beyond[1] + tops * tops * beyond[0]
    rounded = step * step / 12 * (sums[0, 1:] - sums[0, dead])
    return np.asarray(sums[2, dead] + rounded + clipped)


def squared_error(bins: Bins, thresholds: np.ndarray, levels: int = 127) -> np.ndarray:
    """Σ(x − Q(x))² over the bins for each threshold [m], values evenly spread inside their bin.

    With n = min(round(x / s), levels) and r = x − n·s, the integral of the squared error from 0
    to x is n·s³/12 + r³/3, in the clipped region as well.
    """
    step = (thresholds / levels)[:, None]
    # What rounds to zero under every candidate has the error x² under all of them.
    dead = max(int(np.searchsorted(bins.edges, step.min() / 2, side="right")) - 1, 0)
    edges, counts = bins.edges[dead:], bins.counts[dead:].astype(np.float64)
    low, high = bins.edges[:dead], bins.edges[1 : dead + 1]
    constant = float(bins.counts[:dead] @ ((low * low + low * high + high * high) / 3))
    nearest = np.minimum(np.rint(edges / step), levels)
    rest = edges - nearest * step
    integral = nearest * (step**3 / 12) + rest * rest * rest / 3  # rest**3 takes ten times as long
    width = np.diff(edges)
    point = width == 0  # the last bin, where everything in it equals the maximum
    mean = np.diff(integral, axis=1) / np.where(point, 1.0, width)
    mean = np.where(point, rest[:, 1:] ** 2, mean)
    return np.asarray(mean @ counts + constant)


def entropy(bins: Bins, levels: int = 128) -> float:
    """T with the least Kullback-Leibler divergence between the clipped and the quantized values.

    The rule of TensorRT's entropy calibrator: a linear histogram of 2,048 bins, and every T from
    bin 128 to the last. What lies beyond T goes into the last bin of the reference, not of the
    quantized distribution. Zeros are left out: every scale holds them exactly, and a ReLU's would
    drown the rest.
    """
    counts = _linear(bins, _LINEAR_BINS)
    kept = np.arange(levels, _LINEAR_BINS + 1)
    sums = _running(counts)
    total = sums[-1]
    outliers = total - sums[kept]
    last = counts[kept - 1]
    reference = last + outliers
    # Σ p·ln p without normalization; the last bin carries the outliers.
    surprise = _running(_xlogx(counts))[kept - 1] + _xlogx(reference)
    filled = _running((counts > 0).astype(np.float64))
    bounds = (kept[:, None] * np.arange(levels + 1)[None, :] + levels // 2) // levels
    mass = np.diff(sums[bounds], axis=1)
    cells = np.diff(filled[bounds], axis=1)
    cells[:, -1] += (last == 0) & (outliers > 0)
    weight = mass.copy()
    weight[:, -1] += outliers
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = np.where(weight > 0, weight * np.log(mass / cells), 0.0).sum(axis=1)
        # KL(P/total ‖ Q/kept mass): the normalizations come out as one logarithm.
        divergence = (surprise - cross) / total + np.log(sums[kept] / total)
    # A level that holds outliers only has p > 0 where q = 0: infinitely bad.
    divergence[~np.isfinite(divergence)] = np.inf
    divergence = divergence.round(9)  # few distinct values: equal but for the last digits
    return float(bins.edges[-1] * kept[_argmin_last(divergence)] / _LINEAR_BINS)


def _linear(bins: Bins, size: int) -> np.ndarray:
    """Counts [size] in equal bins over (0, maximum], each log bin shared out by overlap."""
    edges, running = bins.edges, _running(bins.counts.astype(np.float64))
    if edges[-1] == edges[-2]:  # the last bin is a point: counted below, not shared out
        edges, running = edges[:-1], running[:-1]
    grid = np.linspace(0, bins.edges[-1], size + 1)
    counts = np.diff(np.interp(grid, edges, running, left=0.0))
    if len(edges) < len(bins.edges):
        counts[-1] += bins.counts[-1]
    return np.asarray(counts)


def _running(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])


def _xlogx(values: np.ndarray) -> np.ndarray:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
