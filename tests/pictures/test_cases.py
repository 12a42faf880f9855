"""The inputs in tests/cases: what each must be read as."""

import builtins
import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from realcustom.batch.jobs import read_jobs
from realcustom.pictures.colour import ADOBE_RGB, D65, SRGB, grey_to_uint8, matrix_profile
from realcustom.pictures.content import pixels_sha256
from realcustom.pictures.masks import mask_picture, open_mask
from realcustom.pictures.opening import accepted_formats, open_image
from realcustom.pictures.png import png_bytes

CASES = Path(__file__).parents[1] / "cases"


def case(name: str) -> str:
    return str(CASES / name)


def pixels(source) -> np.ndarray:
    return np.asarray(open_image(source)).astype(int)


def stored(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("look_*")))
def test_a_look_is_the_same_in_every_profile(name):
    # 8 bits of a wide space are coarser than those of sRGB, ProPhoto's most.
    assert np.abs(pixels(case(name)) - pixels(case("look_srgb.png"))).max() <= (4 if "prophoto" in name else 2)
    raw = np.asarray(Image.open(case(name))).astype(int)
    assert name == "look_srgb.png" or np.abs(raw - pixels(case("look_srgb.png"))).max() > 8, "the case shows nothing"


@pytest.mark.parametrize("name", ["broken_exif.png", "broken_exif.webp", "broken_profile.png"])
def test_whole_pixels_beside_broken_metadata_are_opened(name):
    assert np.array_equal(pixels(case(name)), pixels(case("look_srgb.png")))


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_jpeg_with_a_broken_exif_block_is_opened():
    image = open_image(case("look_srgb.png"))
    whole = pixels(stored(image, "JPEG"))
    for block in (b"Exif\0\0ZZZZ", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"):
        assert np.array_equal(pixels(stored(image, "JPEG", exif=block)), whole)


def test_srgb_changes_no_pixel_however_it_is_said():
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (stored(image, icc_profile=profile), png_bytes(image)):
        assert np.array_equal(np.asarray(open_image(data)), array)
    opened = open_image(stored(image, icc_profile=matrix_profile(ADOBE_RGB, D65, 2.2)))
    assert pixels_sha256(open_image(opened)) == pixels_sha256(opened), "converted once, not again"


def test_alpha_palette_and_grey_have_profiles_too():
    adobe = matrix_profile(ADOBE_RGB, D65, 2.2)
    red = Image.new("RGB", (2, 2), (180, 60, 50))
    expected = pixels(stored(red, icc_profile=adobe))
    assert expected[0, 0, 0] > 195
    opaque = red.copy()
    opaque.putalpha(255)
    for image in (opaque, red.quantize(2)):
        assert np.abs(pixels(stored(image, icc_profile=adobe)) - expected).max() <= 1
    opaque.putalpha(0)
    assert (pixels(stored(opaque, icc_profile=adobe)) == 255).all()
    wide = matrix_profile(ADOBE_RGB, D65, 1.8)
    for profile in (adobe, wide):
        coloured = pixels(stored(Image.new("RGB", (2, 2), (90, 90, 90)), icc_profile=profile))
        assert np.array_equal(pixels(stored(Image.new("L", (2, 2), 90), icc_profile=profile)), coloured)
    assert coloured[0, 0, 0] > 105, "grey is converted by a profile of RGB colours, too"
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (pixels(stored(Image.new("L", (2, 2), 90), icc_profile=grey)) == 90).all(), "of other colours: passed over"


def test_lab_and_cmyk_are_read_by_their_colours():
    lab = Image.new("LAB", (1, 1), (136, 80 + 128, 67 + 128))
    red = open_image(lab).getpixel((0, 0))
    assert red[0] > 240
    assert max(red[1:]) < 30
    assert open_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)


def test_a_png_gamma_and_a_camera_mark_count_where_there_is_no_profile():
    linear = Image.new("RGB", (1, 1), (55, 55, 55))
    linear.info["gamma"] = 1.0
    assert abs(open_image(linear).getpixel((0, 0))[0] - 128) <= 1
    linear.info |= {"gamma": 1 / 2.2, "chromaticity": [*D65, *(number for point in SRGB for number in point)]}
    assert abs(open_image(linear).getpixel((0, 0))[0] - 55) <= 4
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    red = Image.new("RGB", (8, 8), (180, 60, 50))
    marked, plain = pixels(stored(red, "JPEG", exif=exif, quality=100)), pixels(stored(red, "JPEG", quality=100))
    assert (marked - plain)[0, 0, 0] > 15
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    assert np.array_equal(pixels(stored(red, "JPEG", exif=exif, quality=100)), marked)
    exif.get_ifd(0x8769)[0xA001] = 1
    assert np.array_equal(pixels(stored(red, "JPEG", exif=exif, quality=100)), plain)


