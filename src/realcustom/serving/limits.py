"""How much a server takes: bytes, pixels, queue, seconds."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.checks import finite, whole
from realcustom.pictures.opening import TooManyPixels, picture_size


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of a server.

    queue: generations that may wait; one more is refused until there is room again.
    seconds: how long a generation may run before it is stopped.
    upload_bytes: of one HTTP request, whatever it holds.
    pixels: of one uploaded picture.
    pictures: reference pictures of one generation.
    images: images that one generation may ask for.
    days: how long an upload that nothing uses is kept.
    keep_days: how long a finished generation is kept; None for ever.
    connections: that may be open at one time.
    drain: seconds that a generation under way gets to finish when the server is stopped.
    data_bytes: of the whole data folder; once it holds more, uploads and generations are refused. None for no bound.
    """

    queue: int = 32
    seconds: float = 600.0
    upload_bytes: int = 32 * 2**20
    pixels: int = 32 * 2**20
    pictures: int = 16
    images: int = 16
    days: float = 7.0
    keep_days: float | None = None
    data_bytes: int | None = None
    connections: int = 512
    drain: float = 5.0

    def __post_init__(self) -> None:
        for name in ("queue", "upload_bytes", "pixels", "pictures", "images", "connections"):
            whole(f"The limit {name}", getattr(self, name), 1, 2**40)
        finite("The limit days", self.days, 0.0, 1e6)
        finite("The limit drain", self.drain, 0.0, 86400.0)
        if self.keep_days is not None:
            finite("The limit keep_days", self.keep_days, 0.0, 1e6)
        if self.data_bytes is not None:
            whole("The limit data_bytes", self.data_bytes, 1, 2**60)
        if not self.seconds > 0:
            raise ValueError(f"The limit seconds must be above 0, not {self.seconds}.")


class TooLarge(ValueError):
    """Something has more bytes or pixels than the server takes."""


class NoRoom(RuntimeError):
    """The data folder holds as much as it may."""


class Draining(RuntimeError):
    """The server is being stopped and takes no new work."""

    def __init__(self):
        super().__init__("This server is being stopped; try again in a moment.")


class Busy(RuntimeError):
    """There is no room now, for the reason given; there may be again in `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: int):
        super().__init__(f"{reason}; try again in {retry_after} s.")
        self.retry_after = retry_after


def check_pixels(data: bytes, limits: Limits) -> int:
    """How many pixels the header of a picture announces; nothing is decoded.

    Raises:
        TooLarge: more than allowed.
        ValueError: it is no picture of an accepted format.
    """
    try:
        width, height = picture_size(data)
    except TooManyPixels:
        raise TooLarge(f"The picture has more than {limits.pixels / 2**20:g} megapixels, the most here.") from None
    if width * height > limits.pixels:
        raise TooLarge(
            f"The picture is {width} x {height} pixels, more than the {limits.pixels / 2**20:g} megapixels taken here."
        )
    return width * height
