"""Textual Inversion on one reference, the pseudo-word baseline: diffusers' recipe, and the pull towards the real word.

A new token's embedding is optimised so that the frozen model reconstructs the reference from "a <subject>". The
regularisation holds it near the embedding of the super-category's word: none at 0, and the plain word in the limit.
Shapes: B samples, d text width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from realcustom.encoders.target_word import find_phrase
from realcustom.training.precision import quick_precision

from .models import encode_pictures

TOKEN = "<subject>"
TEMPLATES = ("a {}", "a picture of a {}", "a photo of a {}", "the {}")


@dataclass(frozen=True, kw_only=True)
class InversionSettings:
    """steps: optimiser steps. learning_rate: of AdamW. batch_size: noised copies a step. regularisation: weight of the
    squared distance to the word's own embedding, relative to its squared length. seed: of noise and timesteps."""

    steps: int = 200
    learning_rate: float = 5e-3
    batch_size: int = 4
    regularisation: float = 0.0
    seed: int = 0


def learn(pipe, picture: Image.Image, word: str, settings: InversionSettings) -> Tensor:
    """The embedding (d,) of a subject, started from the mean embedding of its word's tokens."""
    start = word_embedding(pipe, word)
    vector = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([vector], lr=settings.learning_rate, weight_decay=0.0)
    random = torch.Generator().manual_seed(settings.seed)
    height, width = pipe.native_size
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    latents = encode_pictures(pipe, [picture, ImageOps.mirror(picture)])
    with placeholder(pipe, vector) as token:
        for _ in range(settings.steps):
            loss = reconstruction_loss(pipe, latents, token, settings.batch_size, random)
            loss = loss + settings.regularisation * (vector - start).square().sum() / start.square().sum()
            optimizer.zero_grad()
            (gradient,) = torch.autograd.grad(loss, [vector])
            vector.grad = gradient
            optimizer.step()
    return vector.detach()


def reconstruction_loss(pipe, latents: Tensor, token: str, batch: int, random: torch.Generator) -> Tensor:
    """Denoising error of the frozen model on the reference (2, C, h, w) and its mirror image."""
    scheduler, device = pipe.scheduler, latents.device
    rows = torch.randint(len(latents), (batch,), generator=random)
    clean = latents[rows.to(device)]
    noise = torch.randn(clean.shape, generator=random).to(clean)
    times = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=random).to(device)
    templates = [TEMPLATES[int(i)] for i in torch.randint(len(TEMPLATES), (batch,), generator=random)]
    ids = pipe.tokenizer(
        [template.format(token) for template in templates],
        padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt",
    ).input_ids  # fmt: skip
    text = pipe.text_encoder(input_ids=ids.to(device)).last_hidden_state
    # What trainings of the whole model do, where bfloat16 is faster; the vector itself stays in float32.
    with torch.autocast(device.type, torch.bfloat16, enabled=quick_precision(device.type) == "bf16"):
        prediction = pipe.unet(scheduler.add_noise(clean, noise, times), times, encoder_hidden_states=text).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    return F.mse_loss(prediction.float(), (scheduler.get_velocity(clean, noise, times) if velocity else noise).float())


@contextmanager
def placeholder(pipe, vector: Tensor) -> Iterator[str]:
    """The pipeline knows `TOKEN` for a while, and its embedding is `vector` (d,), through which gradients flow."""
    pipe.load_textual_inversion({TOKEN: vector.detach().clone()[None]}, token=TOKEN)
    number = pipe.tokenizer.convert_tokens_to_ids(TOKEN)

    def substitute(module, arguments, output):
        return torch.where((arguments[0] == number)[..., None], vector.to(output.dtype), output)

    hook = pipe.text_encoder.get_input_embeddings().register_forward_hook(substitute)
    try:
        yield TOKEN
    finally:
        hook.remove()
        pipe.unload_textual_inversion([TOKEN])


def word_embedding(pipe, word: str) -> Tensor:
    """Mean (d,) of the token embeddings of a word."""
    ids = pipe.tokenizer(word, add_special_tokens=False).input_ids
    table = pipe.text_encoder.get_input_embeddings().weight
    return table[ids].detach().float().mean(dim=0)


def with_placeholder(prompt: str, word: str) -> str:
    """The prompt with the word replaced by the new token, at its first place."""
    start, stop = find_phrase(prompt, word)[0]
    return prompt[:start] + TOKEN + prompt[stop:]
