"""What the trained digits examples share: the data, the training, the export, the command line.

The data is scikit-learn's `digits`: 1,797 handwritten digits of 8x8 pixels with values 0 to 16,
which the models take divided by 16. A seeded, stratified split holds out 500 of them. A model that
wants more pixels gets them by bilinear interpolation, rounded to the same 17 levels.

For an example NAME with the data DATA are written

    NAME.onnx         input `input` [batch, 1, S, S], output `logits` [batch, 10], opset 17
    DATA_calib.npz    256 training samples under the name of the model's input, nothing else
    DATA_test.npz     the 500 held-out samples: `input` and `label`
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve().parent
PIXELS = 8
LEVELS = 16
HELD_OUT = 500
CALIBRATION = 256
SEED = 0


@dataclass(frozen=True)
class Example:
    """One network and how it is trained.

    Attributes:
        name: The ONNX file's stem.
        data: The stem of the data files; examples of the same `size` share them.
        build: Makes the untrained module, which takes [batch, 1, size, size].
        size: Height and width of an image, a multiple of 8.
        epochs: Passes over the training samples.
        batch: Samples in a step.
        rate: The highest learning rate of the cycle.
        shift_each: Shifts every sample by itself, not a batch as one.
        keep_batch_norm: Leaves BatchNormalization nodes of their own, and constants unfolded.
    """

    name: str
    data: str
    build: Callable[[], torch.nn.Module]
    size: int = PIXELS
    epochs: int = 60
    batch: int = 64
    rate: float = 1e-2
    shift_each: bool = False
    keep_batch_norm: bool = False


def load_split(size: int = PIXELS, seed: int = SEED) -> dict[str, np.ndarray]:
    """The digits as float32 [N, 1, size, size] in 0..1 with int64 labels, split by `seed`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (_enlarge(digits.images[:, None], size) / LEVELS).astype(np.float32)
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=HELD_OUT, random_state=seed, stratify=labels
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, borders repeated, rounded to whole levels; images of that size stay as they are."""
    centres = (np.arange(size) + 0.5) * PIXELS / size - 0.5
    weights = np.stack([np.interp(centres, range(PIXELS), row) for row in np.eye(PIXELS)], axis=1)
    return (weights @ images @ weights.T).round()


def train(model: torch.nn.Module, data: dict[str, np.ndarray], example: Example) -> None:
    """Fits `model` in place with AdamW on one cycle, images shifted by up to a digit's pixel.

    A digit's pixel is one of the original 8x8, thus 4 x 4 of 32x32.
    """
    import torch
    from torch.nn import functional

    images, labels = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    batch, size, rate = example.batch, example.size, example.rate
    steps = len(images) // batch
    reach = size // PIXELS
    padded = functional.pad(images, (reach,) * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, example.epochs * steps)
    model.train()
    for _ in range(example.epochs):
        for rows in torch.randperm(len(images))[: steps * batch].split(batch):
            shifts = torch.randint(0, 2 * reach + 1, (2, batch if example.shift_each else 1))
            top, left = shifts.expand(2, batch)
            crops = padded[rows].unfold(2, size, 1).unfold(3, size, 1)
            shifted = crops[torch.arange(batch), :, top, left]
            loss = functional.cross_entropy(model(shifted), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: torch.nn.Module, path: Path, size: int, *, keep_batch_norm: bool = False) -> None:
    """Writes `model` in inference mode through the TorchScript exporter, the batch dynamic."""
    import torch

    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated; shapes become constants
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 1, size, size),),
            path,
            dynamo=False,
            # EVAL would fold BN into the Convs; PRESERVE after eval() keeps it in inference mode.
            training=mode.PRESERVE if keep_batch_norm else mode.EVAL,
            do_constant_folding=not keep_batch_norm,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


def make(example: Example, folder: Path, seed: int = SEED) -> None:
    """Trains `example` with `seed` and writes its three files into `folder`."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one order of summation, so that two runs give the same weights
    torch.use_deterministic_algorithms(True)
    data = load_split(example.size, seed)
    model = example.build()
    train(model, data, example)
    path = folder / f"{example.name}.onnx"
    export(model, path, example.size, keep_batch_norm=example.keep_batch_norm)
    calibration, test = (folder / f"{example.data}_{part}.npz" for part in ("calib", "test"))
    np.savez_compressed(calibration, input=data["x_train"][:CALIBRATION])
    np.savez_compressed(test, input=data["x_test"], label=data["y_test"])


def score(example: Example, folder: Path = HERE) -> float:
    """Top-1 in percent of the file in `folder` on the held-out samples there."""
    import onnxruntime

    test = np.load(folder / f"{example.data}_test.npz")
    session = onnxruntime.InferenceSession(
        str(folder / f"{example.name}.onnx"), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"input": test["input"]})
    return 100.0 * float((logits.argmax(-1) == test["label"]).mean())


def main(example: Example) -> None:
    """The command line of an example's script."""
    parser = argparse.ArgumentParser(description=f"Trains and exports {example.name}.")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--score", action="store_true", help="only score what is in the folder")
    options = parser.parse_args()
    if not options.score:
        options.output.mkdir(parents=True, exist_ok=True)
        make(example, options.output, options.seed)
    print(f"top-1 on {HELD_OUT} held-out digits: {score(example, options.output):.2f} %")
