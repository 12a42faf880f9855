"""One denoising call: guidance branch -> mask -> generation branch, step by step.

Shapes: B images, S subjects, T text tokens, n reference tokens, (h, w) the latent's size, (G, g) the mask's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.utils import scale_lora_layers, unscale_lora_layers

from realcustom.guidance.attention_maps import SelfMaps, Size, WordMaps, check_levels
from realcustom.guidance.guidance_scale import Guidance
from realcustom.guidance.mask import NORMALISATIONS, MaskSettings, guidance_mask
from realcustom.models.attention import (
    AttentionContext,
    GuidancePassDone,
    LayerKeysValues,
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


def mask_grid(unet, latent_size: Size) -> Size:
    """The common grid of the word maps: the size of the largest cross-attention map (RealCustom Eq. 11)."""
    finest = min(level_of(unet, name) for name in cross_attention_names(unet))
    return level_sizes(latent_size, len(unet.config.down_block_types))[finest]


class CallTensors:
    """What never changes over the steps of a call, made once: the texts' keys and values, the joined references."""

    def __init__(self, attention: AttentionContext, conditions: Conditions):
        texts = [conditions.text] if conditions.negative is None else [conditions.negative, conditions.text]
        scale = (conditions.unet_kwargs.get("cross_attention_kwargs") or {}).get("scale")
        with lora_scaled(attention.unet, scale):
            self._text = attention.project_text(torch.cat([text.embeds for text in texts]))
        self._sources: tuple = ()
        self._joined: list[LayerKeysValues] = []

    def text(self, rows: slice) -> list[LayerKeysValues]:
        """The texts' keys and values of rows of the batch [negative, positive]."""
        return [(key[rows], value[rows]) for key, value in self._text]

    def references(self, negative: list[LayerKeysValues], positive: list[LayerKeysValues]) -> list[LayerKeysValues]:
        """Per layer negative and positive keys and values along G; anew only when given other lists."""
        if not (self._sources and self._sources[0] is negative and self._sources[1] is positive):
            self._joined = [
                tuple(torch.cat(pair) for pair in zip(*layer, strict=True))
                for layer in zip(negative, positive, strict=True)
            ]
            self._sources = (negative, positive)
        return self._joined


class MaskRecording:
    """Records the attention of a pass's last B images, which see the text only, and makes the mask of it."""

    def __init__(self, attention: AttentionContext, conditions: Conditions, settings: MaskSettings, grid: Size):
        """
        Args:
            grid: rows and columns of the mask; the pass's own may be smaller.

        Raises:
            ValueError: no layer lies on the settings' levels.
        """
        levels = {processor.level for processor in attention.own}
        self.spread_levels = settings.spread_levels or (min(levels),)
        check_levels(settings.word_levels, {processor.level for processor in attention.cross}, "cross")
        check_levels(self.spread_levels, levels, "self")
        normalise = NORMALISATIONS[settings.normalisation].layer
        self.word = WordMaps(conditions.token_weights, grid, normalise, levels=settings.word_levels)
        self.attention, self.settings, self.regions = attention, settings, conditions.regions
        attention.word_maps = self.word
        for processor in attention.own:
            processor.keeps = bool(settings.spread) and processor.level in self.spread_levels

    def masks(self) -> torch.Tensor:
        """(B, S, G, g), once the pass is done."""
        self_maps = SelfMaps(self.spread_levels)
        images = self.word.token_weights.shape[0]
        for processor in self.attention.own:
            if processor.kept is not None:
                query, key, scale = processor.kept
                self_maps.add(query[-images:], key[-images:], scale, processor.size, processor.level)
        spread = self_maps.spread if self.settings.spread else None
        return guidance_mask(self.word.mean(), self.settings, spread, self.regions)


