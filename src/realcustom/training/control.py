"""Training a ControlNet beside a frozen U-Net (Zhang et al. 2023), on outlines of the sticker world."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from realcustom.data.outlines import outline
from realcustom.data.world import WorldSettings

from .autoencoder import latents_of, to_pictures, to_signed
from .base import tokenize
from .config import Batch, Modules
from .logs import grid
from .objective import DrawTimesteps, add_noise, error_areas, uniform_timesteps, weighted_error
from .stickers import Stickers


class OutlinedStickers(Stickers):
    """Endless pictures with caption and outline, composed on the spot: pixels and controls uint8 (B, 3, H, W), tokens
    (B, T), and figures (B, h, w), the share of each latent cell that figures fill, 0 to 1."""

    size = None
    cells = 16

    def __init__(self, folder: str | Path, settings: WorldSettings, tokenizer, first: int = 0):
        """first: index of the record that is sample 0."""
        super().__init__(folder, settings)
        self.tokenizer, self.first = tokenizer, first

    def batch(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        """The records of these indices."""
        records = [self.world.record(self.first + int(index)) for index in indices]
        covers = [np.concatenate([record.masks, record.others]) for record in records]
        figures = torch.from_numpy(np.stack([cover.any(axis=0) for cover in covers])).float()[:, None]
        lines = np.stack([np.repeat(outline(cover)[None], 3, axis=0) for cover in covers])
        pictures = np.stack([record.image for record in records])
        return {
            "pixels": torch.from_numpy(rearrange(pictures, "b h w c -> b c h w").copy()),
            "controls": torch.from_numpy(lines),
            "tokens": torch.from_numpy(tokenize(self.tokenizer, [record.caption for record in records])).long(),
            "figures": F.adaptive_avg_pool2d(figures, self.cells)[:, 0],
        }


@dataclass(frozen=True, kw_only=True)
class ControlLoss:
    """Diffusion with the ControlNet's residuals: (modules, batch, generator) -> (loss, metrics).

    "controlnet" is trained; "unet", "vae" and "text_encoder" are read.

    scheduler: its configuration decides noise schedule and prediction type.
    empty_tokens: (T,) of the empty caption, which replaces `dropout` of all captions, so that the outline alone says
        what stands there.
    draw: of the timesteps.
    outside: weight of the error outside all figures, 0 to 1.
    """

    scheduler: object
    empty_tokens: Tensor
    dropout: float = 0.3
    draw: DrawTimesteps = uniform_timesteps
    outside: float = 1.0

    def __call__(self, modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        lost = torch.rand(len(tokens), generator=generator, device=tokens.device) < self.dropout
        tokens = torch.where(lost[:, None], self.empty_tokens.to(tokens.device), tokens)
        with torch.no_grad():
            vae = modules["vae"]
            latents = latents_of(vae, to_signed(batch["pixels"])) * vae.config.scaling_factor
            text = modules["text_encoder"](input_ids=tokens).last_hidden_state
        noised = add_noise(latents, self.scheduler, generator, self.draw)
        down, mid = modules["controlnet"](
            noised.latents, noised.timesteps, text, batch["controls"].float() / 255, return_dict=False
        )
        prediction = modules["unet"](
            noised.latents,
            noised.timesteps,
            encoder_hidden_states=text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        weights = torch.ones_like(noised.alpha_bar)
        loss = weighted_error(prediction, noised.target, weights, error_areas(batch, "figures", self.outside))
        return loss, {"mse": weighted_error(prediction, noised.target, weights).detach()}


@dataclass(frozen=True, kw_only=True)
class ControlGrid:
    """Outline, and what is drawn in it, side by side for some records: (modules, step) -> uint8 (H, W, 3)."""

    scheduler: object
    records: Mapping[str, Tensor]
    empty_tokens: Tensor
    steps: int = 12
    guidance_scale: float = 3.5

    @torch.no_grad()
    def __call__(self, modules: Modules, step: int) -> np.ndarray:
        device = next(modules["controlnet"].parameters()).device
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(self.steps, device=device)
        tokens, controls = self.records["tokens"].to(device), self.records["controls"].to(device)
        texts = torch.cat([self.empty_tokens.to(device).expand_as(tokens), tokens])
        text = modules["text_encoder"](input_ids=texts).last_hidden_state
        config = modules["unet"].config
        shape = (len(tokens), config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        for timestep in scheduler.timesteps:
            both = torch.cat([latents] * 2)
            down, mid = modules["controlnet"](
                both, timestep, text, torch.cat([controls.float() / 255] * 2), return_dict=False
            )
            without, with_text = modules["unet"](
                both, timestep, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
            ).sample.chunk(2)
            guided = without + self.guidance_scale * (with_text - without)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        vae = modules["vae"]
        drawn = to_pictures(vae.decode(latents / vae.config.scaling_factor).sample)
        lines = rearrange(controls.cpu().numpy(), "b c h w -> b h w c")
        return grid(np.stack([cell for pair in zip(lines, drawn, strict=True) for cell in pair]), columns=8)


def export_controlnet(modules: Modules, folder: Path) -> None:
    """Write the ControlNet as a diffusers folder, in float16 to be loaded as float32."""
    copy.deepcopy(modules["controlnet"]).to(torch.float16).save_pretrained(folder)
