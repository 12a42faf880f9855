"""The log of a run: one JSON object a line, and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom.pictures.png import write_whole


class JsonLines:
    """`log.jsonl`: step, loss, metrics, learning rate, samples, samples per second and the wall clock in seconds.

    Lines of steps that a resumed run does again are removed when it starts, so the file is one curve.
    """

    def __init__(self, path: Path, enabled: bool = True):
        self.path = path
        self.enabled = enabled

    def start(self, step: int) -> None:
        """Keep what was logged up to `step`."""
        if not self.enabled:
            return
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode("ascii"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        if not self.enabled:
            return
        with self.path.open("a", encoding="ascii") as file:
            file.write(json.dumps({"step": step, **values, "time": round(time.time(), 2)}) + "\n")


def read_log(path: Path) -> list[dict]:
    """All whole lines of a log; the last one may have been cut by a kill."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="ascii").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) array as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(picture)).save(path)


def grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3) side by side, row by row; missing places stay white."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, channels), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = picture
    return canvas