def guidance_pass(
    unet,
    attention: AttentionContext,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    settings: MaskSettings,
    needs_prediction: bool,
    tensors: CallTensors,
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
    batch, grid, sizes = latents.shape[0], mask_grid(unet, latents.shape[-2:]), attention.sizes
    if settings.stride > 1 and not needs_prediction:
        # Every n-th value, not a mean: a mean would also average the noise away that the timestep tells of.
        latents = latents[..., :: settings.stride, :: settings.stride]
        attention.sizes = level_sizes(latents.shape[-2:], len(sizes))
    attention.text = tensors.text(slice(-batch, None))
    recording = MaskRecording(attention, conditions, settings, grid)
    prediction = None
    try:
        if not needs_prediction:
            attention.stop_after_maps()
        prediction = predict(unet, latents, timestep, conditions.text, conditions.unet_kwargs)
    except GuidancePassDone:
        pass
    masks = recording.masks()
    attention.text_only()
    attention.sizes = sizes
    return masks, prediction


@dataclass
class Generated:
    """What a generation pass gives: predictions (B, C, h, w) of the branches it held, and the next masks."""

    full: torch.Tensor
    negative: torch.Tensor | None = None
    text: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def generation_pass(
    unet,
    attention: AttentionContext,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    references: tuple[list[LayerKeysValues] | None, list[LayerKeysValues]],
    masks: torch.Tensor,
    tensors: CallTensors,
    record: MaskSettings | None = None,
) -> Generated:
    """The generation branch: text, reference and mask, and in the same batch the negative prompt with the features
    of an all-zero image and the same mask.

    Args:
        references: keys and values of the all-zero image (None: no negative images) and of the references.
        masks: (B, S, G, g).
        record: lets the guidance branch ride in the same batch and makes the next masks of it; None leaves it out.
    """
    negative, positive = references
    batch = latents.shape[0]
    attention.text_only()
    attention.reference = positive if negative is None else tensors.references(negative, positive)
    masks = masks * conditions.strengths.view(-1, masks.shape[1], *[1] * (masks.dim() - 2))
    attention.masks = masks if negative is None else torch.cat([masks, masks])
    keep = conditions.reference_keep
    attention.keep_references(keep if keep is None or keep.shape[0] == 1 or negative is None else torch.cat([keep] * 2))
    texts = [conditions.text] if negative is None else [conditions.negative, conditions.text]
    keys_values = tensors.text(slice(-batch * len(texts), None))
    recording = None
    if record is not None:
        texts.append(conditions.text)
        keys_values = [tuple(torch.cat([tensor, tensor[-batch:]]) for tensor in layer) for layer in keys_values]
        recording = MaskRecording(attention, conditions, record, mask_grid(unet, latents.shape[-2:]))
    attention.text = keys_values
    out = predict(unet, torch.cat([latents] * len(texts)), timestep, join(texts), conditions.unet_kwargs)
    parts = list(out.split(batch))
    return_value = Generated(
        negative=None if negative is None else parts.pop(0),
        full=parts.pop(0),
        text=parts.pop() if recording is not None else None,
        masks=None if recording is None else recording.masks(),
    )
    attention.text_only()
    return return_value


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
    tensors = CallTensors(attention, conditions)
    # Schedulers index their tables with host numbers, the U-Net wants its own device: neither then waits in the loop.
    host, here = timesteps.cpu(), timesteps.to(latents.device)
    alphas = scheduler.alphas_cumprod.to(latents.device).index_select(0, here.long())
    masks = None
    for index, timestep in enumerate(host):
        scaled = scheduler.scale_model_input(latents, timestep)
        updates = masks is None or settings.updates(index)
        reads_text = guidance.text_at(index / len(host))
        wanted = updates or reads_text
        rides = settings.lagged and masks is not None
        text = None
        if wanted and not rides:
            new, text = guidance_pass(unet, attention, scaled, here[index], conditions, settings, reads_text, tensors)
            masks = new if updates else masks
        positive = conditions.reference(latents, alphas[index], masks)
        negative = None
        if guidance.negative_at(index / len(host)):
            negative = conditions.negative_reference(latents, alphas[index], masks)
        made = generation_pass(
            unet, attention, scaled, here[index], conditions, (negative, positive), masks, tensors,
            record=settings if wanted and rides else None,
        )  # fmt: skip
        text = made.text if text is None else text
        prediction = guidance.combine(made.negative, text, made.full)
        latents = scheduler.step(prediction, timestep, latents, **(step_kwargs or {}), return_dict=False)[0]
        step = Step(index, timestep, latents, masks, prediction, made.full, made.negative, text)
        yield step
        latents = step.latents
        masks = made.masks if made.masks is not None and updates else masks


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


def join(texts: list[Text]) -> Text:
    """Texts one after the other along the batch."""
    added = None
    if texts[0].added is not None:
        added = {name: torch.cat([text.added[name] for text in texts]) for name in texts[0].added}
    return Text(embeds=torch.cat([text.embeds for text in texts]), added=added)


@contextmanager
def lora_scaled(unet, scale: float | None) -> Iterator[None]:
    """The U-Net's LoRAs at a scale, as its own forward sets it while it runs."""
    if scale is None:
        yield
        return
    scale_lora_layers(unet, scale)
    try:
        yield
    finally:
        unscale_lora_layers(unet, scale)
