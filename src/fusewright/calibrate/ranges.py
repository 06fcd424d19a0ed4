"""What calibration says: one range per site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fusewright.errors import DataError


@dataclass(frozen=True)
class Range:
    """The range of one site.

    Attributes:
        threshold: magnitude at which quantized values saturate; the scale is threshold / 127 in
            INT8 and threshold / 448 in FP8.
        maximum: largest magnitude seen.
        count: number of values seen.
    """

    threshold: float
    maximum: float
    count: int


@dataclass(frozen=True)
class Ranges(Mapping[str, Range]):
    """Ranges by site name, with what produced them."""

    sites: Mapping[str, Range]
    method: str
    samples: int

    def __getitem__(self, site: str) -> Range:
        """The range of `site`."""
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        """Site names, in the order they were asked for."""
        return iter(self.sites)

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.sites)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; floats survive exactly."""
        sites = {
            name: {"threshold": r.threshold, "maximum": r.maximum, "count": r.count}
            for name, r in self.sites.items()
        }
        return {"method": self.method, "samples": self.samples, "sites": sites}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranges:
        """The inverse of `to_dict`.

        Raises:
            DataError: `data` is not one.
        """
        try:
            sites = {
                str(name): Range(float(r["threshold"]), float(r["maximum"]), int(r["count"]))
                for name, r in data["sites"].items()
            }
            return cls(sites, str(data["method"]), int(data["samples"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not calibration ranges: {error!r}") from error
