"""What the guidance branch leaves behind: the recorded attention of one pass becomes the mask of each subject.

A backbone hands its layers' queries and keys in while it runs; it knows nothing of masks, and nothing here knows of a
backbone. Shapes: B images, S subjects, T text tokens, H heads, N positions, d channels of a head, (G, g) the mask's
grid.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from realcustom.guidance.attention_maps import SelfMaps, Size, WordMaps, check_levels
from realcustom.guidance.mask import MaskSettings, guidance_mask


class MaskRecorder:
    """Records the attention of a pass's last B images, which see the text only, and makes their masks of it.

    Attributes:
        words: the target words' maps; a layer adds its query and key as it runs.
        self_levels: levels whose image-to-image attention is wanted; empty for none.
    """

    def __init__(
        self,
        token_weights: torch.Tensor,
        grid: Size,
        settings: MaskSettings,
        regions: torch.Tensor | None = None,
        levels: tuple[Collection[int], Collection[int]] = ((), ()),
    ):
        """
        Args:
            token_weights: (B, S, T), 1 at target tokens.
            grid: rows and columns of the mask; the pass's own may be smaller.
            regions: (B or 1, S, G, g), where each subject may be; None for anywhere.
            levels: the backbone's levels with attention to text, and with attention of the image to itself.

        Raises:
            ValueError: no layer lies on the settings' levels.
        """
        word_levels, self_levels = levels
        spread_levels = settings.spread_levels or (min(self_levels),)
        check_levels(settings.word_levels, word_levels, "cross")
        check_levels(spread_levels, self_levels, "self")
        self.settings, self.regions = settings, regions
        self.self_levels = frozenset(spread_levels) if settings.spread else frozenset()
        self.words = WordMaps(token_weights, grid, settings.normalisation.layer, levels=settings.word_levels)
        self._selves = SelfMaps(self.self_levels)

    def add_self(self, query: torch.Tensor, key: torch.Tensor, scale: float, size: Size, level: int) -> None:
        """Take the image's attention to itself in one layer: query and key (., H, N, d), its h x w and its level."""
        images = self.words.token_weights.shape[0]
        self._selves.add(query[-images:], key[-images:], scale, size, level)

    def masks(self) -> torch.Tensor:
        """(B, S, G, g) in [0, 1], once the pass is done."""
        spread = self._selves.spread if self.self_levels else None
        return guidance_mask(self.words.mean(), self.settings, spread, self.regions)
