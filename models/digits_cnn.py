"""Trains the small residual CNN that ships with the repository and exports it to ONNX.

    python models/digits_cnn.py            # writes beside this file; needs torch, scikit-learn
    python models/digits_cnn.py --score    # only scores the shipped file; needs no torch

See digits.py for the data and for what is written. BatchNormalization stays a node of its own in
the file, as it does in the exports that users bring, so that folding it has something to show.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from digits import Example, main

if TYPE_CHECKING:
    import torch


def build(channels: int = 16) -> torch.nn.Module:
    """The untrained network: stem with MaxPool, three residual blocks, global pool, Linear."""
    from torch import nn

    class Block(nn.Module):
        """Conv-BN-ReLU, Conv-BN, add the skip (through Conv-BN where the shape changes), ReLU."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU()
            self.downsample: nn.Module | None = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skip = x if self.downsample is None else self.downsample(x)
            y = self.relu(self.bn1(self.conv1(x)))
            return self.relu(self.bn2(self.conv2(y)) + skip)

    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, channels, 3, 1, 1, bias=False)),
        ("bn1", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU()),
        ("maxpool", nn.MaxPool2d(2)),
        ("layer1", Block(channels, channels, 1)),
        ("layer2", Block(channels, 2 * channels, 2)),
        ("layer3", Block(2 * channels, 2 * channels, 1)),
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(2 * channels, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


EXAMPLE = Example("digits_cnn", "digits_cnn", build, keep_batch_norm=True)

if __name__ == "__main__":
    main(EXAMPLE)