def test_floats_are_scaled_by_their_range():
    levels = np.asarray(open_image(case("floats_0_to_4.tif")))[0, :, 0]
    assert (levels[0], levels[-1]) == (85, 255)
    levels = np.asarray(open_image(case("floats_-1_to_1.tif")))[0, :, 0]
    assert (levels[0], levels[-1]) == (0, 170)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0.0, 0.5], [0, 128]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 40.0], [0, 40]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([0.0, 50.5, 101.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1.0, np.nan, np.inf, -np.inf], [0, 255, 0, 255, 0]),
        ([np.nan], [0]),
    ],
)
def test_what_is_white_among_floats(values, levels):
    assert grey_to_uint8(np.array([values], dtype=np.float32))[0].tolist() == levels


MASKS = sorted(
    path.name for path in CASES.glob("mask_*") if path.stem not in ("mask_all_black", "mask_nothing_painted")
)


@pytest.mark.parametrize("name", MASKS)
def test_every_way_to_write_the_right_half(name):
    mask = open_mask(case(name))
    assert (mask.dtype, mask.shape) == (np.float32, (24, 24))
    assert np.array_equal(mask, np.tile(np.arange(24) >= 12, (24, 1)))
    assert np.array_equal(open_mask(mask_picture(mask)), mask)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("full", [1, 255, 65535])
def test_arrays_of_every_kind_are_masks(kind, full):
    half = np.zeros((4, 6))
    half[:, 3:] = full
    if full > 1 and (kind is bool or np.array(full).astype(kind) != full):
        return
    half = half.astype(kind)
    for array in (half, half[None], half[..., None], np.repeat(half[..., None], 3, axis=2)):
        assert open_mask(array).tolist() == (half.astype(float) / full).tolist()


def test_alpha_of_an_array_counts():
    paint = np.full((2, 2, 4), 255, dtype=np.uint8)
    paint[0, :, 3] = (0, 51)
    assert np.allclose(open_mask(paint), [[0, 0.2], [1, 1]])


@pytest.mark.parametrize(
    "source",
    [
        case("mask_all_black.png"),
        case("mask_nothing_painted.png"),
        np.zeros((8, 8)),
        np.zeros((8, 8), dtype=bool),
        Image.new("1", (3, 3)),
        np.arange(4).reshape(2, 2),
    ],
)
def test_a_mask_that_leaves_no_place_is_refused(source):
    with pytest.raises(ValueError, match=r"is black(, or nearly so,)? everywhere"):
        open_mask(source)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((2, 2), -1), "from -1 to -1"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.full((2, 2), 1.5), "from 1.5 to 1.5"),
        (np.zeros((2, 2, 2)), "must be"),
        (np.zeros((0, 2)), "2 x 0 pixels"),
        (np.full((2, 2), "a"), "must hold bools"),
    ],
)
def test_arrays_that_are_no_masks(array, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_mask(array)


def test_a_phone_photograph_has_a_sentence_of_its_own(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    accepted_formats.cache_clear()
    with pytest.raises(ValueError, match=r"photo\.heic is a HEIC photograph, which needs: pip install"):
        open_image(case("photo.heic"))


def test_with_the_extra_a_phone_photograph_is_handed_to_pillow(monkeypatch):
    registered = []
    accepted_formats.cache_clear()

    def register():
        registered.append(True)
        monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: None, lambda prefix: False))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    with pytest.raises(ValueError, match=r"photo\.heic is not an image that can be read"):
        open_image(case("photo.heic"))
    assert registered
    accepted_formats.cache_clear()


def test_floating_point_colour_in_a_tiff_has_a_sentence():
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 32), (262, 3, 1, 2), (277, 3, 1, 3), (339, 3, 1, 3)]
    body = b"".join(np.array([a, b], "<u2").tobytes() + np.array([c, d], "<u4").tobytes() for a, b, c, d in tags)
    with pytest.raises(ValueError, match="a TIFF of a kind that cannot be read"):
        open_image(b"II*\0\x08\0\0\0" + bytes([len(tags), 0]) + body + bytes(4))


@pytest.mark.parametrize(("source", "sentence"), [("", "path of an image is empty"), ("https://x/a.png", "is a URL")])
def test_places_that_are_no_files(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_image(source)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("jobs_json_array.json", "is one JSON array"),
        ("jobs_one_object_over_lines.json", "over several lines"),
        ("jobs_list_in_an_object.json", r'is one JSON object with a list "jobs".*jq -c \'\.jobs\[\]\''),
        ("jobs_list_in_an_object_over_lines.json", 'is one JSON object with a list "jobs"'),
    ],
)
def test_jobs_files_that_are_no_lines(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_jobs(case(name))
