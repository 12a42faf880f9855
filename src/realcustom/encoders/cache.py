"""Reference features by content: the same picture is encoded once, however often it is used."""

from __future__ import annotations

from collections import OrderedDict

import torch

from realcustom.encoders.image import ReferenceFeatures
from realcustom.pictures.content import Picture


class FeatureCache:
    """Features of the last `capacity` reference images of one encoder, and of its all-zero image."""

    def __init__(self, encoder, capacity: int = 32):
        self.encoder = encoder
        self.capacity = capacity
        self._features: OrderedDict[str, ReferenceFeatures] = OrderedDict()

    def image(self, picture: Picture, device: torch.device | None = None) -> ReferenceFeatures:
        """Features (1, n, c) of one picture, computed on `device`; None is the encoder's own."""
        return self._get(picture.sha256, device, lambda: self.encoder.encode([picture.image], device))

    def zero(self, device: torch.device | None = None) -> ReferenceFeatures:
        """Features (1, n, c) of the all-zero image, the negative branch's reference."""
        return self._get("zero", device, lambda: self.encoder.negative(1, device))

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()

    def _get(self, content: str, device: torch.device | None, compute) -> ReferenceFeatures:
        # The encoder may have been moved or cast since: its numbers then differ.
        key = f"{content} {device or self.encoder.device} {self.encoder.dtype}"
        if key in self._features:
            self._features.move_to_end(key)
        else:
            self._features[key] = compute()
            while len(self._features) > self.capacity:
                self._features.popitem(last=False)
        return self._features[key]
