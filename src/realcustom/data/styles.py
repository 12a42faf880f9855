"""Styles that repaint a whole picture, each recognisable at 128 px."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps


def pixel_art(picture: Image.Image) -> Image.Image:
    cells = max(16, picture.width // 4)
    small = picture.resize((cells, cells), Image.Resampling.BOX).point(lambda v: min(255, v // 40 * 40 + 20))
    return small.resize(picture.size, Image.Resampling.NEAREST)


def pencil_sketch(picture: Image.Image) -> Image.Image:
    """Colour dodge of the gray picture by its own blurred negative, over faint tone."""
    gray = picture.convert("L")
    blurred = gray.filter(ImageFilter.GaussianBlur(picture.width / 42))
    values, soft = np.asarray(gray).astype(np.float32), np.asarray(blurred).astype(np.float32)
    lines = np.clip(values / np.maximum(soft, 1) * 252, 0, 255) / 255
    tone = 0.72 + 0.28 * values / 255
    sketch = np.clip(lines**2.2 * tone * 255, 0, 255).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(sketch)] * 3)


def watercolor(picture: Image.Image) -> Image.Image:
    """Soft washes that pool a little at their borders, on pale grained paper."""
    patches = picture.filter(ImageFilter.MedianFilter(5))
    sharp = np.asarray(patches).astype(np.float32)
    soft = np.asarray(patches.filter(ImageFilter.GaussianBlur(picture.width / 64))).astype(np.float32)
    y, x = np.ogrid[0 : picture.height, 0 : picture.width]
    wave = 2 * np.pi / picture.width
    pool = np.sin(3 * wave * x + 2 * np.sin(2 * wave * y)) * np.sin(4 * wave * y + 2 * np.sin(3 * wave * x))
    strength = 0.62 + 0.1 * pool[..., None]
    wash = 255 - (255 - (1.5 * sharp - 0.5 * soft)) * strength
    grain = 3.5 * np.sin(x * 1.9 + 3 * np.sin(y * 0.7)) * np.sin(y * 2.3 + 2 * np.sin(x * 0.5))
    return Image.fromarray(np.clip(wash + grain[..., None], 0, 255).astype(np.uint8))


def neon(picture: Image.Image) -> Image.Image:
    """Edges glow in their own saturated colour on a dark ground."""
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8))).astype(np.float32)
    down = np.abs(np.diff(values, axis=0, append=values[-1:])).max(axis=2)
    across = np.abs(np.diff(values, axis=1, append=values[:, -1:])).max(axis=2)
    edge = np.clip((down + across) / 46 - 0.12, 0, 1)
    line = Image.fromarray((edge * 255).astype(np.uint8))
    halo = np.asarray(line.filter(ImageFilter.GaussianBlur(picture.width / 50))).astype(np.float32) / 255
    low = values.min(axis=2, keepdims=True)
    vivid = (values - low * 0.75) / np.maximum(values.max(axis=2, keepdims=True) - low * 0.75, 1) * 255
    glow = vivid * (edge + 1.1 * halo)[..., None] + values * 0.12 + np.array((8, 4, 26))
    return Image.fromarray(np.clip(glow, 0, 255).astype(np.uint8))


def sepia_photo(picture: Image.Image) -> Image.Image:
    """An old brown photograph with dark corners."""
    gray = np.asarray(picture.convert("L")).astype(np.float32)[..., None]
    y, x = np.ogrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    corners = np.clip(1.12 - 0.3 * (x * x + y * y), 0, 1)[..., None]
    brown = (40 + gray * 0.84) * corners * np.array((1.04, 0.86, 0.62))
    return Image.fromarray(np.clip(brown, 0, 255).astype(np.uint8))


def pop_art(picture: Image.Image) -> Image.Image:
    """Few loud colours and halftone dots in the darks."""
    gray = np.asarray(picture.convert("L")).astype(np.float32)
    bold = np.asarray(ImageOps.posterize(picture, 2)).astype(np.float32)
    mean = bold.mean(axis=2, keepdims=True)
    loud = np.clip(mean + (bold - mean) * 1.9 + 34, 0, 255)
    cell = picture.width / 32
    y, x = np.ogrid[0 : picture.height, 0 : picture.width]
    distance = np.hypot((x % cell) - cell / 2, (y % cell) - cell / 2)
    dots = distance < (1 - gray / 255) * cell * 0.52
    loud[dots] *= 0.35
    return Image.fromarray(loud.astype(np.uint8))


STYLE_PAINTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pixel art": pixel_art,
    "pencil sketch": pencil_sketch,
    "watercolor": watercolor,
    "neon": neon,
    "sepia photo": sepia_photo,
    "pop art": pop_art,
}
