"""Shapes, image preprocessing and data as typed."""

from __future__ import annotations

import pytest

from fusewright.calibrate import ImageOptions, RandomSamples
from fusewright.cli.parsing import open_data, parse_images, parse_shapes
from fusewright.errors import UsageError

ONE, TWO, FOUR = (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("text", "name", "ranges"),
    [
        ("x:1x3x8x8", "x", (ONE, ONE, ONE)),
        ("x:1x3x8x8:2x3x8x8:4x3x8x8", "x", (ONE, TWO, FOUR)),
        ("input:0:1x3x8x8", "input:0", (ONE, ONE, ONE)),
        ("input:0:1x3x8x8:2x3x8x8:4x3x8x8", "input:0", (ONE, TWO, FOUR)),
        ("scope/a:b:0:1x3x8x8", "scope/a:b:0", (ONE, ONE, ONE)),
        ("ids:16", "ids", ((16,), (16,), (16,))),
        ("ids:1:16:64", "ids", ((1,), (16,), (64,))),
        ("input:0:16", "input:0", ((16,), (16,), (16,))),
        (":0:1x3x8x8", ":0", (ONE, ONE, ONE)),
        ("x:0:1:1x3x8x8", "x:0:1", (ONE, ONE, ONE)),
    ],
)
def test_shapes_are_read_from_the_right(text, name, ranges):
    assert parse_shapes([text]) == {name: ranges}


@pytest.mark.parametrize("text", ["x", "x:", ":1x3", "x:1x", "x:1,3", "x:-1x3", "x:1x3:", "1x3"])
def test_what_is_no_shape_is_named(text):
    with pytest.raises(UsageError, match=text):
        parse_shapes([text])


def test_shapes_of_two_inputs():
    assert set(parse_shapes(["a:1x3", "b:2"])) == {"a", "b"}
    assert parse_shapes(None) == {}


def test_images_as_typed():
    made = parse_images(
        ("0.485,0.456,0.406", "0.229, 0.224, 0.225", "224x192", "nhwc", "bgr", "1/256"), "folder"
    )
    assert made == ImageOptions(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=(224, 192),
        layout="nhwc",
        color="bgr",
        scale=1 / 256,
    )
    assert parse_images((None,) * 6, "folder") == ImageOptions()
    assert parse_images((None, None, "64", None, None, None), "f").size == (64, 64)


@pytest.mark.parametrize(
    ("index", "text"),
    [(0, "a,b"), (1, ""), (1, "0"), (2, "2x2x2"), (2, "axb"), (3, "chw"), (4, "grey"), (5, "1/0")],
)
def test_what_is_no_preprocessing_is_refused(index, text):
    given = [None] * 6
    given[index] = text
    with pytest.raises(UsageError):
        parse_images(given, "folder")


@pytest.mark.parametrize("data", ["d.npz", "d.NPY", None])
def test_preprocessing_is_for_images(data):
    with pytest.raises(UsageError, match="--std is for images"):
        parse_images((None, "1", None, None, None, None), data)


def test_random_data_takes_the_best_shape():
    made = open_data(None, "--calib", 3, {"x": (ONE, TWO, FOUR)})
    assert made == RandomSamples(3, shapes={"x": TWO})
    assert open_data("module:reader", "--calib", None, {}) == "module:reader"
