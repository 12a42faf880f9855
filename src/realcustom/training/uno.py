"""UNO's training objective: the velocity of the target's latents, with the references' clean latents beside it.

Shapes: B samples, C latent channels, (h, w) the target's latents, N tokens, D = 4 * C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from realcustom.models.flow import flow_times, image_tokens, interpolated, shift_exponent
from realcustom.models.uno import Place, diagonal, grid_ids, pack, patch_grid, reference_tokens, velocity

TABLE_STEPS = 999  # the release draws among 1000 times
TRAINING_GUIDANCE = 1.0  # what the release tells a distilled transformer while it trains; it samples with 4


@dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """What one step of UNO's training reads.

    Attributes:
        latents: (B, C, h, w) of the targets.
        references: per slot (B, C, h', w'), clean.
        text: (B, T, c).
        pooled: (B, c') pooled text.
    """

    latents: torch.Tensor
    references: Sequence[torch.Tensor] = field(default_factory=tuple)
    text: torch.Tensor
    pooled: torch.Tensor


def time_table(resolution: int) -> torch.Tensor:
    """(1000,) times from 1 to 0, shifted by the true number of tokens of a square image of that side in pixels."""
    return flow_times(TABLE_STEPS, shift_exponent(image_tokens(resolution, resolution)))


def draw_times(table: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) of the table's times, all equally likely."""
    index = torch.randint(len(table), (count,), generator=generator, device=generator.device)
    return table[index.to(table.device)]


def guidance_condition(transformer, count: int, device: torch.device) -> dict[str, Any]:
    """`guidance` of a distilled transformer in training; nothing for one without."""
    if not transformer.config.guidance_embeds:
        return {}
    return {"guidance": torch.full((count,), TRAINING_GUIDANCE, device=device)}


def flow_prediction(
    transformer, batch: FlowBatch, noise: torch.Tensor, times: torch.Tensor, place: Place = diagonal
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted velocity and the true one, noise minus image, both (B, N, D).

    Args:
        noise: (B, N, D).
        times: (B,).
        place: where the references stand.
    """
    grid, image = patch_grid(batch.latents), pack(batch.latents)
    conditions: Mapping[str, Any] = {
        "pooled_projections": batch.pooled,
        **guidance_condition(transformer, len(image), image.device),
    }
    prediction = velocity(
        transformer,
        interpolated(image, noise, times).to(image.dtype),
        grid_ids(grid, device=image.device),
        times.to(image.dtype),
        batch.text,
        conditions,
        reference_tokens(batch.references, grid, place),
    )
    return prediction, noise - image


def flow_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Plain mean squared error in float32."""
    return F.mse_loss(prediction.float(), target.float())
