"""Pictures of known identities with their true masks, and square crops of a subject. Needs no torch.

Shapes: H, W picture height and width in pixels, C side of a crop.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from realcustom.data.identity import Identity, paint
from realcustom.data.poses import draw_pose, matrix, paste
from realcustom.data.world import StickerWorld

CROP_SIZE = 64
CELL = 4  # pixels of one cell of the judge's segmentation
SMALLEST = 0.008  # share of the picture below which a subject counts as absent


def view(world: StickerWorld, identity: Identity, rng: random.Random) -> tuple[np.ndarray, np.ndarray, str | None]:
    """A fresh picture of an identity alone, as the world's references are, but with its true mask.

    Returns:
        picture uint8 (H, W, 3), visible area bool (H, W), and the scene, None on a plain background.
    """
    settings = world.settings
    pose = draw_pose(rng, settings.reference_area, turn=settings.turn, mirrored=settings.mirrored, spread=0.08)
    scene = None if rng.random() < settings.plain_reference else rng.choice(settings.scenes)
    if scene is None:
        canvas = world.backdrops.plain(rng, behind_white=identity.shade == "white")
    else:
        canvas = world.backdrops.background(scene, rng)
    cutout = world.cutouts.load(identity.word, identity.cutout)
    transform = matrix(cutout, identity.proportions, pose, settings.reference_size)
    alpha = paste(canvas, Image.fromarray(paint(cutout, identity)), transform)
    return np.asarray(canvas), np.asarray(alpha) > 127, scene


def square(mask: np.ndarray, margin: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a square around a bool (H, W) mask, `margin` of its box wider on each side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = max(bottom - top, right - left) * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    return round(x - half), round(y - half), round(x + half), round(y + half)


def subject_crop(picture: np.ndarray, mask: np.ndarray, margin: float = 0.06) -> np.ndarray:
    """The subject alone in a square around its mask: uint8 (C, C, 4), colours multiplied by the mask, and the mask.

    Args:
        picture: uint8 (H, W, 3).
        mask: bool (H, W), not empty.
        margin: added on each side, as a share of the box.
    """
    layered = np.dstack([picture * mask[..., None], mask.astype(np.uint8) * 255]).astype(np.uint8)
    # Premultiplied ("RGBa"), so that resizing mixes no background into the edge.
    image = Image.frombuffer("RGBa", (mask.shape[1], mask.shape[0]), layered.tobytes(), "raw", "RGBa", 0, 1)
    return np.asarray(image.crop(square(mask, margin)).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BOX))


def surroundings(picture: np.ndarray, mask: np.ndarray, margin: float = 0.2) -> np.ndarray:
    """The subject with what is around it, such as a hat: uint8 (C, C, 4), the picture's colours, and the mask.

    Arguments as of `subject_crop`; what lies outside the picture is black.
    """
    box = square(mask, margin)
    layers = (Image.fromarray(values).crop(box) for values in (picture, mask.astype(np.uint8) * 255))
    return np.dstack([np.asarray(layer.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BOX)) for layer in layers])


def coarse(mask: np.ndarray) -> np.ndarray:
    """Share of every CELL x CELL cell that a bool (H, W) mask covers: float32 (H / CELL, W / CELL)."""
    height, width = mask.shape[0] // CELL, mask.shape[1] // CELL
    return mask.reshape(height, CELL, width, CELL).mean(axis=(1, 3), dtype=np.float32)


def roughened(mask: np.ndarray, rng: random.Random) -> np.ndarray:
    """The mask as a coarse segmentation would give it: bool (H, W); the mask itself where nothing would be left.

    Its edge is moved; sometimes it misses up to a fifth of the subject on one side, or takes in a patch beside it.
    """
    shares = Image.fromarray(coarse(mask)).resize(mask.shape[::-1], Image.Resampling.BILINEAR)
    rough = np.asarray(shares) > rng.uniform(0.2, 0.8)
    rows, columns = np.nonzero(rough)
    if rng.random() < 0.3 and len(rows):
        turn = rng.uniform(0, 2 * np.pi)
        along = np.cos(turn) * np.arange(mask.shape[1]) + np.sin(turn) * np.arange(mask.shape[0])[:, None]
        rough = rough & (along > np.quantile(along[rough], rng.uniform(0, 0.2)))
    if rng.random() < 0.3 and len(rows):
        edge = rng.randrange(len(rows))
        y, x = (np.arange(side) - centre[edge] for side, centre in zip(mask.shape, (rows, columns), strict=True))
        rough = rough | (y[:, None] ** 2 + x**2 < rng.uniform(2, 9) ** 2)
    return rough if rough.any() else mask


def blurred(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """The picture with a little of the blur and noise that autoencoders and generators leave; uint8 (H, W, 3)."""
    image = Image.fromarray(picture)
    kind = rng.random()
    if kind < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    elif kind < 0.5:
        small = rng.randint(image.width // 2, image.width)
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize(picture.shape[1::-1])
    values = np.asarray(image)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(2, 8), values.shape)
        values = np.clip(values + noise, 0, 255).astype(np.uint8)
    return values


def found(lead: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Pixels (H, W) where a subject was seen: bool, or None where too few to count.

    Args:
        lead: float (h, w), above 0 where the subject is more probable than what it is told from.
        size: (W, H).
    """
    mask = np.asarray(Image.fromarray(lead.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0
    return None if mask.mean() < SMALLEST else largest_parts(mask)


def largest_parts(mask: np.ndarray, share: float = 0.2) -> np.ndarray:
    """The mask without connected parts smaller than `share` of its largest part; bool (H, W)."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(sizes >= share * sizes.max()))
