"""One denoising call: guidance branch -> mask -> generation branch, step by step.

Shapes: B images, S subjects, T text tokens, n reference tokens, (h, w) the latent's size, (G, g) the mask's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from realcustom.guidance.attention_maps import SelfMaps, Size, WordMaps
from realcustom.guidance.guidance_scale import Guidance
from realcustom.guidance.mask import NORMALISATIONS, MaskSettings, guidance_mask
from realcustom.models.attention import (
    AttentionContext,
    GuidancePassDone,
    LayerKeysValues,
    attention_names,
    cross_attention_names,
    level_of,
    level_sizes,
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """What the text encoder gives: embeddings (B, T, c) and, for SDXL, `text_embeds` and `time_ids` (B, ...)."""

    embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything the loop is conditioned on.

    Attributes:
        text, negative: positive and negative prompt; `negative` may be None where the guidance needs none.
        token_weights: (B, S, T), 1 at each subject's target tokens.
        strengths: (S,) factors of the masks, or (B, S).
        regions: (1 or B, S, G, g) in [0, 1] where each subject may be, or None.
        reference: (latents, alpha_bar, masks) -> per layer keys and values (1 or B, S, n, C) of the references.
            RealCustom++ ignores the arguments; RealCustom's scoring module reads them.
        negative_reference: the same for the all-zero image.
        reference_keep: (1 or B, S, n) bool, False at padding, or float, logarithms of weights; None when all tokens
            count alike.
        unet_kwargs: passed to every U-Net call.
    """

    text: Text
    negative: Text | None
    token_weights: torch.Tensor
    strengths: torch.Tensor
    regions: torch.Tensor | None
    reference: Callable[..., list[LayerKeysValues]]
    negative_reference: Callable[..., list[LayerKeysValues]] | None
    reference_keep: torch.Tensor | None = None
    unet_kwargs: dict = field(default_factory=dict)


@dataclass
class Step:
    """What a step computed; the tensors are those of the loop, not copies."""

    index: int
    timestep: torch.Tensor
    latents: torch.Tensor
    masks: torch.Tensor
    prediction: torch.Tensor
    full: torch.Tensor
    negative: torch.Tensor | None
    text: torch.Tensor | None


@dataclass
class PassCaches:
    """What never changes over the steps of a call: text keys and values of both branches, joined references."""

    guidance: dict[int, LayerKeysValues] = field(default_factory=dict)
    generation: dict[int, LayerKeysValues] = field(default_factory=dict)
    sources: tuple = ()
    joined: list[LayerKeysValues] = field(default_factory=list)

    def join_references(self, negative: list[LayerKeysValues], positive: list[LayerKeysValues], batch: int):
        """Per layer negative and positive keys and values along the batch; anew only when given other lists."""
        if not (self.sources and self.sources[0] is negative and self.sources[1] is positive):
            self.joined = [
                tuple(
                    torch.cat([spread_batch(zero, batch), spread_batch(ref, batch)])
                    for zero, ref in zip(*layer, strict=True)
                )
                for layer in zip(negative, positive, strict=True)
            ]
            self.sources = (negative, positive)
        return self.joined


def mask_grid(unet, latent_size: Size) -> Size:
    """The common grid of the word maps: the size of the largest cross-attention map (RealCustom Eq. 11)."""
    finest = min(level_of(unet, name) for name in cross_attention_names(unet))
    return level_sizes(latent_size, len(unet.config.down_block_types))[finest]


