"""Trains the small residual CNN that ships with the repository and exports it to ONNX.

    python models/digits_cnn.py            # writes beside this file; needs torch, scikit-learn
    python models/digits_cnn.py --score    # only scores the shipped file; needs no torch

The data is scikit-learn's `digits`: 1,797 handwritten digits of 8x8 pixels with values 0 to 16,
which the model takes divided by 16. A seeded, stratified split holds out 500 of them. Written are

    digits_cnn.onnx        input `input` [batch, 1, 8, 8], output `logits` [batch, 10], opset 17
    digits_cnn_calib.npz   256 training samples under the name of the model's input, nothing else
    digits_cnn_test.npz    the 500 held-out samples: `input` and `label`

BatchNormalization stays a node of its own in the file, as it does in the exports that users
bring, so that folding it has something to show.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve().parent
HELD_OUT = 500
CALIBRATION = 256
SEED = 0


def load_split(seed: int = SEED) -> dict[str, np.ndarray]:
    """The digits as float32 [N, 1, 8, 8] in 0..1 with int64 labels, split by `seed`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=HELD_OUT, random_state=seed, stratify=labels
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


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


def train(model: torch.nn.Module, data: dict[str, np.ndarray], epochs: int) -> None:
    """Fits `model` in place with AdamW on one cycle; images are shifted by up to one pixel."""
    import torch
    from torch.nn import functional

    images, labels = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    batch = 64
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: steps * batch].split(batch):
            top, left = (int(v) for v in torch.randint(0, 3, (2,)))
            padded = functional.pad(images[rows], (1, 1, 1, 1))
            shifted = padded[:, :, top : top + 8, left : left + 8]
            loss = functional.cross_entropy(model(shifted), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: torch.nn.Module, path: Path) -> None:
    """Writes `model` with its BatchNormalization nodes, in inference mode, and a dynamic batch."""
    import torch

    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 8, 8),),
        path,
        dynamo=False,
        # EVAL would fold BN into the Convs; PRESERVE keeps it and, after eval(), in inference mode.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )


def score(folder: Path = HERE, model: Path | None = None) -> float:
    """Top-1 in percent on the held-out samples of `folder`, of `model` or of the shipped file."""
    import onnxruntime

    test = np.load(folder / "digits_cnn_test.npz")
    session = onnxruntime.InferenceSession(
        str(model or folder / "digits_cnn.onnx"), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"input": test["input"]})
    return 100.0 * float((logits.argmax(-1) == test["label"]).mean())


def make(folder: Path, epochs: int = 60, seed: int = SEED) -> None:
    """Trains with `seed` and writes the three files into `folder`."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one order of summation, so that two runs give the same weights
    torch.use_deterministic_algorithms(True)
    data = load_split(seed)
    model = build()
    train(model, data, epochs)
    export(model, folder / "digits_cnn.onnx")
    np.savez_compressed(folder / "digits_cnn_calib.npz", input=data["x_train"][:CALIBRATION])
    np.savez_compressed(folder / "digits_cnn_test.npz", input=data["x_test"], label=data["y_test"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write into")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--score", action="store_true", help="only score what is in the folder")
    options = parser.parse_args()
    if not options.score:
        options.output.mkdir(parents=True, exist_ok=True)
        make(options.output, options.epochs, options.seed)
    print(f"top-1 on {HELD_OUT} held-out digits: {score(options.output):.2f} %")


if __name__ == "__main__":
    main()
