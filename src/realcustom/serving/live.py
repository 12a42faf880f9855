"""How far a generation is, from the thread that makes it to those who watch."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from realcustom.serving.tracing import Origin
from realcustom.types import Progress

PREVIEW_SIDE = 320  # pixels; a preview is looked at for half a second


class Live:
    """One unfinished generation.

    Attributes:
        version: grows with every change.
        step, steps: denoising steps done and in all; (0, 0) before the first.
        preview: the image as it is now, at most PREVIEW_SIDE pixels a side, or None.
        masks: word -> mask (h, w) in [0, 1] as it is now.
        origin: the request that it came with, or None. owner: name of its token. order: among what waits.
        reason: why it is to be stopped, or None; `by_user` tells a wish from a limit.
    """

    def __init__(self, origin: Origin | None = None, owner: str = "", order: float = 0.0):
        self.origin, self.owner, self.order = origin, owner, order
        self.version = 0
        self.step = self.steps = 0
        self.preview: Image.Image | None = None
        self.masks: Mapping[str, np.ndarray] = {}
        self.reason: str | None = None
        self.by_user = False
        self.watchers = 0
        self.finished = threading.Event()
        self._deadline: float | None = None
        self._limit = 0.0
        self._previewed = float("-inf")

    def begin(self, seconds: float) -> None:
        """The time of the generation runs from now."""
        self._limit, self._deadline = seconds, time.monotonic() + seconds
        self.version += 1

    def stop(self, reason: str) -> None:
        """Someone wants it to end."""
        self.reason, self.by_user = reason, True

    def must_stop(self) -> bool:
        """Whether it is to end after this step."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = f"It took longer than the {self._limit:g} s that a generation may take here."
        return self.reason is not None

    def report(self, progress: Progress, decode: Callable[[Any], list[Image.Image]], pause: float) -> None:
        """A step is done; preview and mask are made only for watchers, and not more often than every `pause` s."""
        now = time.monotonic()
        if self.watchers and now - self._previewed >= pause:
            self._previewed = now
            masks = progress.masks or {}
            self.masks = {word: np.asarray(mask[0].detach().float().cpu()) for word, mask in masks.items()}
            if progress.latents is not None:
                preview = decode(progress.latents[:1])[0]
                preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
                self.preview = preview
        self.step, self.steps = progress.step, progress.steps
        self.version += 1

    def finish(self) -> None:
        """It has ended, one way or another."""
        self.version += 1
        self.finished.set()


def data_url(image: Image.Image, kind: str = "JPEG") -> str:
    """A picture inside a line of text."""
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def mask_url(mask: np.ndarray) -> str:
    """A mask (h, w) in [0, 1] as an 8-bit grey PNG of its own size."""
    return data_url(Image.fromarray(np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)), "PNG")
