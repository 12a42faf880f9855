"""Training the miniature's base model: plain text-to-image on cached latents, text encoder and U-Net together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .autoencoder import to_pictures
from .config import Batch, Modules
from .logs import grid
from .objective import (
    DrawTimesteps,
    add_noise,
    error_areas,
    min_snr_weights,
    uniform_timesteps,
    weighted_error,
)


@dataclass(frozen=True, kw_only=True)
class BaseLoss:
    """Text-to-image diffusion: (modules, batch, generator) -> (loss, metrics), "unet" and "text_encoder" trained.

    scheduler: its configuration decides noise schedule and prediction type.
    empty_tokens: (T,) token numbers of the empty caption, which replaces `dropout` of all captions.
    min_snr: gamma of the Min-SNR weights, None for none.
    draw: of the timesteps.
    outside: weight of the error outside the subject, 0 to 1; below 1 it needs batch["figures"] (B, h, w).
    """

    scheduler: object
    empty_tokens: Tensor
    dropout: float = 0.1
    min_snr: float | None = 5.0
    draw: DrawTimesteps = uniform_timesteps
    outside: float = 1.0

    def __call__(self, modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noised = add_noise(batch["latents"], self.scheduler, generator, self.draw)
        tokens = batch["tokens"]
        lost = torch.rand(len(tokens), generator=generator, device=tokens.device) < self.dropout
        tokens = torch.where(lost[:, None], self.empty_tokens.to(tokens.device, non_blocking=True), tokens)
        text = modules["text_encoder"](input_ids=tokens).last_hidden_state
        prediction = modules["unet"](noised.latents, noised.timesteps, encoder_hidden_states=text).sample
        weights = min_snr_weights(noised.alpha_bar, self.scheduler.config.prediction_type, self.min_snr)
        loss = weighted_error(prediction, noised.target, weights, error_areas(batch, "figures", self.outside))
        return loss, {"mse": weighted_error(prediction, noised.target, torch.ones_like(weights)).detach()}


def tokenize(tokenizer, captions: list[str]) -> np.ndarray:
    """Token numbers int32 (N, T) padded to the tokenizer's length."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return np.array(encoded["input_ids"], dtype=np.int32)


def as_tokens(rows: Mapping[str, Tensor]) -> Batch:
    """Resident rows as `BaseLoss` reads them: the token numbers as long."""
    return {**rows, "tokens": rows["tokens"].long()}


@torch.no_grad()
def sample_texts(
    modules: Modules,
    tokens: Tensor,
    empty_tokens: Tensor,
    scheduler,
    *,
    steps: int,
    guidance_scale: float,
    seed: int = 0,
) -> Tensor:
    """Latents (B, C, h, w) of captions by DDIM and classifier-free guidance; the same seed gives the same noise."""
    unet, encode = modules["unet"], modules["text_encoder"]
    device = next(unet.parameters()).device
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps, device=device)
    text = encode(input_ids=tokens.to(device)).last_hidden_state
    negative = encode(input_ids=empty_tokens[None].to(device)).last_hidden_state.expand_as(text)
    shape = (len(tokens), unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = torch.cat([scheduler.scale_model_input(latents, timestep)] * 2)
        without, with_text = unet(both, timestep, encoder_hidden_states=torch.cat([negative, text])).sample.chunk(2)
        latents = scheduler.step(without + guidance_scale * (with_text - without), timestep, latents).prev_sample
    return latents


@dataclass(frozen=True, kw_only=True)
class TextGrid:
    """A grid of pictures of fixed captions: (modules, step) -> uint8 (H, W, 3); modules["vae"] decodes."""

    scheduler: object
    tokens: Tensor
    empty_tokens: Tensor
    steps: int = 25
    guidance_scale: float = 5.0
    columns: int = 6

    def __call__(self, modules: Modules, step: int) -> np.ndarray:
        latents = sample_texts(
            modules,
            self.tokens,
            self.empty_tokens,
            self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
        )
        vae = modules["vae"]
        return grid(to_pictures(vae.decode(latents / vae.config.scaling_factor).sample), self.columns)


@dataclass(frozen=True, kw_only=True)
class BaseExport:
    """Writes a stock Stable Diffusion folder's U-Net, text encoder, tokenizer, scheduler and autoencoder."""

    tokenizer: object
    scheduler: object

    def __call__(self, modules: Modules, folder: Path) -> None:
        for name in ("unet", "text_encoder", "vae"):
            modules[name].save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
