"""The second attention of RealCustom, on the stock U-Net's own seam (RealCustom Eq. 4 and 12).

    out = Softmax(Q K_text^T / sqrt(d)) V_text + sum_i M_i * Softmax(Q K_i^T / sqrt(d)) V_i

Shapes: B images, S subjects, G rows of references (each serves B / G images), T text tokens, n reference tokens,
H heads, N = h * w positions, d channels of a head, C = H * d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange

from realcustom.guidance.attention_maps import Size, WordMaps, resize

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


def text_keys_values(attn, text: torch.Tensor) -> LayerKeysValues:
    """Keys and values (B, H, T, d) of a cross-attention module for text (B, T, c)."""
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    return tuple(rearrange(project(text), "b t (k d) -> b k t d", k=attn.heads) for project in (attn.to_k, attn.to_v))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, scale: float = 0.0
) -> torch.Tensor:
    """Softmax(scale * Q K^T + bias) V for (B, H, N, d) queries and (B, H, n, d) keys and values.

    Fused, but where a CPU is to compute gradients: there the plain products train a third faster.

    Args:
        bias: broadcast to (B, H, N, n); bool, False where nothing is seen, or float; None for none.
        scale: 0 for 1 / sqrt(d).
    """
    scale = scale or query.shape[-1] ** -0.5
    if query.device.type != "cpu" or not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    logits = (query * scale) @ key.transpose(-1, -2)
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(dim=-1).to(value.dtype) @ value


def reference_attention(
    query: torch.Tensor,
    heads: int,
    keys_values: LayerKeysValues,
    keep: torch.Tensor | None,
    masks: torch.Tensor | None,
) -> torch.Tensor:
    """Sum over subjects of M_i * attention_i.

    The images that share a row of references line up as more queries of one attention: no key or value is repeated.

    Args:
        query: (B, N, C).
        heads: H.
        keys_values: two of (G, S, n, C).
        keep: (1 or G, S, n) bool, False at padding, or float, added to the logits; None for neither.
        masks: (B, S, N, 1) or None.

    Returns:
        (B, N, C).
    """
    keys, values = (rearrange(tensor, "g s n (k d) -> (g s) k n d", k=heads) for tensor in keys_values)
    groups, subjects = keys_values[0].shape[:2]
    images = query.shape[0] // groups
    query = rearrange(query, "(g b) n (k d) -> g 1 k (b n) d", g=groups, k=heads).expand(-1, subjects, -1, -1, -1)
    bias = None if keep is None else rearrange(keep.expand(groups, -1, -1), "g s n -> (g s) 1 1 n")
    if bias is not None and bias.is_floating_point():
        bias = bias.to(query.dtype)
    out = attend(rearrange(query, "g s k n d -> (g s) k n d"), keys, values, bias)
    out = rearrange(out, "(g s) k (b n) d -> (g b) s n (k d)", s=subjects, b=images)
    return (out if masks is None else out * masks).sum(dim=1)


class SelfAttentionProcessor:
    """Stock self-attention that keeps its queries and keys where the guidance mask wants them.

    Attributes:
        level, size: U-Net level and its height and width.
        keeps: whether to keep them.
        kept: query, key (B, H, N, d) and scale of the last pass.
    """

    def __init__(self, level: int, size: Size):
        self.level = level
        self.size = size
        self.keeps = False
        self.kept: tuple[torch.Tensor, torch.Tensor, float] | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) to (B, N, C)."""
        query, key, value = (
            rearrange(project(hidden_states), "b n (k d) -> b k n d", k=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self.keeps:
            self.kept = (query, key, attn.scale)
        out = attend(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b k n d -> b n (k d)")))


class CrossAttentionProcessor:
    """Text attention plus the masked attention to the references.

    What a pass changes lies on the processor, as tensors: compiled code of one layer then serves all of its shape.

    Attributes:
        level, size: U-Net level and its height and width.
        text: the text's keys and values (B, H, T, d); None: made of the text the U-Net is given.
        reference: keys and values (G, S, n, C); None: text only.
        reference_keep: (1 or G, S, n) bool or float or None, as `reference_attention` takes it.
        masks: (R, S, N, 1), the references act on the first R of B images; None: on all, with weight 1.
        word_maps: recorder of the target words' maps, or None.
        is_last: whether the pass ends here with `GuidancePassDone`.
    """

    def __init__(self, level: int, size: Size):
        self.level = level
        self.size = size
        self.text: LayerKeysValues | None = None
        self.reference: LayerKeysValues | None = None
        self.reference_keep: torch.Tensor | None = None
        self.masks: torch.Tensor | None = None
        self.word_maps: WordMaps | None = None
        self.is_last = False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) and text (B, T, c) to (B, N, C)."""
        flat = attn.to_q(hidden_states)
        query = rearrange(flat, "b n (k d) -> b k n d", k=attn.heads)
        key, value = text_keys_values(attn, encoder_hidden_states) if self.text is None else self.text
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[2], query.shape[0])
            attention_mask = rearrange(attention_mask, "(b k) q t -> b k q t", k=attn.heads)
        if self.word_maps is not None:
            self.word_maps.add(query, key, attn.scale, self.size, self.level)
        if self.is_last:
            raise GuidancePassDone
        out = attend(query, key, value, attention_mask, attn.scale)
        out = rearrange(out, "b k n d -> b n (k d)")
        if self.reference is not None:
            rows = flat.shape[0] if self.masks is None else self.masks.shape[0]
            keys_values = tuple(tensor.to(flat.dtype) for tensor in self.reference)
            seen = reference_attention(flat[:rows], attn.heads, keys_values, self.reference_keep, self.masks)
            out = torch.cat([out[:rows] + seen, out[rows:]]) if rows < out.shape[0] else out + seen
        return attn.to_out[1](attn.to_out[0](out))


class AttentionContext:
    """The processors of one U-Net while they are installed, set for a pass all at once.

    Attributes:
        unet: the U-Net.
        cross, own: processors of the cross- and self-attention layers in running order.
        resize_mask: (masks, size) -> masks, brings the mask to a layer's height and width.
    """

    def __init__(self, unet, sizes: list[Size]):
        names = attention_names(unet)
        self.unet = unet
        self._modules = [unet.get_submodule(name) for name in cross_attention_names(unet)]
        self.processors = {
            name: (CrossAttentionProcessor if name.endswith("attn2") else SelfAttentionProcessor)(level, sizes[level])
            for name, level in ((name, level_of(unet, name)) for name in names)
        }
        self.cross = [one for one in self.processors.values() if isinstance(one, CrossAttentionProcessor)]
        self.own = [one for one in self.processors.values() if isinstance(one, SelfAttentionProcessor)]
        self.resize_mask = resize
        self._sizes = sizes

    @property
    def sizes(self) -> list[Size]:
        """Height and width of each level."""
        return self._sizes

    @sizes.setter
    def sizes(self, sizes: list[Size]) -> None:
        self._sizes = sizes
        for processor in self.processors.values():
            processor.size = sizes[processor.level]

    def project_text(self, text: torch.Tensor) -> list[LayerKeysValues]:
        """Per cross-attention layer the keys and values of text (B, T, c), which no step changes."""
        return [text_keys_values(module, text) for module in self._modules]

    def _set(self, name: str, values: Sequence | None) -> None:
        for processor, value in zip(self.cross, values or [None] * len(self.cross), strict=True):
            setattr(processor, name, value)

    @property
    def text(self) -> list[LayerKeysValues]:
        """Per cross-attention layer the text's keys and values; None lets the layers make their own."""
        return [processor.text for processor in self.cross]

    @text.setter
    def text(self, layers: list[LayerKeysValues] | None) -> None:
        self._set("text", layers)

    @property
    def reference(self) -> list[LayerKeysValues]:
        """Per cross-attention layer the references' keys and values, each (G, S, n, C); None: text only."""
        return [processor.reference for processor in self.cross]

    @reference.setter
    def reference(self, layers: list[LayerKeysValues] | None) -> None:
        self._set("reference", layers)

    @property
    def masks(self) -> list[torch.Tensor]:
        """Set as (R, S, G, g) guidance masks times strengths for the first R images, or one for each layer,
        (R, S, layers, G, g), or None for 1 everywhere (training); read as each layer's own, (R, S, N, 1)."""
        return [processor.masks for processor in self.cross]

    @masks.setter
    def masks(self, masks: torch.Tensor | None) -> None:
        if masks is None:
            self._set("masks", None)
        elif masks.dim() == 5:
            self._set("masks", [self._at(masks[:, :, layer], one.size) for layer, one in enumerate(self.cross)])
        else:
            resized = {size: self._at(masks, size) for size in {one.size for one in self.cross}}
            self._set("masks", [resized[one.size] for one in self.cross])

    def _at(self, masks: torch.Tensor, size: Size) -> torch.Tensor:
        return rearrange(self.resize_mask(masks, size), "b s h w -> b s (h w) 1").to(self._modules[0].to_q.weight.dtype)

    @property
    def word_maps(self) -> WordMaps | None:
        """Recorder of the target words' maps of all layers."""
        return self.cross[0].word_maps

    @word_maps.setter
    def word_maps(self, recorder: WordMaps | None) -> None:
        self._set("word_maps", [recorder] * len(self.cross))

    def keep_references(self, keep: torch.Tensor | None) -> None:
        """Which reference tokens count, (1 or G, S, n), as `reference_attention` takes it; None: all alike."""
        self._set("reference_keep", [keep] * len(self.cross))

    def stop_after_maps(self) -> None:
        """End the coming passes at the last cross-attention layer with `GuidancePassDone`."""
        self.cross[-1].is_last = True

    def text_only(self) -> None:
        """Back to plain text cross-attention."""
        for name in ("text", "reference", "reference_keep", "masks", "word_maps"):
            self._set(name, None)
        self.cross[-1].is_last = False
        for processor in self.own:
            processor.keeps, processor.kept = False, None


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
    context = AttentionContext(unet, level_sizes(latent_size, len(unet.config.down_block_types)))
    processors = {f"{name}.processor": processor for name, processor in context.processors.items()}
    try:
        unet.set_attn_processor(processors)
        yield context
    finally:
        unet.set_attn_processor(before)
