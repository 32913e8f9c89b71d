"""Captions on pictures: the picture stays, enlarged, and its words are above it."""

import numpy as np
import pytest
from PIL import ImageFont

from experiments import images


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 40, 3), (128, 128, 3)])
def test_a_captioned_picture_is_there_below_its_words(shape: tuple[int, int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    found = images.captioned(pictures, ["red apple", "smiling cat", "red apple"])
    zoom = found.shape[2] // shape[1]
    assert found.shape[2] == zoom * shape[1] >= images.CAPTIONED
    strip = found.shape[1] - zoom * shape[0]
    np.testing.assert_array_equal(found[:, strip::zoom, ::zoom], pictures)
    words = found[:, :strip]
    assert (words == words[..., :1]).all() and (words.reshape(3, -1).min(1) < 128).all()
    np.testing.assert_array_equal(words[0], words[2])
    assert (words[0] != words[1]).any()
    blank = images.captioned(pictures[:1], [""])
    assert (blank[:, : blank.shape[1] - zoom * shape[0]] == 255).all()


def test_words_are_broken_into_lines_that_fit_and_too_many_are_left_out() -> None:
    font = ImageFont.load_default()
    text = "a cat with tears of joy beside a red apple"
    few = images._lines(text, 96, font)
    assert " ".join(few) == text
    assert len(few) == 2 and all(font.getlength(line) <= 96 for line in few)
    many = images._lines(text * 9, 96, font)
    assert len(many) == images.LINES and many[-1].endswith(" ...")
    assert all(font.getlength(line) <= 96 for line in many)