def guidance_pass(
    unet,
    attention: AttentionContext,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    settings: MaskSettings,
    needs_prediction: bool,
    cache: dict[int, LayerKeysValues] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The guidance branch: text only, no reference; its attention maps give the masks.

    Args:
        latents: (B, C, h, w), as the U-Net takes them.
        timestep: 0-dimensional.
        needs_prediction: False ends the pass after the last map, since nobody reads its output.

    Returns:
        masks (B, S, G, g) and, if needed, the text-only prediction (B, C, h, w).
    """
    attention.text_only()
    attention.text_cache = cache
    grid = mask_grid(unet, latents.shape[-2:])
    word = WordMaps(
        conditions.token_weights, grid, NORMALISATIONS[settings.normalisation].layer, levels=settings.word_levels
    )
    attention.word_maps = word
    if settings.spread:
        finest = min(level_of(unet, name) for name in attention_names(unet) if name.endswith("attn1"))
        attention.self_maps = SelfMaps(settings.spread_levels or (finest,))
    attention.stop_after = None if needs_prediction else attention.layers - 1
    try:
        prediction = predict(unet, latents, timestep, conditions.text, conditions.unet_kwargs)
    except GuidancePassDone:
        prediction = None
    spread = attention.self_maps.spread if attention.self_maps is not None else None
    masks = guidance_mask(word.mean(), settings, spread, conditions.regions)
    attention.text_only()
    return masks, prediction


def generation_pass(
    unet,
    attention: AttentionContext,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    references: tuple[list[LayerKeysValues] | None, list[LayerKeysValues]],
    masks: torch.Tensor,
    caches: PassCaches,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The generation branch: text, reference and mask, and in the same batch the negative prompt with the features
    of an all-zero image and the same mask.

    Args:
        references: keys and values of the all-zero image (None: no negative pass) and of the references.
        masks: (B, S, G, g).

    Returns:
        negative prediction or None, and full prediction, each (B, C, h, w).
    """
    negative, positive = references
    masks = masks * conditions.strengths.view(-1, masks.shape[1], *[1] * (masks.dim() - 2))
    attention.text_only()
    attention.text_cache = caches.generation
    batch = latents.shape[0]
    keep = conditions.reference_keep
    if negative is None:
        attention.reference, attention.masks, attention.reference_keep = positive, masks, keep
        full = predict(unet, latents, timestep, conditions.text, conditions.unet_kwargs)
        attention.text_only()
        return None, full
    attention.reference = caches.join_references(negative, positive, batch)
    attention.masks = torch.cat([masks, masks])
    attention.reference_keep = None if keep is None else spread_batch(keep, batch).repeat(2, 1, 1)
    text = join(conditions.negative, conditions.text)
    both = predict(unet, torch.cat([latents, latents]), timestep, text, conditions.unet_kwargs)
    attention.text_only()
    return both[:batch], both[batch:]


def denoise(
    unet,
    scheduler,
    attention: AttentionContext,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
    guidance: Guidance,
    settings: MaskSettings,
    step_kwargs: dict | None = None,
):
    """The denoising loop, one `Step` at a time; the caller may replace `step.latents` before asking for the next.

    Args:
        latents: (B, C, h, w) initial noise, already multiplied by the scheduler's sigma.
        timesteps: the scheduler's, in the order used.
        guidance: which formula combines the predictions.

    Yields:
        `Step` after each step; `step.latents` are those the next step starts from.
    """
    caches = PassCaches()
    masks = None
    for index, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        text = None
        updates = masks is None or settings.updates(index)
        if updates or guidance.needs_text_prediction:
            new, text = guidance_pass(
                unet, attention, scaled, timestep, conditions, settings, guidance.needs_text_prediction, caches.guidance
            )
            masks = new if updates else masks
        alpha_bar = scheduler.alphas_cumprod[timestep.long().cpu()]
        positive = conditions.reference(latents, alpha_bar, masks)
        negative = conditions.negative_reference(latents, alpha_bar, masks) if guidance.needs_negative else None
        without, full = generation_pass(
            unet, attention, scaled, timestep, conditions, (negative, positive), masks, caches
        )
        prediction = guidance.combine(without, text, full)
        latents = scheduler.step(prediction, timestep, latents, **(step_kwargs or {}), return_dict=False)[0]
        step = Step(index, timestep, latents, masks, prediction, full, without, text)
        yield step
        latents = step.latents


def predict(unet, latents: torch.Tensor, timestep: torch.Tensor, text: Text, unet_kwargs: dict) -> torch.Tensor:
    """One U-Net pass: (B, C, h, w) to (B, C, h, w)."""
    return unet(
        latents,
        timestep,
        encoder_hidden_states=text.embeds,
        added_cond_kwargs=text.added,
        return_dict=False,
        **unet_kwargs,
    )[0]


def spread_batch(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """A leading dimension of 1 expanded to `batch`."""
    return tensor.expand(batch, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor


def join(first: Text, second: Text) -> Text:
    """Two texts one after the other along the batch."""
    added = None
    if first.added is not None:
        added = {name: torch.cat([first.added[name], second.added[name]]) for name in first.added}
    return Text(embeds=torch.cat([first.embeds, second.embeds]), added=added)
