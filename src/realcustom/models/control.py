"""ControlNets (Zhang et al. 2023): pictures that say where outlines, depth or poses are, added to a U-Net's pass.

Every branch of a pass is under the same control, the guidance branch too, so that the mask follows the outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from realcustom.models.backbone import Text

# What a U-Net and a ControlNet of one family have in common, so that the residuals fit.
SHAPE = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")


def same_family(network, unet) -> bool:
    """Whether a ControlNet was made for U-Nets of this shape; what such a U-Net reads behind the latents is free."""
    shapes = [[str(_listed(config[name])) for name in SHAPE] for config in (network.config, unet.config)]
    return shapes[0] == shapes[1] and network.config.in_channels == unet.config.out_channels


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class Control:
    """One or several ControlNets with their pictures.

    Attributes:
        networks: ControlNetModel of the U-Net's family.
        pictures: of each network (1 or B, 3, H, W) in [0, 1].
        scales: factor of each network's residuals.
        spans: (start, end) of each network, shares of the run from 0 to 1.
        pixels_per_cell: of the latents, for passes on thinned ones.
    """

    networks: Sequence[Any]
    pictures: Sequence[torch.Tensor]
    scales: Sequence[float]
    spans: Sequence[tuple[float, float]]
    pixels_per_cell: int

    def at(self, index: int, evaluations: int) -> Control | None:
        """What acts at a network evaluation (0-based); None where nothing does."""
        acting = [
            place
            for place, (start, end) in enumerate(self.spans)
            if index / evaluations >= start and (index + 1) / evaluations <= end
        ]
        if not acting:
            return None
        names = ("networks", "pictures", "scales", "spans")
        return replace(self, **{name: [getattr(self, name)[place] for place in acting] for name in names})

    def residuals(self, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> dict[str, Any]:
        """What the U-Net is given besides, by its own names.

        latents: (B, C, h, w) as the U-Net takes them; ControlNets do not see what an inpainting network reads behind.
        """
        size = [side * self.pixels_per_cell for side in latents.shape[-2:]]
        down: tuple = ()
        middle = None
        for network, picture, scale in zip(self.networks, self.pictures, self.scales, strict=True):
            if list(picture.shape[-2:]) != size:
                picture = F.interpolate(picture, size=size, mode="bilinear", antialias=True)
            sums, last = network(
                latents[:, : network.config.in_channels],
                timestep,
                encoder_hidden_states=text.embeds,
                controlnet_cond=picture.repeat(len(latents) // len(picture), 1, 1, 1),
                conditioning_scale=scale,
                added_cond_kwargs=text.added,
                return_dict=False,
            )
            down = tuple(one + other for one, other in zip(down, sums, strict=True)) if down else tuple(sums)
            middle = last if middle is None else middle + last
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
