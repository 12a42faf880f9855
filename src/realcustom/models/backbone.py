"""The seam between the method and the network that denoises.

The denoising loop, the adapter and the training say what a pass is made of (`Branch`); a `Backbone` runs it. The loop
knows of no layer, no map size and no kind of attention. `realcustom.models.unet` is the backbone for U-Nets with
cross-attention; a transformer whose text, image and references share one attention fits the same seam.

Shapes: B images, S subjects, T text tokens, (G, g) the mask's grid; latents (B, C, h, w) or whatever the network takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from realcustom.guidance.attention_maps import Size
from realcustom.guidance.recorder import MaskRecorder


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt as the network reads it.

    Attributes:
        embeds: (B, T, c).
        added: what else the network is told, by its own names, each (B, ...): SDXL's `text_embeds` and `time_ids`, a
            transformer's pooled text or distilled guidance value.
    """

    embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """B rows of a pass that see the same kind of things.

    Attributes:
        text: what they read.
        references: what the backbone's adapter made of the references; None: they see none.
        masks: (B, S, G, g), how much each subject's references act at each position; None: 1 everywhere.
        recorder: takes the attention of these rows; only the last branch of a pass may have one.
        control: what else the network is given; the same for all branches of a pass.
    """

    text: Text
    references: Any = None
    masks: torch.Tensor | None = None
    recorder: MaskRecorder | None = None
    control: Any = None


class GuidancePassDone(Exception):
    """Raised inside a network when nothing of the pass is needed any more; caught by the backbone's `predict`."""


class Backbone(Protocol):
    """What the method needs of a network.

    Attributes:
        widths: inner width of every layer that a reference can be attached to, in running order.
        word_levels, self_levels: the levels (0 is the latent's resolution) with attention to text, and with attention
            of the image to itself.
    """

    widths: tuple[int, ...]
    word_levels: frozenset[int]
    self_levels: frozenset[int]

    def installed(self) -> AbstractContextManager[None]:
        """Ready for `predict` while it lasts; the network is given back as it was, whatever happens.

        Raises:
            ValueError: the network is in use by another call.
        """

    def mask_grid(self, latents: torch.Tensor) -> Size:
        """Rows and columns of the mask: those of the largest word map (RealCustom Eq. 11)."""

    def thinned(self, latents: torch.Tensor, stride: int) -> torch.Tensor:
        """The latents with every n-th row and column only, for a cheaper guidance branch."""

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, branches: Sequence[Branch], maps_only: bool = False
    ) -> list[torch.Tensor]:
        """One pass of all branches on the same latents.

        Args:
            latents: as the network takes them.
            timestep: 0-dimensional, or (B,).
            maps_only: nobody reads the prediction: the pass may end once the last branch's recorder has its maps.

        Returns:
            the prediction of each branch, shaped as the latents; nothing with `maps_only`.
        """


def joined(texts: Sequence[Text]) -> Text:
    """Texts one after the other along the batch."""
    if len(texts) == 1:
        return texts[0]
    added = None
    if texts[0].added is not None:
        added = {name: torch.cat([text.added[name] for text in texts]) for name in texts[0].added}
    return Text(embeds=torch.cat([text.embeds for text in texts]), added=added)
