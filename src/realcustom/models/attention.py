"""The second attention of RealCustom, on the stock U-Net's own seam (RealCustom Eq. 4 and 12).

    out = Softmax(Q K_text^T / sqrt(d)) V_text + sum_i M_i * Softmax(Q K_i^T / sqrt(d)) V_i

Shapes: B images, S subjects, T text tokens, n reference tokens, H heads, N = h * w positions, d channels of a head,
C = H * d.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange

from realcustom.guidance.attention_maps import SelfMaps, Size, WordMaps, resize

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]


class GuidancePassDone(Exception):
    """Raised inside the U-Net when nothing of the pass is needed any more; caught by the guidance branch."""


def cross_attention_names(unet) -> list[str]:
    """Names of the cross-attention modules in running order: down blocks, mid block, up blocks."""
    return [name for name in attention_names(unet) if name.endswith("attn2")]


def attention_names(unet) -> list[str]:
    """Names of all attention modules that take a processor, in running order."""
    names = [key.removesuffix(".processor") for key in unet.attn_processors]
    stages = ("down_blocks", "mid_block", "up_blocks")
    return [name for stage in stages for name in names if name.startswith(stage)]


def level_of(unet, name: str) -> int:
    """The U-Net level of a module: 0 at the latent's resolution, 1 at half of it, and so on."""
    levels = len(unet.config.down_block_types)
    stage, index = name.split(".")[:2]
    if stage == "mid_block":
        return levels - 1
    return int(index) if stage == "down_blocks" else levels - 1 - int(index)


def level_sizes(latent_size: Size, levels: int) -> list[Size]:
    """Height and width of each U-Net level: halved and rounded up, as the stride-2 convolutions do."""
    sizes = [tuple(latent_size)]
    for _ in range(levels - 1):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


class AttentionContext:
    """What the processors of one U-Net read and write while they are installed.

    Attributes:
        sizes: height and width of each level.
        reference: per cross-attention layer the reference's keys and values, each (B or 1, S, n, C); None: text only.
        reference_keep: (B or 1, S, n) bool, False at padding tokens; None when all count.
        word_maps, self_maps: recorders of the pass under way, or None.
        text_cache: layer -> text keys and values of the pass under way, filled at its first step; None computes anew.
        stop_after: cross-attention layer after which the pass ends with `GuidancePassDone`; None for never.
        resize_mask: (masks, size) -> masks, brings the mask to a layer's height and width.
    """

    def __init__(self, sizes: list[Size], layers: int):
        self.sizes = sizes
        self.layers = layers
        self.reference: list[LayerKeysValues] | None = None
        self.reference_keep: torch.Tensor | None = None
        self.word_maps: WordMaps | None = None
        self.self_maps: SelfMaps | None = None
        self.text_cache: dict[int, LayerKeysValues] | None = None
        self.stop_after: int | None = None
        self.resize_mask = resize
        self._masks: torch.Tensor | None = None
        self._resized: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def masks(self) -> torch.Tensor | None:
        """(B, S, G, g) guidance masks times strengths, or one for each layer, (B, S, layers, G, g); None is 1
        everywhere (training)."""
        return self._masks

    @masks.setter
    def masks(self, masks: torch.Tensor | None) -> None:
        self._masks = masks
        self._resized = {}

    def masks_at(self, size: Size, layer: int) -> torch.Tensor:
        """The masks at a layer's size, (B, S, 1, N, 1), computed once for all layers that share them."""
        per_layer = self._masks.dim() == 5
        key = (*size, layer) if per_layer else size
        if key not in self._resized:
            masks = self._masks[:, :, layer] if per_layer else self._masks
            self._resized[key] = rearrange(self.resize_mask(masks, size), "b s h w -> b s 1 (h w) 1")
        return self._resized[key]

    def text_only(self) -> None:
        """Back to plain text cross-attention."""
        self.reference = self.reference_keep = self.word_maps = self.self_maps = self.stop_after = None
        self.masks = None


