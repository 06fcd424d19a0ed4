"""Folders of images with their preprocessing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fusewright.calibrate.images import ImageOptions
from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError, UsageError
from fusewright.graph.session import TensorSpec

Image = pytest.importorskip("PIL.Image")
NCHW = TensorSpec("x", np.dtype(np.float32), ("N", 3, 4, 6))
NHWC = TensorSpec("x", np.dtype(np.float32), ("N", 4, 6, 3))
FREE = TensorSpec("x", np.dtype(np.float32), ("N", 3, "H", "W"))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for k, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    (tmp_path / "labels.txt").write_text("0 1 2")
    return tmp_path


def read(folder, spec, **options):
    samples = open_samples(folder, (spec,), ImageOptions(**options))
    return np.concatenate([feed["x"] for feed in samples])


def test_the_default_is_rgb_in_0_to_1(folder):
    expected = PIXELS.astype(np.float32) / 255
    np.testing.assert_allclose(read(folder, NCHW), expected.transpose(0, 3, 1, 2), rtol=1e-6)
    np.testing.assert_allclose(read(folder, NHWC, layout="nhwc"), expected, rtol=1e-6)


def test_mean_std_scale_and_bgr(folder):
    mean, std = (104.0, 117.0, 123.0), (2.0, 3.0, 4.0)
    got = read(folder, NHWC, layout="nhwc", color="bgr", scale=1.0, mean=mean, std=std)
    expected = (PIXELS[..., ::-1].astype(np.float64) - mean) / std
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_sizes(folder):
    assert read(folder, FREE).shape == (3, 3, 4, 6)
    assert read(folder, FREE, size=(8, 10)).shape == (3, 3, 8, 10)
    small = TensorSpec("x", np.dtype(np.float32), (1, 3, 2, 2))
    assert read(folder, small).shape == (3, 3, 2, 2)


def test_gray_and_uint8_inputs(folder):
    gray = TensorSpec("x", np.dtype(np.float32), ("N", 1, 4, 6))
    assert read(folder, gray).shape == (3, 1, 4, 6)
    raw = TensorSpec("x", np.dtype(np.uint8), ("N", 4, 6, 3))
    np.testing.assert_array_equal(read(folder, raw, layout="nhwc"), PIXELS)
    with pytest.raises(DataError, match="images become floats"):
        read(folder, raw, layout="nhwc", mean=(0.5,))


def test_class_folders_and_one_file(folder, tmp_path):
    inner = tmp_path / "n01440764"
    inner.mkdir()
    Image.fromarray(PIXELS[0]).save(inner / "a.jpg")
    assert read(folder, NCHW).shape[0] == 4
    assert read(folder / "0.png", NCHW).shape[0] == 1


def test_an_unreadable_image_is_named(folder):
    (folder / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        read(folder, NCHW)


def test_a_truncated_image_is_named(folder):
    path = folder / "1.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        read(folder, NCHW)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (TensorSpec("x", np.dtype(np.float32), ("N", 10)), {}, "not .N, C, H, W."),
        (NHWC, {}, "4 channels in layout nchw"),
        (NCHW, {"mean": (0.5, 0.5)}, "mean has 2 values, the input 3"),
    ],
)
def test_inputs_that_do_not_fit(folder, spec, options, message):
    with pytest.raises((DataError, UsageError), match=message):
        read(folder, spec, **options)


@pytest.mark.parametrize(
    "options",
    [{"layout": "chw"}, {"color": "gray"}, {"size": (0, 4)}, {"std": (0.0,)}, {"std": ()}],
)
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError):
        ImageOptions(**options)


WIDE = np.array([[0, 255, 256, 4095, 32768, 65535]] * 4, np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_clipped(tmp_path, name, channels):
    Image.fromarray(WIDE).save(tmp_path / name)
    spec = TensorSpec("x", np.dtype(np.float32), ("N", channels, 4, 6))
    expected = np.broadcast_to(WIDE / 65535, (1, channels, 4, 6))
    np.testing.assert_allclose(read(tmp_path, spec), expected, rtol=1e-6)
    got = read(tmp_path, spec, scale=1.0, mean=(127.5,))
    np.testing.assert_allclose(got, expected * 255 - 127.5, rtol=1e-5, atol=1e-4)


def test_16_bits_for_a_model_that_takes_bytes(tmp_path):
    Image.fromarray(WIDE).save(tmp_path / "a.png")
    raw = TensorSpec("x", np.dtype(np.uint8), ("N", 4, 6, 1))
    expected = np.rint(WIDE / 65535 * 255)[None, ..., None]
    np.testing.assert_array_equal(read(tmp_path, raw, layout="nhwc"), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_an_error(tmp_path, dtype):
    Image.fromarray(WIDE.astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: pixels of 32 bits"):
        read(tmp_path, NCHW)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode, recwarn):
    suffix = "tif" if mode in ("CMYK", "YCbCr", "PA") else "png"
    image = Image.fromarray(PIXELS[0]).convert("P" if mode == "PA" else mode)
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as kept:
        expected = np.asarray(kept.convert("RGB"), np.float32) / 255
    np.testing.assert_allclose(read(tmp_path, NCHW)[0], expected.transpose(2, 0, 1), rtol=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 0.0, 1e-46, 1e39])
@pytest.mark.parametrize("option", ["std", "scale"])
def test_what_no_pixel_is_divided_by(option, value):
    with pytest.raises(UsageError, match=f"image {option}"):
        ImageOptions(**{option: value if option == "scale" else (value,)})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39])
def test_a_mean_is_finite(value):
    with pytest.raises(UsageError, match=r"image mean 0.5,.*,0.5: each is a finite number"):
        ImageOptions(mean=(0.5, value, 0.5))


def test_what_pillow_logs_does_not_reach_stderr(tmp_path):
    """TIFF, SamplesPerPixel of 122: Pillow logs an error besides the one that it raises."""
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS[0]).save(path)
    data = path.read_bytes()
    entry = data.index(b"\x15\x01\x03\x00")
    path.write_bytes(data[: entry + 8] + b"\x7a\x00" + data[entry + 10 :])
    code = (
        "import sys, numpy as np\n"
        "from fusewright.calibrate.samples import open_samples\n"
        "from fusewright.errors import DataError\n"
        "from fusewright.graph.session import TensorSpec\n"
        "spec = TensorSpec('x', np.dtype(np.float32), ('N', 3, 4, 6))\n"
        "try:\n    list(open_samples(sys.argv[1], (spec,)))\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "not a readable image" in done.stdout
    assert done.stderr == ""
