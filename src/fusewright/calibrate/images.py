"""A folder of images as arrays for one image input, with the preprocessing that is stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fusewright.calibrate.arrays import from_memory
from fusewright.calibrate.feeding import Block
from fusewright.errors import DataError, UsageError
from fusewright.graph.session import TensorSpec, first_line

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)


@dataclass(frozen=True)
class ImageOptions:
    """How pixels become the model's input: (pixel · scale − mean) / std per channel.

    Attributes:
        mean: one value, or one per channel in the order of `color`.
        std: the same.
        size: (height, width) to resize to (bilinear, aspect not kept); None takes the model's
            own, or the image's where that is dynamic.
        layout: "nchw" or "nhwc".
        color: "rgb" or "bgr".
        scale: 1/255 maps pixels to [0, 1]; use 1 for models that take 0..255.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    layout: str = "nchw"
    color: str = "rgb"
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        """Refuses what no image can be prepared with."""
        if self.layout not in ("nchw", "nhwc"):
            raise UsageError(f"image layout {self.layout!r} is neither 'nchw' nor 'nhwc'")
        if self.color not in ("rgb", "bgr"):
            raise UsageError(f"image color {self.color!r} is neither 'rgb' nor 'bgr'")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"image size {self.size} is not positive")
        if not self.std or 0.0 in self.std:
            raise UsageError(f"image std {self.std} has a zero, or no value")


def image_blocks(files: list[Path], spec: TensorSpec, options: ImageOptions) -> Iterator[Block]:
    """One block [1, C, H, W] or [1, H, W, C] for each image file, in the order given.

    Raises:
        DataError: an image cannot be read, the input is not one of images, or pillow is missing.
    """
    reader = _ImageReader(spec, options)
    for path in files:
        yield Block(str(path), {spec.name: from_memory(reader.read(path), str(path))})


class _ImageReader:
    def __init__(self, spec: TensorSpec, options: ImageOptions) -> None:
        shape = spec.shape
        if shape is None or len(shape) != 4:
            raise DataError(f"input {spec.name!r} is not [N, C, H, W]: images cannot be fed to it")
        self._pillow = _pillow()
        self._spec, self._options = spec, options
        axes = (1, 2, 3) if options.layout == "nchw" else (3, 1, 2)
        channels, height, width = (shape[axis] for axis in axes)
        self._channels = channels if isinstance(channels, int) and channels > 0 else 3
        if self._channels not in (1, 3):
            raise DataError(
                f"input {spec.name!r} has {self._channels} channels in layout "
                f"{options.layout}, images have 1 or 3: is the layout right?"
            )
        self._size = options.size or _static(height, width)
        self._mean, self._std = self._per_channel("mean"), self._per_channel("std")
        raw = (options.mean, options.std) == ((0.0,), (1.0,))
        if spec.dtype.kind != "f" and not (spec.dtype == np.uint8 and raw):
            raise DataError(
                f"input {spec.name!r} is {spec.dtype}: images become floats "
                "(uint8 is fed as it is, without mean and std)"
            )

    def _per_channel(self, option: str) -> np.ndarray:
        values = getattr(self._options, option)
        if len(values) not in (1, self._channels):
            raise UsageError(
                f"image {option} has {len(values)} values, the input {self._channels} channels"
            )
        return np.array(values, np.float32)

    def read(self, path: Path) -> np.ndarray:
        pixels = self._pixels(path)
        if self._options.color == "bgr":
            pixels = pixels[..., ::-1]
        if self._spec.dtype != np.uint8:
            scaled = pixels.astype(np.float32) * np.float32(self._options.scale)
            pixels = (scaled - self._mean) / self._std
        if self._options.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)[None]

    def _pixels(self, path: Path) -> np.ndarray:
        """Uint8 [H, W, C] in RGB order."""
        pillow: Any = self._pillow
        try:
            with pillow.open(path) as image:
                image = image.convert("L" if self._channels == 1 else "RGB")
                if self._size is not None and image.size != self._size[::-1]:
                    image = image.resize(self._size[::-1], pillow.Resampling.BILINEAR)
                pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            raise DataError(f"{path}: not a readable image ({first_line(error)})") from error
        return pixels if pixels.ndim == 3 else pixels[..., None]


def _static(height: int | str | None, width: int | str | None) -> tuple[int, int] | None:
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need pillow: pip install 'fusewright[images]'") from error
    module: ModuleType = Image
    return module
