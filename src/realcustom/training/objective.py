"""The diffusion objective: noise, targets and weights read from the scheduler's configuration; pure functions.

Shapes: B samples, C latent channels, h, w latent height and width, t timesteps (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """A batch of latents at random noise levels.

    latents: (B, C, h, w) noisy latents, the network's input.
    target: (B, C, h, w) what the network must predict.
    timesteps: (B,) long.
    alpha_bar: (B,) cumulative signal share in (0, 1).
    """

    latents: Tensor
    target: Tensor
    timesteps: Tensor
    alpha_bar: Tensor


def alphas_cumprod(scheduler, device: torch.device) -> Tensor:
    """(T,) float32 cumulative products of 1 - beta."""
    return scheduler.alphas_cumprod.to(device=device, dtype=torch.float32, non_blocking=True)


DrawTimesteps = Callable[[int, int, torch.Generator], Tensor]


def uniform_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """(count,) long in 0..steps - 1, all equally likely."""
    return torch.randint(steps, (count,), generator=generator, device=generator.device)


def noisier_timesteps(count: int, steps: int, generator: torch.Generator, *, power: float = 2.0) -> Tensor:
    """(count,) long in 0..steps - 1, t = T (1 - u^power) with u uniform: more of the high noise levels.

    Layout and identity are decided there, while at low noise the picture itself tells a network what a condition
    could. T2I-Adapter (Mou et al. 2023) trains with power 3; 1 is uniform.
    """
    shares = torch.rand(count, generator=generator, device=generator.device)
    return (steps * (1 - shares**power)).long().clamp(0, steps - 1)


def logit_normal_timesteps(
    count: int, steps: int, generator: torch.Generator, *, mean: float = 0.0, spread: float = 1.0
) -> Tensor:
    """(count,) long in 0..steps - 1, t = T sigmoid(n) with n normal: more of the middle noise levels.

    Parts and patterns of a subject are drawn there. Stable Diffusion 3 (Esser et al. 2024) trains with mean 0 and
    spread 1.
    """
    values = torch.randn(count, generator=generator, device=generator.device)
    return (steps * torch.sigmoid(mean + spread * values)).long().clamp(0, steps - 1)


def add_noise(
    latents: Tensor,
    scheduler,
    generator: torch.Generator,
    draw: DrawTimesteps = uniform_timesteps,
    offset: Tensor | None = None,
) -> Noised:
    """Draw a timestep and noise for every sample and form input and target.

    Args:
        latents: (B, C, h, w) scaled latents.
        scheduler: a diffusers scheduler; its prediction_type decides the target.
        generator: draws timesteps, then noise.
        draw: (samples, training timesteps, generator) -> timesteps (B,) long.
        offset: (B, C, h, w) added to the noise.

    Raises:
        ValueError: the scheduler's prediction_type is neither epsilon, v_prediction nor sample.
    """
    latents = latents.float()
    alpha_bar = alphas_cumprod(scheduler, latents.device)
    timesteps = draw(len(latents), len(alpha_bar), generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    noise = noise if offset is None else noise + offset
    chosen = alpha_bar[timesteps]
    signal, sigma = (value.view(-1, 1, 1, 1) for value in (chosen.sqrt(), (1 - chosen).sqrt()))
    targets = {"epsilon": noise, "v_prediction": signal * noise - sigma * latents, "sample": latents}
    kind = scheduler.config.prediction_type
    if kind not in targets:
        raise ValueError(f'The scheduler predicts "{kind}"; training knows {", ".join(targets)}.')
    return Noised(signal * latents + sigma * noise, targets[kind], timesteps, chosen)


def subject_offset(batch: Mapping[str, Tensor], channels: int, spread: float, generator: torch.Generator) -> Tensor:
    """(B, channels, h, w) an offset of the noise, constant within a sample's subjects and 0 elsewhere.

    Noisy latents tell a network the mean colour of a subject long before its parts, and it learns to believe them. In
    training they are right; in sampling they are its own earlier guess. With an offset they are wrong now and then, and
    only the reference knows the colour. Offset noise (Guttenberg 2023) does the same to whole pictures.

    Args:
        batch: batch["subjects"] (B, h, w) is above 0 in cells of a subject.
        spread: standard deviation, in units of the noise's.

    Raises:
        ValueError: the batch does not tell where the subjects are.
    """
    inside = (_known(batch, "subjects") > 0).float()[:, None]
    values = torch.randn((len(inside), channels, 1, 1), generator=generator, device=inside.device)
    return spread * values * inside


def min_snr_weights(alpha_bar: Tensor, prediction_type: str, gamma: float | None) -> Tensor:
    """(B,) loss weights of Min-SNR-gamma (Hang et al. 2023): min(SNR, gamma) on the error of the clean sample.

    Args:
        alpha_bar: (B,) cumulative signal shares.
        prediction_type: what the network predicts; its error is brought to the clean sample's.
        gamma: the limit, 5 in the paper; None weighs all samples 1.
    """
    if gamma is None:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    return {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[prediction_type]


def weighted_error(prediction: Tensor, target: Tensor, weights: Tensor, areas: Tensor | None = None) -> Tensor:
    """Mean over the batch of weight * mean squared error of a sample, in float32.

    weights: (B,). areas: (B, 1, h, w) further weights of the positions, of mean 1; None for 1 everywhere.
    """
    error = F.mse_loss(prediction.float(), target.float(), reduction="none")
    if areas is not None:
        error = error * areas
    return (weights * error.flatten(1).mean(dim=1)).mean()


def pooled_error(
    prediction: Tensor, target: Tensor, weights: Tensor, batch: Mapping[str, Tensor], cells: int
) -> Tensor:
    """Mean over the batch of weight * mean squared error within the subjects at a coarser resolution, in float32.

    In every block of cells x cells the error is averaged over the subject's cells before it is squared. What nobody can
    know at high noise, edges and pose, averages out; a wrong colour stays. Like the multiscale loss of simple diffusion
    (Hoogeboom et al. 2023) it has its least value where the plain error has it.

    Args:
        prediction, target: (B, C, h, w).
        weights: (B,).
        batch: batch["subjects"] (B, h, w) is above 0 in cells of a subject.
        cells: side of a block; from h and w on, the subject is one block.

    Raises:
        ValueError: the batch does not tell where the subjects are.
    """
    inside = (_known(batch, "subjects") > 0).float()[:, None]
    size = tuple(min(cells, side) for side in inside.shape[-2:])
    shares, errors = (
        F.avg_pool2d(values, size, ceil_mode=True)
        for values in (inside, (prediction.float() - target.float()) * inside)
    )
    known = shares > 0
    squares = (errors / shares.masked_fill(~known, 1.0)) ** 2
    parts = shares / shares.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return (weights * (squares * parts).sum(dim=(2, 3)).mean(dim=1)).mean()


def error_areas(batch: Mapping[str, Tensor], name: str, outside: float) -> Tensor | None:
    """(B, 1, h, w) weights of the positions, of mean 1: what batch[name] says, to `outside` where it says 0.

    Args:
        batch: batch[name] (B, h, w) is above 0 in cells of a subject; the cells beside them, its edge, weigh as much.
        name: "subjects" or "figures".
        outside: weight of the other cells before the division by the mean, 0 to 1. At 1 all weigh the same, and None
            is returned: nothing need be known of the subjects.

    Raises:
        ValueError: the batch does not tell where they are.
    """
    if outside == 1:
        return None
    inside = F.max_pool2d(_known(batch, name).float()[:, None], 3, stride=1, padding=1)
    areas = outside + (1 - outside) * inside
    return areas / areas.mean()


def _known(batch: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in batch:
        raise ValueError(
            f"The data do not tell where the {name} are: cache the latents anew with references, or train with "
            "outside=1 and, an adapter, with pooled=() and offset=0."
        )
    return batch[name]


def drop_conditions(
    count: int, *, text: float, reference: float, both: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which samples lose their text and which their reference: two bool tensors (count,).

    The three shares exclude each other: `text` loses only the text, `reference` only the reference, `both` both.
    """
    draw = torch.rand(count, generator=generator, device=generator.device)
    lost_both = draw < both
    lost_text = lost_both | ((draw >= both) & (draw < both + text))
    lost_reference = lost_both | ((draw >= both + text) & (draw < both + text + reference))
    return lost_text, lost_reference
