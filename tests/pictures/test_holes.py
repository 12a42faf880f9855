"""Holes as masks, and the new laid into the old."""

import numpy as np
import pytest
from PIL import Image

from realcustom.pictures.holes import fitting_size, hole_mask, laid_into


def test_a_box_covers_the_pixels_between_its_sides():
    inside = hole_mask((0.25, 0.5, 0.75, 1.0), (8, 4))
    expected = np.zeros((4, 8), bool)
    expected[2:, 2:6] = True
    np.testing.assert_array_equal(inside, expected)


def test_a_rectangle_as_a_polygon_is_the_box_up_to_its_border():
    box, corners = (0.2, 0.1, 0.7, 0.6), ((0.2, 0.1), (0.7, 0.1), (0.7, 0.6), (0.2, 0.6))
    one, other = hole_mask(box, (100, 80)), hole_mask(corners, (100, 80))
    assert one.sum() > 1500
    # A polygon's border may be one pixel wider.
    assert (hole_mask((0.21, 0.125, 0.69, 0.5875), (100, 80)) <= other).all()
    assert (other <= hole_mask((0.19, 0.0875, 0.71, 0.6125), (100, 80))).all()
    triangle = hole_mask(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), (100, 100))
    assert triangle.mean() == pytest.approx(0.5, abs=0.02)
    assert triangle[10, 10]
    assert not triangle[90, 90]


def test_a_mask_is_stretched_and_white_or_alpha_is_the_hole():
    white = Image.new("L", (4, 4))
    white.paste(255, (2, 0, 4, 4))
    alpha = Image.new("RGBA", (4, 4))
    alpha.paste((10, 200, 30, 255), (2, 0, 4, 4))
    for mask in (white, alpha):
        inside = hole_mask(mask, (40, 20))
        assert inside.shape == (20, 40)
        assert inside[:, 25:].all()
        assert not inside[:, :15].any()


def test_a_hole_without_a_pixel_is_refused():
    with pytest.raises(ValueError, match="smaller than a pixel"):
        hole_mask((0.5, 0.5, 0.501, 0.501), (64, 64))
    with pytest.raises(ValueError, match="black"):
        hole_mask(Image.new("L", (8, 8)), (64, 64))


@pytest.mark.parametrize("feather", [0, 1, 5])
def test_outside_the_hole_every_pixel_stays_and_the_feather_lies_inside(feather):
    random = np.random.default_rng(0)
    old = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    new = Image.new("RGB", (50, 40), (255, 0, 0))
    inside = hole_mask((0.2, 0.2, 0.8, 0.8), old.size)
    mixed, before = np.asarray(laid_into(old, new, inside, feather)), np.asarray(old)
    np.testing.assert_array_equal(mixed[~inside], before[~inside])
    deep = np.zeros_like(inside)
    deep[8 + feather : 32 - feather, 10 + feather : 40 - feather] = True
    assert (mixed[deep] == (255, 0, 0)).all()
    ring = inside & ~deep
    assert ring.any() == (feather > 0)
    # Closer to the edge there is less of the new.
    shares = np.asarray(laid_into(Image.new("RGB", (50, 40)), new, inside, feather))[20, 10 : 10 + feather + 1, 0]
    assert (np.diff(shares.astype(int)) > 0).all()


def test_the_new_picture_is_stretched_to_the_old_one():
    old, inside = Image.new("RGB", (60, 40)), hole_mask((0.0, 0.0, 0.5, 1.0), (60, 40))
    mixed = laid_into(old, Image.new("RGB", (16, 8), (9, 9, 9)), inside)
    assert mixed.size == (60, 40)
    assert mixed.getpixel((0, 0)) == (9, 9, 9)
    assert mixed.getpixel((59, 0)) == (0, 0, 0)


def test_a_picture_is_drawn_in_its_shape_and_no_larger_than_the_model():
    assert fitting_size((64, 64), 64 * 64, 8) == (64, 64)
    assert fitting_size((50, 30), 64 * 64, 8) == (48, 32)
    width, height = fitting_size((4000, 3000), 512 * 512, 64)
    assert (width, height) == (576, 448)
    assert fitting_size((3000, 10), 64 * 64, 8)[1] == 8