def reference_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor | None, masks: torch.Tensor | None
) -> torch.Tensor:
    """Sum over subjects of M_i * attention_i.

    Args:
        query: (B, H, N, d).
        keys, values: (B or 1, S, n, C).
        keep: (B or 1, S, n) bool or None.
        masks: (B, S, 1, N, 1) or None.

    Returns:
        (B, H, N, d).
    """
    batch, heads, positions, width = query.shape
    subjects = keys.shape[1]
    keys = rearrange(keys, "b s n (k d) -> b s k n d", k=heads).expand(batch, -1, -1, -1, -1)
    values = rearrange(values, "b s n (k d) -> b s k n d", k=heads).expand(batch, -1, -1, -1, -1)
    bias = None if keep is None else rearrange(keep.expand(batch, -1, -1), "b s n -> (b s) 1 1 n")
    out = F.scaled_dot_product_attention(
        query.unsqueeze(1).expand(-1, subjects, -1, -1, -1).reshape(batch * subjects, heads, positions, width),
        rearrange(keys, "b s k n d -> (b s) k n d"),
        rearrange(values, "b s k n d -> (b s) k n d"),
        attn_mask=bias,
    )
    out = rearrange(out, "(b s) k n d -> b s k n d", s=subjects)
    if masks is not None:
        out = out * masks.to(out.dtype)
    return out.sum(dim=1)


class SelfAttentionProcessor:
    """Stock self-attention that hands its queries and keys to the recorder of the guidance pass."""

    def __init__(self, context: AttentionContext, level: int):
        self.context = context
        self.level = level

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) to (B, N, C)."""
        query, key, value = (
            rearrange(project(hidden_states), "b n (k d) -> b k n d", k=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        recorder = self.context.self_maps
        if recorder is not None:
            recorder.add(query, key, attn.scale, self.context.sizes[self.level], self.level)
        out = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b k n d -> b n (k d)")))


class CrossAttentionProcessor:
    """Text attention plus the masked attention to the references."""

    def __init__(self, context: AttentionContext, layer: int, level: int):
        self.context = context
        self.layer = layer
        self.level = level

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) and text (B, T, c) to (B, N, C)."""
        context = self.context
        query = rearrange(attn.to_q(hidden_states), "b n (k d) -> b k n d", k=attn.heads)
        key, value = self._text(attn, encoder_hidden_states)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[2], query.shape[0])
            attention_mask = rearrange(attention_mask, "(b k) q t -> b k q t", k=attn.heads)
        size = context.sizes[self.level]
        if context.word_maps is not None:
            context.word_maps.add(query, key, attn.scale, size, self.level)
        if context.stop_after == self.layer:
            raise GuidancePassDone
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=attn.scale)
        if context.reference is not None:
            keys, values = (tensor.to(query.dtype) for tensor in context.reference[self.layer])
            masks = None if context.masks is None else context.masks_at(size, self.layer)
            out = out + reference_attention(query, keys, values, context.reference_keep, masks)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b k n d -> b n (k d)")))

    def _text(self, attn, text: torch.Tensor) -> LayerKeysValues:
        """Keys and values (B, H, T, d) of the text, which never change over the steps of a call."""
        cache = self.context.text_cache
        if cache is not None and self.layer in cache:
            return cache[self.layer]
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        key, value = (
            rearrange(project(text), "b t (k d) -> b k t d", k=attn.heads) for project in (attn.to_k, attn.to_v)
        )
        if cache is not None:
            cache[self.layer] = (key, value)
        return key, value


@contextmanager
def installed(unet, latent_size: Size) -> Iterator[AttentionContext]:
    """Install the processors on a stock U-Net for a while; whatever happens, it gets its own ones back.

    Args:
        unet: diffusers' UNet2DConditionModel (or FSDP / DDP's inner module).
        latent_size: height and width of the latents, from which every layer's h x w follows.

    Yields:
        the context through which references, masks and recorders are set.

    Raises:
        ValueError: an attention layer of the U-Net is not of the plain kind SD v1.5 and SDXL have.
    """
    before = dict(unet.attn_processors)
    names = attention_names(unet)
    crosses = cross_attention_names(unet)
    if not crosses or len(names) != len(before):
        raise ValueError("This U-Net has no text cross-attention layers that a reference could be attached to.")
    for name in names:
        module = unet.get_submodule(name)
        if module.residual_connection or module.spatial_norm is not None or module.group_norm is not None:
            raise ValueError(f"The attention layer {name} is not of the kind that SD v1.5 and SDXL have.")
    context = AttentionContext(level_sizes(latent_size, len(unet.config.down_block_types)), len(crosses))
    layer = {name: index for index, name in enumerate(crosses)}
    processors = {
        f"{name}.processor": (
            CrossAttentionProcessor(context, layer[name], level_of(unet, name))
            if name in layer
            else SelfAttentionProcessor(context, level_of(unet, name))
        )
        for name in names
    }
    try:
        unet.set_attn_processor(processors)
        yield context
    finally:
        unet.set_attn_processor(before)
