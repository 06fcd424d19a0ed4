"""Largest value, mean square and variance per channel: what a shared step is judged against."""

from __future__ import annotations

import numpy as np

from fusewright.errors import DataError


class ChannelPower:
    """Adds up the channels of one tensor, over whatever feeds it is shown."""

    def __init__(self, axis: int) -> None:
        """Has seen nothing yet; the channels are on `axis`, counted from the end: 1 is the last."""
        self._axis = axis
        self._count = 0
        self._maxima = self._sums = self._squares = np.zeros(0)

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of one feed, a float array.

        Raises:
            DataError: it holds NaN or Inf.
        """
        if not array.size:
            return
        channels = array.shape[-self._axis]
        rows = np.moveaxis(array, -self._axis, -1).reshape(-1, channels).astype(np.float64)
        peaks = np.abs(rows).max(axis=0)
        if not np.isfinite(peaks).all():
            raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs on this sample")
        if not self._count:
            self._maxima, self._sums, self._squares = (np.zeros(channels) for _ in range(3))
        self._count += len(rows)
        self._maxima = np.maximum(self._maxima, peaks)
        self._sums = self._sums + rows.sum(axis=0)
        self._squares = self._squares + np.square(rows).sum(axis=0)

    @property
    def maxima(self) -> np.ndarray:
        """max|x|, float64 [channels]; empty where nothing was seen."""
        return self._maxima

    @property
    def mean_square(self) -> np.ndarray:
        """Mean of x², float64 [channels]."""
        return self._squares / max(self._count, 1)

    @property
    def variance(self) -> np.ndarray:
        """Mean of (x − mean of x)², float64 [channels]."""
        mean = self._sums / max(self._count, 1)
        return np.asarray(np.maximum(self.mean_square - np.square(mean), 0.0))


class WholePower(ChannelPower):
    """The same of a tensor as one channel: its axes may be of another size in each feed."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        super().__init__(1)

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of one feed, a float array.

        Raises:
            DataError: as `ChannelPower.update`.
        """
        super().update(array.reshape(-1, 1), name)
