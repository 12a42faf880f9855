"""Opening pictures of any kind: what comes out, and what is refused and how."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from realcustom.pictures.opening import open_image


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(height=4, width=6):
    return np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)


def test_path_bytes_image_and_array_agree(tmp_path):
    array = gradient()
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), array):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), array)


def test_the_result_is_a_copy():
    image = Image.fromarray(gradient())
    open_image(image).putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (0, 3, 7)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_laid_over_white(form):
    image = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    data = saved(image, form, lossless=True) if form == "WEBP" else saved(image, form)
    out = open_image(data)
    assert out.getpixel((0, 0)) == (255, 255, 255)
    assert out.getpixel((1, 0)) == (200, 0, 0)
    assert out.getpixel((2, 0)) == (204, 204, 204)


def test_grey_with_alpha():
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (10, 255))
    out = open_image(saved(image, "PNG"))
    assert [out.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 10, 10)]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for options, first in (({}, (255, 0, 0)), ({"transparency": 0}, (255, 255, 255))):
        out = open_image(saved(image, "PNG", **options))
        assert [out.getpixel((x, 0)) for x in (0, 1)] == [first, (0, 0, 255)]


def test_rgb_png_with_a_transparent_colour():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    out = open_image(saved(image, "PNG", transparency=(1, 2, 3)))
    assert [out.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (4, 5, 6)]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(form):
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    out = open_image(saved(Image.fromarray(grey), form))
    assert [out.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_dark_16_bit_grey_stays_dark():
    out = open_image(saved(Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)), "PNG"))
    assert out.getpixel((0, 0)) == (1, 1, 1)


def test_float_and_one_bit_images():
    grey = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert [open_image(Image.fromarray(grey)).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert [open_image(saved(bits, "PNG")).getpixel((x, 0))[0] for x in range(2)] == [0, 255]


def test_cmyk_and_ycbcr():
    assert open_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    cmyk = open_image(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert cmyk.mode == "RGB"
    assert min(cmyk.getpixel((0, 0))) > 250
    assert open_image(Image.new("RGB", (4, 4), (10, 200, 30)).convert("YCbCr")).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # white top left quarter
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = np.transpose(upright, (1, 0, 2))
    stored |= {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(stored[orientation])), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data)), upright)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)
    image = Image.open(io.BytesIO(data))
    image.seek(2)
    assert open_image(image).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 3), 65535, np.uint16), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5), (128, 128, 128)),
        (np.ones((2, 3), bool), (255, 255, 255)),
        (np.zeros((2, 3, 4), np.uint8), (255, 255, 255)),
    ],
)
def test_arrays(array, expected):
    image = open_image(array)
    assert image.size == (3, 2)
    assert image.getpixel((0, 0)) == expected


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 3, 3), np.uint8), "no pixels"),
        (np.zeros((2, 3, 2), np.uint8), "must be"),
        (np.zeros(5, np.uint8), "must be"),
        (np.full((2, 2), 1.5), r"\[0, 1\]"),
        (np.full((2, 2), np.nan), r"\[0, 1\]"),
        (np.zeros((2, 2), np.int64), "uint8"),
        (np.zeros((1, 1), object), "uint8"),
    ],
)
def test_arrays_refused(array, words):
    with pytest.raises(ValueError, match=words):
        open_image(array)


def png_header(width, height):
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BROKEN = {
    "empty.png": (b"", "empty"),
    "text.png": (b"this is no image at all", "not an image"),
    "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "plain.svg": (b'  <svg width="10" height="10"></svg>', "SVG"),
    "cut.png": (saved(Image.fromarray(NOISE), "PNG")[:3000], "damaged"),
    "cut.jpg": (saved(Image.fromarray(NOISE), "JPEG")[:900], "damaged"),
    "cut.webp": (saved(Image.fromarray(NOISE), "WEBP")[:300], "damaged|not an image"),
    "head.png": (saved(Image.fromarray(NOISE), "PNG")[:20], "damaged|not an image"),
    "huge.png": (png_header(30000, 30000), "megapixels"),
    "large.png": (png_header(8192, 8193), "8192 x 8193 pixels, more than 64 megapixels"),
    "flat.png": (png_header(0, 5), "pixels|not an image|damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_in_one_sentence_that_names_the_file(tmp_path, name):
    data, words = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        open_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*rex\.png\."):
        open_image(tmp_path / "rex.png")
    with pytest.raises(ValueError, match="is not a file"):
        open_image(tmp_path)


def test_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="megapixels"):
        open_image(png_header(20000, 8000))


def test_64_megapixels_are_allowed():
    assert open_image(Image.new("1", (8192, 8192))).size == (8192, 8192)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="not int"):
        open_image(3)


def test_bytes_are_named_as_data():
    with pytest.raises(ValueError, match="given image data is not an image"):
        open_image(b"abc")
