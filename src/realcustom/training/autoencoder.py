"""Training an autoencoder of the AutoencoderTiny or AutoencoderKL kind, without adversary and pretrained networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .config import Batch, Modules
from .folding import Decode, decode_whole
from .logs import grid

SCALES = (0.5, 0.75, 1.0)  # few, so that compiled networks see few shapes


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """The autoencoder's objective: (modules, batch, generator) -> (loss, metrics), modules["vae"] trained.

    gradient: weight of the L1 distance of horizontal and vertical differences, which keeps edges sharp.
    scales: resolutions at which both are compared, each half of the one before.
    moments: weight of the squared distance of every latent channel's mean from 0 and standard deviation from 1.
    noise: standard deviation of the noise on the latents in front of the decoder, so that neighbouring latents decode
        to neighbouring pictures, as a diffusion model's imprecise samples need.
    squared: weight of the squared error at full resolution, which PSNR measures; it pulls at what is most wrong.
    equivariance: share of the batches whose latents are scaled or mirrored before they are decoded, and must give the
        scaled or mirrored pictures (EQ-VAE, Kouzelis et al. 2025): latents that behave like small pictures are easier
        to learn for a diffusion model. 0 for none.
    nested: share of the batches decoded from the first half of their channels, the others 0, so that those hold what
        matters most and the second half details (channel-wise structure as in DC-AE 1.5, Chen et al. 2025): a diffusion
        model learns few channels sooner than many. 0 for none.
    decode: how latents become pictures; what it leaves out at the border counts for nothing.
    """

    gradient: float = 1.0
    scales: int = 3
    moments: float = 0.1
    noise: float = 0.1
    squared: float = 0.0
    equivariance: float = 0.0
    nested: float = 0.0
    decode: Decode = decode_whole

    def __call__(self, modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = to_signed(batch["pixels"])
        latents = latents_of(modules["vae"], pixels).float()
        moments, deviation = moment_penalty(latents), latents.std()
        scale, mirrored = draw_view(self.equivariance, generator)
        pixels, latents = (viewed(maps, scale, mirrored) for maps in (pixels, latents))
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noisy = first_half(latents + self.noise * noise, self.nested, generator)
        decoded = self.decode(modules["vae"], noisy, generator).float()
        pixels = center(pixels, decoded.shape[-2:])
        distance, edges = picture_distance(decoded, pixels, self.scales)
        loss = distance + self.gradient * edges + self.moments * moments
        loss = loss + self.squared * F.mse_loss(decoded, pixels)
        return loss, {"l1": F.l1_loss(decoded, pixels), "edges": edges, "moments": moments, "latent_std": deviation}


def latents_of(vae, pixels: Tensor) -> Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1], not scaled; a KL autoencoder gives its mean."""
    encoded = vae.encode(pixels)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean


def draw_view(share: float, generator: torch.Generator) -> tuple[float, bool]:
    """How a batch is changed: (scale, whether it is mirrored); (1, False) for 1 - `share` of all batches."""
    changed, scale, side = torch.rand(3, generator=generator, device=generator.device).tolist()
    if changed >= share:
        return 1.0, False
    return SCALES[int(scale * len(SCALES))], side < 0.5


def first_half(latents: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Latents (B, C, h, w), for `share` of all batches with 0 in the second half of the channels."""
    if share == 0 or float(torch.rand((), generator=generator, device=generator.device)) >= share:
        return latents
    return torch.cat(
        [latents[:, : latents.shape[1] // 2], torch.zeros_like(latents[:, latents.shape[1] // 2 :])], dim=1
    )


def viewed(maps: Tensor, scale: float, mirrored: bool = False) -> Tensor:
    """Pictures or latents (B, C, h, w) at `scale` times their size, bilinear with antialiasing, mirrored if asked."""
    if mirrored:
        maps = maps.flip(-1)
    if scale == 1:
        return maps
    size = [round(side * scale) for side in maps.shape[-2:]]
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


def center(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (B, C, *size) of maps (B, C, H, W); H and W differ from `size` by even numbers."""
    top, left = ((whole - part) // 2 for whole, part in zip(maps.shape[-2:], size, strict=True))
    return maps[..., top : top + size[0], left : left + size[1]]


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def picture_distance(decoded: Tensor, pixels: Tensor, scales: int) -> tuple[Tensor, Tensor]:
    """Mean L1 distance of pixels and of their differences, averaged over resolutions."""
    distance, edges = decoded.new_zeros(()), decoded.new_zeros(())
    for scale in range(scales):
        if scale:
            decoded, pixels = F.avg_pool2d(decoded, 2), F.avg_pool2d(pixels, 2)
        error = decoded - pixels
        distance = distance + error.abs().mean()
        edges = edges + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return distance / scales, edges / scales


def moment_penalty(latents: Tensor) -> Tensor:
    """Mean over channels of mean^2 + (std - 1)^2; latents (B, C, h, w)."""
    channels = rearrange(latents, "b c h w -> c (b h w)")
    return (channels.mean(dim=1) ** 2 + (channels.std(dim=1) - 1) ** 2).mean()


@torch.no_grad()
def reconstructions(modules: Modules, pixels: Tensor) -> np.ndarray:
    """Pictures uint8 (B, 3, H, W) above what the autoencoder makes of them, as one uint8 array (2H, B * W, 3)."""
    vae = modules["vae"]
    pixels = pixels.to(next(vae.parameters()).device)
    decoded = vae.decode(latents_of(vae, to_signed(pixels))).sample
    return grid(np.concatenate([to_pictures(to_signed(pixels)), to_pictures(decoded)]), columns=len(pixels))


def to_pictures(decoded: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3)."""
    pictures = (decoded.float().clamp(-1, 1) + 1) * 127.5
    return rearrange(pictures.round().to(torch.uint8).cpu().numpy(), "b c h w -> b h w c")


def export_autoencoder(modules: Modules, folder: Path) -> None:
    """Write the autoencoder as a diffusers folder."""
    modules["vae"].save_pretrained(folder)
