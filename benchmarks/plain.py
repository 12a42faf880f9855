"""The released code's work of a step, plainly written from the method; `denoise.py` measures against it.

Three passes one after the other, the full float32 attention maps of all heads and text tokens in every pass, the
projector and every key and value anew in each pass that uses them.

Shapes: B images, S subjects (one reference each), T text tokens, n reference tokens, H heads, N positions of a layer,
(G, g) the mask's grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from realcustom.models.unet import cross_attention_names


class PlainState:
    """What the passes share: the adapter's weights, the pass's references and mask, and all maps of the pass.

    features: reference features of S images, or None for a pass with text only.
    mask: (B, S, G, g).
    maps: per layer (B, H, N, T) float32.
    size: the latent's height and width.
    """

    def __init__(self, adapter, layers: int, size: tuple[int, int]):
        self.adapter, self.layers, self.size = adapter, layers, size
        self.tokens: Tensor | None = None
        self.mask: Tensor | None = None
        self.maps: list[Tensor] = []

    def begin(self, features, mask: Tensor | None) -> None:
        """Start a pass."""
        self.tokens = None if features is None else self.adapter.tokens(features)
        self.mask = mask
        self.maps = []

    def height_width(self, positions: int) -> tuple[int, int]:
        """Of a layer with that many positions: the latent's size halved, rounding up, until it fits."""
        height, width = self.size
        while height * width > positions:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        return height, width


class PlainProcessor:
    """Cross-attention with the open softmax over the text and one attention for each subject's reference."""

    def __init__(self, state: PlainState, layer: int):
        self.state, self.layer = state, layer

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) and text (B, T, c) to (B, N, C)."""
        state = self.state

        def heads(tensor: Tensor) -> Tensor:
            return rearrange(tensor, "b n (h d) -> b h n d", h=attn.heads)

        query = heads(attn.to_q(hidden_states))
        key, value = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        probabilities = (query.float() @ key.float().transpose(-1, -2) * attn.scale).softmax(dim=-1)
        state.maps.append(probabilities)
        out = probabilities.to(value.dtype) @ value
        if state.tokens is not None:
            visual_keys, visual_values = state.adapter.to_k[self.layer], state.adapter.to_v[self.layer]
            size = state.height_width(query.shape[2])
            for subject in range(state.tokens.shape[0]):
                tokens = state.tokens[subject : subject + 1].expand(query.shape[0], -1, -1)
                seen = F.scaled_dot_product_attention(query, heads(visual_keys(tokens)), heads(visual_values(tokens)))
                mask = F.interpolate(state.mask[:, subject : subject + 1], size=size, mode="bilinear")
                out = out + seen * rearrange(mask, "b 1 h w -> b 1 (h w) 1").to(seen.dtype)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b h n d -> b n (h d)")))


class PlainSelfAttention:
    """Self-attention, which the release leaves as it is."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) to (B, N, C)."""
        query, key, value = (
            rearrange(project(hidden_states), "b n (h d) -> b h n d", h=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b h n d -> b n (h d)")))


@contextmanager
def installed_plainly(unet, adapter, size: tuple[int, int]) -> Iterator[PlainState]:
    """The plain processors on the U-Net for a while."""
    before = dict(unet.attn_processors)
    order = cross_attention_names(unet)
    state = PlainState(adapter, len(order), size)
    unet.set_attn_processor(
        {
            name: PlainProcessor(state, order.index(name.removesuffix(".processor")))
            if name.removesuffix(".processor") in order
            else PlainSelfAttention()
            for name in before
        }
    )
    try:
        yield state
    finally:
        unet.set_attn_processor(before)


def plain_mask(state: PlainState, token_weights: Tensor, grid: tuple[int, int], scope: float) -> Tensor:
    """The mask of the pass just made: min-max per layer, mean, min-max, the largest `scope` share kept.

    Args:
        token_weights: (B, S, T), 1 at target tokens.

    Returns:
        (B, S, G, g); of several subjects the higher score wins a position.
    """

    def min_max(maps: Tensor) -> Tensor:
        low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
        return (maps - low) / (high - low + 1e-6)

    layers = []
    for probabilities in state.maps:
        words = torch.einsum("bhnt,bst->bsn", probabilities, token_weights) / probabilities.shape[1]
        height, _ = state.height_width(words.shape[-1])
        words = rearrange(words, "b s (h w) -> b s h w", h=height)
        layers.append(min_max(F.interpolate(words, size=grid, mode="bilinear")))
    scores = min_max(torch.stack(layers).mean(dim=0))
    winner = scores.argmax(dim=1, keepdim=True)
    subjects = torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1, 1)
    own = (winner == subjects) if scores.shape[1] > 1 else torch.ones_like(scores, dtype=torch.bool)
    flat = torch.where(own, scores, torch.full_like(scores, -1)).flatten(2)
    kept = torch.zeros_like(flat).scatter(2, flat.topk(int(flat.shape[-1] * scope), dim=-1).indices, 1.0)
    return scores * kept.view_as(scores) * own


def plain_denoise(scene, steps: int, guidance_scale: float, scope: float) -> Iterator[Tensor]:
    """The loop: latents (B, C, h, w) after each step.

    Args:
        scene: `scenes.Scene`.
    """
    unet, scheduler = scene.unet, scene.make_scheduler()
    scheduler.set_timesteps(steps, device=scene.latents.device)
    latents = scene.latents * scheduler.init_noise_sigma
    with installed_plainly(unet, scene.adapter, tuple(latents.shape[-2:])) as state:
        for timestep in scheduler.timesteps:
            given = scheduler.scale_model_input(latents, timestep)

            def predict(text, features, mask, given=given, timestep=timestep):
                state.begin(features, mask)
                return unet(given, timestep, text.embeds, added_cond_kwargs=text.added, return_dict=False)[0]

            predict(scene.text, None, None)
            mask = plain_mask(state, scene.token_weights, scene.grid, scope)
            full = predict(scene.text, scene.features, mask)
            negative = predict(scene.negative, scene.zero_features, mask)
            prediction = negative + guidance_scale * (full - negative)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
            yield latents
