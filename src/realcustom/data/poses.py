"""Where and how a cut-out stands in a picture, and warping it there.

A pose is a 3 x 3 matrix from cut-out pixels to picture pixels, built from the identity's proportions (aspect, taper)
and the pose proper (mirror, turn, lean, size, place).
"""

import math
import random
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from realcustom.data.cutouts import Cutout


@dataclass(frozen=True, kw_only=True)
class Pose:
    """flip: mirrored. turn: degrees clockwise. lean: horizontal shear. area: share of the picture, 0..1. x, y: centre
    as a share of the picture's side."""

    flip: bool
    turn: float
    lean: float
    area: float
    x: float
    y: float

    def to_dict(self) -> dict:
        return asdict(self)


def draw_pose(
    rng: random.Random, area: tuple[float, float], *, turn: float, mirrored: float = 0.5,
    centre: tuple[float, float] = (0.5, 0.5), spread: float = 0.5,
) -> Pose:  # fmt: skip
    """A random pose: area range, largest turn in degrees, probability of a mirrored one, centre with a uniform spread
    to either side."""
    return Pose(
        flip=rng.random() < mirrored,
        turn=rng.triangular(-turn, turn, 0.0),
        lean=rng.triangular(-turn, turn, 0.0) / 100,
        area=rng.uniform(*area),
        x=centre[0] + rng.uniform(-spread, spread),
        y=centre[1] + rng.uniform(-spread, spread),
    )


def between(first: Pose, second: Pose, amount: float, rng: random.Random) -> Pose:
    """A pose `amount` (0..1) of the way from the first to the second, and as likely mirrored like the second."""

    def mix(a: float, b: float) -> float:
        return a + (b - a) * amount

    return Pose(
        flip=second.flip if rng.random() < amount else first.flip,
        turn=mix(first.turn, second.turn),
        lean=mix(first.lean, second.lean),
        area=math.exp(mix(math.log(first.area), math.log(second.area))),
        x=mix(first.x, second.x),
        y=mix(first.y, second.y),
    )


def matrix(cutout: Cutout, proportions: tuple[float, float], pose: Pose, side: int, room: float = 0.96) -> np.ndarray:
    """Cut-out pixels to pixels of a picture of `side`, shrunk until the box fits in `room` of it and moved inside."""
    height, width = cutout.alpha.shape
    aspect, taper = math.sqrt(proportions[0]), proportions[1]
    centred = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])
    tapered = np.array([[aspect, 0, 0], [0, 1 / aspect, 0], [0, -taper / height, 1.0]])
    angle = math.radians(pose.turn)
    sine, cosine = math.sin(angle), math.cos(angle)
    scale = side * math.sqrt(pose.area / cutout.area)
    mirrored = -scale if pose.flip else scale
    leaning = np.array([[mirrored, scale * pose.lean, 0], [0, scale, 0], [0, 0, 1.0]])
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    shape = turned @ leaning @ tapered @ centred
    left, top, right, bottom = warped_box(shape, width, height)
    shrink = min(1.0, room * side / max(right - left, bottom - top))
    half_x, half_y = (right - left) * shrink / 2, (bottom - top) * shrink / 2
    x = min(max(pose.x * side, half_x), side - half_x) - (left + right) * shrink / 2
    y = min(max(pose.y * side, half_y), side - half_y) - (top + bottom) * shrink / 2
    return np.array([[shrink, 0, x], [0, shrink, y], [0, 0, 1.0]]) @ shape


def warped_box(transform: np.ndarray, width: float, height: float) -> tuple[float, float, float, float]:
    """Bounding box (left, top, right, bottom) of a warped width x height rectangle."""
    corners = transform @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1.0]])
    x, y = corners[0] / corners[2], corners[1] / corners[2]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def paste(canvas: Image.Image, drawing: Image.Image, transform: np.ndarray) -> Image.Image:
    """Warp an RGBA drawing onto an RGB canvas in place. Returns its alpha as an L picture of the canvas' size."""
    left, top, right, bottom = warped_box(transform, *drawing.size)
    shrink = math.sqrt(abs(np.linalg.det(transform)))
    if shrink < 0.5:
        # Bilinear sampling skips pixels below half size; halve the drawing first.
        across, down = drawing.size
        drawing = drawing.reduce(2)
        transform = transform @ np.diag([across / drawing.width, down / drawing.height, 1.0])
    start = (max(0, math.floor(left)), max(0, math.floor(top)))
    box = (*start, min(canvas.width, math.ceil(right)), min(canvas.height, math.ceil(bottom)))
    alpha = Image.new("L", canvas.size)
    if box[2] <= box[0] or box[3] <= box[1]:
        return alpha
    inverse = np.linalg.inv(transform)
    inverse = inverse @ np.array([[1, 0, box[0]], [0, 1, box[1]], [0, 0, 1.0]])
    coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    shape = (box[2] - box[0], box[3] - box[1])
    warped = drawing.transform(shape, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    cover = warped.getchannel("A")
    canvas.paste(warped, box[:2], cover)
    alpha.paste(cover, box[:2])
    return alpha
