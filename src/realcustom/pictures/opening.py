"""Opening pictures of any kind as plain sRGB, and refusing what is none. Needs Pillow and numpy only."""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from realcustom.pictures.colour import to_srgb

MAX_PIXELS = 64 * 2**20  # 64 megapixels (8192 x 8192), 192 MiB as RGB
# Read by Pillow without decoding anything on opening, and without another program. ICO and ICNS decode before their
# size is known, EPS runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


class TooManyPixels(ValueError):
    """A header announces so many pixels that nothing more is asked of the file."""


ImageSource: TypeAlias = "str | os.PathLike | bytes | Image.Image | np.ndarray"

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
ORIENTATION = 274  # EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource) -> Image.Image:
    """Open a file path, the bytes of a file, a PIL image or an array as an upright sRGB image.

    Colours are converted by `realcustom.pictures.colour.to_srgb` (profiles, transparency over white, more than 8 bits),
    EXIF rotation is applied, animations give their first frame. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4):
    uint8, uint16, bool, or floats in [0, 1]. The size is checked before any pixel is decoded.

    Raises:
        ValueError: one sentence naming the source, where it is missing, empty, not a bitmap, broken, without pixels,
            or larger than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    image, name = open_as_stored(source)
    try:
        with DECODING.take(image.width * image.height):
            return to_srgb(image)
    except Exception as error:  # lazy decoders raise many types
        raise ValueError(f"{name} is damaged or cut off: {_reason(error)}.") from error


def open_as_stored(source: str | os.PathLike | bytes | Image.Image) -> tuple[Image.Image, str]:
    """The upright, decoded image in the mode it is stored in, and what to call it in a sentence.

    Raises:
        ValueError: as `open_image`.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the given image"), "the given image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "the given image data"), "the given image data"
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source)), str(source)
    raise ValueError(f"An image must be a path, bytes, a PIL image or an array, not {type(source).__name__}.")


@lru_cache(maxsize=1)
def accepted_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened; HEIC, of phones, where `pillow_heif` is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that the header of a file announces; nothing is decoded.

    Raises:
        TooManyPixels: far more than `MAX_PIXELS`.
        ValueError: its header cannot be read, or it is of no accepted format.
    """
    with _opened(data, "the given image data") as image:
        return image.size


class DecodingRoom:
    """How many pixels may be decoded at the same time in this process; others wait. A picture takes about 16 bytes a
    pixel while it is turned into plain RGB, so that a few large ones at once would take all memory."""

    def __init__(self, pixels: int):
        self.pixels = self._free = pixels
        self._changed = threading.Condition()
        self._holder = threading.local()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Hold room for a picture; a thread that holds some takes no more."""
        if getattr(self._holder, "holds", False):
            yield
            return
        pixels = min(pixels, self.pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        self._holder.holds = True
        try:
            yield
        finally:
            self._holder.holds = False
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


DECODING = DecodingRoom(MAX_PIXELS)


def _from_file(place: str) -> Image.Image:
    if not place.strip():
        raise ValueError("The path of an image is empty.")
    if "://" in place:
        raise ValueError(f"{place} is a URL, not a file: download it first.")
    path = Path(place)
    try:
        if not path.exists():
            raise ValueError(f"There is no file {path}.")
        if not path.is_file():
            raise ValueError(f"{path} is not a file.")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    return _from_bytes(data, str(path))


def _from_bytes(data: bytes, name: str) -> Image.Image:
    with _opened(data, name) as image, DECODING.take(image.width * image.height):
        return _decoded(image, name)


def _opened(data: bytes, name: str) -> Image.Image:
    """A picture whose header was read; ValueError where there is none."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        _check_heif(name)
    try:
        # Pillow's own, larger limit warns or raises while opening; ours below is the one that counts.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # about metadata that cannot be read
            return Image.open(io.BytesIO(data), formats=accepted_formats())
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name} has more than {MAX_PIXELS // 2**20} megapixels.") from error
    except UnidentifiedImageError as error:
        if _looks_like_svg(data):
            raise ValueError(f"{name} is an SVG drawing; export it as PNG first.") from error
        if data[:4] in (b"II*\0", b"MM\0*"):
            raise ValueError(
                f"{name} is a TIFF of a kind that cannot be read, such as floating-point colour; save it with 8 or 16 "
                "bits a channel."
            ) from error
        raise ValueError(f"{name} is not an image that can be read.") from error
    except Exception as error:  # broken headers raise many types: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name} is damaged: {_reason(error)}.") from error


def _looks_like_svg(data: bytes) -> bool:
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<?xml", b"<svg", b"<!doctype svg", b"<!--")) and b"<svg" in head


def _decoded(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is {width} x {height} pixels, more than {MAX_PIXELS // 2**20} megapixels.")
    try:
        # Not asked for the number of frames, which some formats know only by reading them all.
        if image.tell():
            image.seek(0)
        image.load()
        return _upright(image)
    except Exception as error:  # decoders raise many types on truncated or damaged data
        raise ValueError(f"{name} is damaged or cut off: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".").splitlines()[0]


def _check_heif(name: str) -> None:
    """The format of most phones is read by a package of its own."""
    if "HEIF" not in accepted_formats():
        raise ValueError(
            f"{name} is a HEIC photograph, which needs: pip install 'realcustom[heic]'; or export it as JPEG."
        )


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF says; a block that cannot be read turns nothing, since the pixels are whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Pillow, about the block
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged blocks raise many types
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}.")
    height, width = array.shape[:2]
    if height < 1 or width < 1:
        raise ValueError(f"The given image array has no pixels ({width} x {height}).")
    if height * width > MAX_PIXELS:
        raise ValueError(f"The given image array is {width} x {height} pixels, more than 64 megapixels.")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = np.rint(array / 257.0).astype(np.uint8)
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
            raise ValueError("An image array of floats must lie in [0, 1].")
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"An image array must be uint8, uint16, bool or float, not {array.dtype}.")
    return to_srgb(Image.fromarray(np.ascontiguousarray(array)))
