"""A folder of images as arrays for one image input, with the preprocessing that is stated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fusewright.calibrate.arrays import from_memory
from fusewright.calibrate.feeding import Block
from fusewright.calibrate.reading import reading, unwarned
from fusewright.errors import DataError, UsageError
from fusewright.graph.session import TensorSpec

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ImageOptions:
    """How pixels become the model's input: (pixel · scale − mean) / std per channel.

    A pixel is 0..255: those of 16 bits (12 in some TIFF) are brought to that range, unrounded.

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
        if not self.mean or not all(abs(mean) <= _LARGEST for mean in self.mean):
            raise UsageError(f"image mean {_listed(self.mean)}: each is a finite number (float32)")
        if not self.std or not all(map(_is_positive, self.std)):
            raise UsageError(f"image std {_listed(self.std)}: each is a positive number (float32)")
        if not _is_positive(self.scale):
            raise UsageError(f"image scale {self.scale} is no positive number (float32)")


def _is_positive(value: float) -> bool:
    """Whether float32 holds the value as a positive, normal number."""
    return _SMALLEST <= value <= _LARGEST


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values) or "without a value"


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
        if self._spec.dtype == np.uint8:
            pixels = np.rint(pixels).astype(np.uint8)
        else:
            scaled = pixels.astype(np.float32) * np.float32(self._options.scale)
            pixels = (scaled - self._mean) / self._std
        if self._options.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)[None]

    def _pixels(self, path: Path) -> np.ndarray:
        """0..255, uint8 or float32 where the file has more bits, [H, W, C] in RGB order."""
        pillow: Any = self._pillow
        with reading(str(path), "not a readable image"), unwarned(), pillow.open(path) as image:
            image = self._in_bytes(image, path)
            if self._size is not None and image.size != self._size[::-1]:
                image = image.resize(self._size[::-1], pillow.Resampling.BILINEAR)
            pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], self._channels, axis=2)
        return pixels

    def _in_bytes(self, image: Any, path: Path) -> Any:
        """The image with pixels 0..255; Pillow itself clips what has more bits."""
        if not image.mode.startswith(("I", "F")):
            return image.convert("L" if self._channels == 1 else "RGB")
        top = _largest(image)
        if top is None:
            raise DataError(
                f"{path}: pixels of 32 bits (mode {image.mode}) have no range of their own; save"
                " it with 8 or 16 bits, or give arrays (.npy)"
            )
        pixels = np.asarray(image).astype(np.float32) * np.float32(255 / top)
        return self._pillow.fromarray(pixels)


def _largest(image: Any) -> int | None:
    """The largest value that a grey pixel of more than 8 bits can have; None where not known."""
    if image.mode.startswith("I;16"):
        # TIFF, BitsPerSample: Pillow reads 12 bits into 16.
        bits = image.tag_v2.get(258, (16,))[0] if hasattr(image, "tag_v2") else 16
        return int((1 << bits) - 1)
    # Pillow brings a PGM of any maximum to 16 bits; before 11.3 that was the mode of a PNG too.
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _static(height: int | str | None, width: int | str | None) -> tuple[int, int] | None:
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need pillow: pip install 'fusewright[images]'") from error
    # What it logs about a damaged file would go to stderr where no one has set up logging.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    module: ModuleType = Image
    return module
