"""Regions probed with two samples: what they say of the whole batch, and which must not be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net

from fusewright.graph.carried import FEWER, batch_axis, fewer
from fusewright.graph.layout import Prober, region_behind

BATCH, SAMPLE = 6, 240
Build = Callable[[Net, str], str]
_BACK = np.iinfo(np.int64).max


def _heads(net: Net, y: str) -> str:
    """timm: the batch goes behind q, k, v, and comes back."""
    y = net.op("Transpose", net.op("Reshape", y, [0, 0, 3, 2, 4]), perm=[2, 0, 3, 1, 4])
    return net.op("Gather", y, np.int64(1), axis=0)


def _merged_tokens(net: Net, y: str) -> str:
    """PyTorch's nn.MultiheadAttention: tokens and batch are one axis between two Transposes."""
    y = net.op("Transpose", y, perm=[1, 0, 2])
    y = net.op("Reshape", net.op("Reshape", y, [10 * BATCH, 24]), [10, BATCH * 4, 6])
    return net.op("Transpose", y, perm=[1, 2, 0])


def _windows(net: Net, y: str) -> str:
    y = net.op("Reshape", y, [BATCH, 2, 5, 4, 6])
    y = net.op("Pad", y, [0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    y = net.op("Concat", y, net.op("Slice", y, [1], [_BACK], [1]), axis=1)
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), [BATCH * 6, -1, 24])


def _parts(net: Net, y: str) -> str:
    parts = net.op("Split", y, [4, 6], axis=1, outputs=2)
    y = net.op("Unsqueeze", net.op("Concat", *reversed(parts), axis=1), [0])
    return net.op("Flatten", net.op("Squeeze", y, [0]), axis=2)


def _channels_first(net: Net, y: str) -> str:
    y = net.op("Reshape", y, [BATCH, 10, 4, 6])
    return net.op("Identity", net.op("SpaceToDepth", y, blocksize=2))


CARRIED: dict[str, Build] = {
    "heads": _heads,
    "merged tokens": _merged_tokens,
    "windows": _windows,
    "parts": _parts,
    "space to depth": _channels_first,
}
MIXED: dict[str, Build] = {
    "rolled": lambda n, y: n.op("Concat", n.op("Slice", y, [1], [_BACK], [0]), y, axis=0),
    "reversed": lambda n, y: n.op("Slice", y, [-1], [-_BACK], [0], [-1]),
    "picked": lambda n, y: n.op("Gather", y, np.array([3, 0, 2], np.int64), axis=0),
    "padded": lambda n, y: n.op("Pad", y, [1, 0, 0, 0, 0, 0]),
    "repeated": lambda n, y: n.op("Tile", y, [2, 1, 1]),
    "torn": lambda n, y: n.op("Reshape", y, [4, 15, 24]),
    "expanded": lambda n, y: n.op("Expand", n.op("Unsqueeze", y, [0]), [2, 1, 1, 1]),
    "two places": lambda n, y: n.op(
        "Concat", y, n.op("Reshape", n.op("Transpose", y, perm=[1, 0, 2]), [6, 10, 24]), axis=1
    ),
}


def _probe(build: Build, batch: int | None) -> tuple[bool, list[np.ndarray] | None]:
    net = Net(18)
    x = net.input("x", BATCH, 10, 24)
    model = net.model(build(net, x))
    region = region_behind(list(model.graph.outputs), 18)
    probe, shape = Prober(), (BATCH, 10, 24)
    carries = probe.carries(region, shape, 18, BATCH)
    return carries, probe(region, shape, 18, batch)


@pytest.mark.parametrize("name", CARRIED)
def test_two_samples_say_what_becomes_of_all(name: str) -> None:
    carries, two = _probe(CARRIED[name], BATCH)
    _, whole = _probe(CARRIED[name], None)
    assert carries and two is not None and whole is not None
    small, large = (array.reshape(-1) for array in (*two, *whole))
    assert small.size * BATCH == large.size * FEWER
    for sample in range(BATCH):
        np.testing.assert_array_equal(_of(large, sample), _of(small, sample % FEWER))
    if not (small < 0).any():
        # As many elements of one sample in a row.
        runs = [int(np.argmax(array // SAMPLE != 0)) for array in (small, large)]
        assert runs[0] == runs[1] > 0


def _of(moved: np.ndarray, sample: int) -> np.ndarray:
    """Where in the sample its elements come from, in the order they have."""
    return moved[moved // SAMPLE == sample] % SAMPLE


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_is_probed_whole(name: str) -> None:
    carries, two = _probe(MIXED[name], BATCH)
    assert not carries
    assert two is None


def test_where_the_batch_is() -> None:
    assert batch_axis((12, 5, 8), 6) == 0
    assert batch_axis((5, 6, 8), 6) == 1
    assert batch_axis((5, 8, 6), 6) is None, "channels"
    assert fewer((12, 5, 8), 6) == (4, 5, 8)
