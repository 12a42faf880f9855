"""From any colours to sRGB: colour profiles, CMYK, alpha, and grey of more than 8 bits. Needs Pillow and numpy only."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

PROFILED = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # Pillow's mode -> ICC's colour space
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # chromaticities of the primaries, ITU-R BT.709
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))  # as sRGB but for its green; gamma 563 / 256
D65, D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)
# The cone responses of Lam's and Bradford's adaptation to another white (ICC.1:2022, annex E).
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture of any Pillow mode as sRGB, mode RGB, without anything of its `info`; alpha is laid over white.

    Colours are read by the embedded ICC profile, a camera's mark of Adobe RGB, or a PNG's cHRM and gAMA, else they are
    sRGB already; CMYK without a profile is converted by Pillow's formula. Grey with a profile of RGB colours is their
    grey. A profile that cannot be read, or is one of another kind of colours, is passed over, as viewers do. One that
    moves no colour by more than a level is sRGB, and no pixel changes.
    """
    profile = _profile_of(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(grey_to_uint8(np.asarray(image)))
    alpha = None
    if image.has_transparency_data:
        colours = "L" if image.mode in ("LA", "La") else "RGB"
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert(colours)
    elif image.mode not in PROFILED:
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = _through(profile, image).convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    plain = Image.new("RGB", image.size)
    plain.paste(image)
    return plain


def grey_to_uint8(grey: np.ndarray) -> np.ndarray:
    """Grey with more than 8 bits (Pillow's I;16, I and F modes) to 8 bit.

    Pillow's own conversion clips at 255, which turns nearly every 16-bit picture white. What the I and F modes do not
    say is judged by the values: floats within [0, 1] are as they are; whole numbers are of 8 or 16 bits, whichever
    holds the largest; any others are scaled, their largest (at least 1) to white, and black is 0 or, where there are
    negative values, the smallest. NaN is black, infinity white.
    """
    if grey.dtype.kind != "f" and grey.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    else:
        grey = grey.astype(np.float64)
        known = grey[np.isfinite(grey)]
        low, high = value_range(known) if known.size else (0.0, 1.0)
        grey = np.nan_to_num(grey, nan=low, posinf=high, neginf=low)
    return np.rint(np.clip((grey - low) / (high - low), 0.0, 1.0) * 255).astype(np.uint8)


def value_range(values: np.ndarray) -> tuple[float, float]:
    """What is black and what is white among finite values, see `grey_to_uint8`."""
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    if low == 0.0 and 1.0 < high <= 65535.0 and (values == np.rint(values)).all():
        high = 255.0 if high <= 255.0 else 65535.0
    return low, high


def matrix_profile(primaries: Sequence[tuple[float, float]], white: tuple[float, float], gamma: float) -> bytes:
    """An ICC profile (version 2, three primaries and a gamma) from CIE 1931 chromaticities.

    Args:
        primaries: (x, y) of red, green and blue.
        white: (x, y) of equal parts of the three.
        gamma: linear light is a value in [0, 1] to this power.

    Raises:
        ValueError: the numbers are no colour space.
    """
    columns = np.array([(x / y, 1.0, (1.0 - x - y) / y) for x, y in primaries]).T
    white_xyz = np.array([white[0] / white[1], 1.0, (1.0 - white[0] - white[1]) / white[1]])
    try:
        columns = columns * np.linalg.solve(columns, white_xyz)
    except np.linalg.LinAlgError as error:
        raise ValueError("These primaries span no colours.") from error
    gains = (BRADFORD @ D50) / (BRADFORD @ white_xyz)
    columns = np.linalg.solve(BRADFORD, gains[:, None] * (BRADFORD @ columns))
    tags = [(name, _xyz(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)]
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + struct.pack(">II", 0, 7) + b"matrix\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags += [(b"wtpt", _xyz(D50)), (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve), (b"desc", text)]
    start, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + _xyz(D50)[8:] + bytes(48) + table + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of a picture's colours, or None for sRGB."""
    if image.info.get("icc_profile"):
        return bytes(image.info["icc_profile"])
    if image.info.get("exif") and _is_camera_adobe_rgb(image):
        return matrix_profile(ADOBE_RGB, D65, 563 / 256)
    gamma, chromaticity = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or (gamma is None and chromaticity is None):
        return None
    try:
        points = [(float(x), float(y)) for x, y in zip(chromaticity[::2], chromaticity[1::2], strict=True)]
    except (TypeError, ValueError):
        points = [D65, *SRGB]
    try:
        # Without gAMA the primaries alone count; 2.2 is the nearest power to sRGB's curve.
        return matrix_profile(points[1:], points[0], 1.0 / float(gamma) if gamma else 2.2)
    except (ValueError, ArithmeticError, TypeError, struct.error):
        return None


def _is_camera_adobe_rgb(image: Image.Image) -> bool:
    """Whether a camera says so, without a profile: colour space 2, which is in no standard but written by many, or
    "uncalibrated" with the interoperability index "R03" (DCF 2.0)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Pillow, about the block
            exif = image.getexif()
            space = exif.get_ifd(0x8769).get(0xA001)
            return space == 2 or (space == 0xFFFF and str(exif.get_ifd(0xA005).get(1))[:3] == "R03")
    except Exception:  # damaged blocks raise many types
        return False


def _through(profile: bytes | None, image: Image.Image) -> Image.Image:
    """The image from its profile's colours to sRGB; LAB is its own profile."""
    if profile is None and image.mode != "LAB":
        return image
    try:
        space = PROFILED[image.mode]
        source = (
            ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        )
        if image.mode == "L" and source.xcolor_space.strip() == "RGB":
            image, space = image.convert("RGB"), "RGB"
        if source.xcolor_space.strip() != space:
            return image
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if image.mode in ("RGB", "L") and _moves_nothing(transform, image.mode):
            return image
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    probe = Image.fromarray(probe) if mode == "RGB" else Image.fromarray(levels[None])
    moved = np.asarray(ImageCms.applyTransform(probe, transform), dtype=np.int16)
    return np.abs(moved - np.asarray(probe.convert("RGB"), dtype=np.int16)).max() <= 1
