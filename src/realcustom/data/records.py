"""One training or evaluation example with its known truth.

Shape letters: S subjects (target words), H, W picture height and width in pixels.
"""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Record:
    """A picture, what is said about it, and one reference picture per target word.

    image: uint8 (H, W, 3), sRGB.
    caption: one line of text that is true of the picture.
    words: S target words exactly as they stand in the caption.
    references: S uint8 arrays (h, w, 3); references[i] shows the identity behind words[i].
    masks: bool (S, H, W), the visible area of each subject; accessories worn inside the silhouette count as subject.
    others: bool (K, H, W), the visible areas of what else was drawn on the scene, a companion or an accessory; None
        where it is not known.
    attributes: plain JSON values: scene, style, identities, colours, accessory, companion, poses, ...
    """

    image: np.ndarray
    caption: str
    words: tuple[str, ...]
    references: tuple[np.ndarray, ...]
    masks: np.ndarray
    others: np.ndarray | None = None
    attributes: dict = field(default_factory=dict)


def reconstruction(record: Record) -> Record:
    """The same record with its own picture as every reference (the curriculum's first stage)."""
    return replace(
        record,
        references=tuple(record.image for _ in record.words),
        attributes={**record.attributes, "reconstruction": True},
    )
