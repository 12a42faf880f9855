"""Training the adapter: the base model frozen, all words of the caption, no mask (train-inference decoupling).

The reference enters every cross-attention layer. Where the reference encoders have pretrained weights they stay frozen;
the miniature's small ones come from `realcustom.training.appearance`, and are frozen too or trained on.
Shapes: B samples, n visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from realcustom.hub.settings import AdapterSettings
from realcustom.models.attention import VisualKeysValues
from realcustom.models.backbone import Backbone, Branch, Text
from realcustom.models.scoring import KEEP_IN_TRAINING

from .conditions import encode_text, latents_of
from .config import Batch, Modules
from .curriculum import Chooser
from .latents import LatentCache
from .objective import (
    DrawTimesteps,
    Noised,
    add_noise,
    drop_conditions,
    error_areas,
    min_snr_weights,
    pooled_error,
    subject_offset,
    uniform_timesteps,
    weighted_error,
)

TRAINED = AdapterSettings(origin="trained with realcustom train")


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Shares of the samples, which exclude each other, that lose the text, the reference, or both."""

    text: float = 0.05
    reference: float = 0.05
    both: float = 0.05


@dataclass(frozen=True, kw_only=True)
class AdapterLoss:
    """The adapter's objective: (modules, batch, generator) -> (loss, metrics).

    modules: unet, text encoder(s) and, without cached latents, vae frozen; adapter trained; reference_encoder either.
    batch: latents (B, C, h, w) or pixels uint8 (B, 3, H, W); tokens (B, T); references uint8 (B, 3, H', W');
        with `outside` below 1, `pooled` or `offset` also subjects (B, h, w), above 0 where the references' subjects
        are.

    backbone: of the U-Net. It stays installed between the steps, because gradient checkpointing runs the U-Net once
        more in the backward pass.
    scheduler: its configuration decides noise schedule and prediction type.
    empty_tokens: (T,) of the empty caption.
    encode: (modules, tokens, batch) -> Text.
    keep: range of gamma_num for RealCustom's scoring module, drawn once for a batch.
    draw: of the timesteps.
    outside: weight of the error outside the reference's subject, 0 to 1. What is there tells nothing of the reference:
        its error is noise in the adapter's gradient, and the guidance mask keeps the reference away from it anyway.
    pooled: (cells, weight) pairs: so much of the error within the subject averaged over blocks of so many cells is
        added, see `pooled_error`. It says more of a subject's colours than the error of its single cells.
    offset: spread of an offset of the noise within the subjects, see `subject_offset`; 0 for none.
    presence: factor of the references' part in every layer. The guidance mask's scores are below 1 also inside the
        subject: an adapter that is trained at their mean, not at 1, is not too weak behind the mask.
    """

    backbone: Backbone
    scheduler: object
    empty_tokens: Tensor
    encode: Callable[[Modules, Tensor, Batch], Text] = encode_text
    dropout: Dropout = field(default_factory=Dropout)
    min_snr: float | None = None
    keep: tuple[float, float] = KEEP_IN_TRAINING
    draw: DrawTimesteps = uniform_timesteps
    outside: float = 1.0
    pooled: Sequence[tuple[int, float]] = ()
    offset: float = 0.0
    presence: float = 1.0

    def __call__(self, modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        latents = latents_of(modules, batch, generator)
        shares = {"text": self.dropout.text, "reference": self.dropout.reference, "both": self.dropout.both}
        lost_text, lost_reference = drop_conditions(len(batch["tokens"]), **shares, generator=generator)
        offset = None
        if self.offset:
            # Without a reference nobody could know the colour: there the noisy latents are to be believed.
            known = rearrange(~lost_reference, "b -> b 1 1 1")
            offset = known * subject_offset(batch, latents.shape[1], self.offset, generator)
        noised = add_noise(latents, self.scheduler, generator, self.draw, offset)
        tokens = torch.where(lost_text[:, None], self.empty_tokens.to(lost_text.device), batch["tokens"])
        text = self.encode(modules, tokens, batch)
        visual = self._visual_tokens(modules, batch["references"], lost_reference, text, noised, generator)
        references = [
            (rearrange(keys, "b n c -> b 1 n c"), rearrange(self.presence * values, "b n c -> b 1 n c"))
            for keys, values in modules["adapter"].keys_values(visual)
        ]
        branch = Branch(text=text, references=VisualKeysValues(references))
        (prediction,) = self.backbone.predict(noised.latents, noised.timesteps, [branch])
        weights = min_snr_weights(noised.alpha_bar, self.scheduler.config.prediction_type, self.min_snr)
        loss = weighted_error(prediction, noised.target, weights, error_areas(batch, "subjects", self.outside))
        for cells, weight in self.pooled:
            loss = loss + weight * pooled_error(prediction, noised.target, weights, batch, cells)
        return loss, {"mse": weighted_error(prediction, noised.target, torch.ones_like(weights)).detach()}

    def _visual_tokens(
        self, modules: Modules, references: Tensor, lost: Tensor, text: Text, noised: Noised, generator: torch.Generator
    ) -> Tensor:
        """Visual tokens (B, n, d); with a scoring module a random share. A lost reference is the black image."""
        adapter, encoder = modules["adapter"], modules["reference_encoder"]
        pixels = squash(references, encoder.pixel_size).masked_fill(lost[:, None, None, None], 0.0)
        visual = adapter.tokens(encoder(pixels))
        if adapter.scoring is None:
            return visual
        low, high = self.keep
        keep = low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))
        visual, _ = adapter.scoring(visual, text.embeds, noised.latents, None, noised.alpha_bar, keep)
        return visual


def squash(references: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) to float (B, 3, size, size) in [0, 1], bilinear."""
    pixels = references.float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return pixels


class CurriculumCache:
    """An endless source over a latent cache with references; the curriculum picks a position's record and reference."""

    size = None

    def __init__(self, cache: LatentCache, chooser: Chooser):
        self.cache = cache
        self.chooser = chooser

    def batch(self, positions: np.ndarray) -> dict[str, Tensor]:
        """latents, tokens, references uint8 (B, 3, H, W) and subjects uint8 (B, h, w)."""
        choices = [self.chooser(int(position)) for position in positions]
        references = np.concatenate(
            [
                (self.cache.images if choice.reconstruct else self.cache.references).take(np.array([choice.index]))
                for choice in choices
            ]
        )
        indices = np.array([choice.index for choice in choices])
        return {
            **self.cache.batch(indices),
            "references": torch.from_numpy(rearrange(references, "b h w c -> b c h w").copy()),
        }


def export_adapter(modules: Modules, folder: Path, settings: AdapterSettings = TRAINED) -> None:
    """Write adapter, reference encoder and settings: one folder that every door takes as its adapter."""
    for name in ("adapter", "reference_encoder"):
        modules[name].save_pretrained(folder / name)
    settings.save(folder)
