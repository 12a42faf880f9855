"""The backbone of SD v1.5 and SDXL: diffusers' stock U-Net with the second attention on its own seam.

Shapes: B images, S subjects, G rows of references, T text tokens, n reference tokens, H heads, N = h * w positions,
d channels of a head, C = H * d, (G, g) the mask's grid.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange

from realcustom.guidance.attention_maps import Size, WordMaps, resize
from realcustom.models.attention import LayerKeysValues, LayerReference, attend, reference_attention
from realcustom.models.backbone import Branch, GuidancePassDone, joined

KEPT_TEXTS = (
    4  # combinations of prompts whose keys and values are kept: guidance, generation, with and without negative
)
_claiming = threading.Lock()


def attention_names(unet) -> list[str]:
    """Names of all attention modules that take a processor, in running order: down blocks, mid block, up blocks."""
    names = [key.removesuffix(".processor") for key in unet.attn_processors]
    stages = ("down_blocks", "mid_block", "up_blocks")
    return [name for stage in stages for name in names if name.startswith(stage)]


def cross_attention_names(unet) -> list[str]:
    """Names of the cross-attention modules in running order."""
    return [name for name in attention_names(unet) if name.endswith("attn2")]


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


@dataclass(frozen=True)
class LayerInputs:
    """What one pass gives to one cross-attention layer.

    Attributes:
        size: the layer's height and width.
        text: the text's keys and values (B, H, T, d); None: made of the text the U-Net is given.
        references: one for each branch, all of equally many rows; None where a branch sees none. Empty: no branch does.
        words: takes the target words' maps, or None.
    """

    size: Size
    text: LayerKeysValues | None = None
    references: tuple[LayerReference | None, ...] = ()
    words: WordMaps | None = None


class SelfAttentionProcessor:
    """Stock self-attention that keeps its queries and keys where the guidance mask wants them.

    Attributes:
        level: U-Net level.
        keeps: whether to keep them.
        kept: query, key (B, H, N, d) and scale of the last pass.
    """

    def __init__(self, level: int):
        self.level = level
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

    What a pass changes lies on the processor: compiled code of one layer then serves all of its shape.

    Attributes:
        level: U-Net level.
        inputs: of the pass; None: plain text attention.
        text: keys and values made in the last pass, for those to come.
        is_last: whether the pass ends here with `GuidancePassDone`.
    """

    def __init__(self, level: int):
        self.level = level
        self.inputs: LayerInputs | None = None
        self.text: LayerKeysValues | None = None
        self.is_last = False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        """(B, N, C) and text (B, T, c) to (B, N, C)."""
        inputs = self.inputs
        flat = attn.to_q(hidden_states)
        query = rearrange(flat, "b n (k d) -> b k n d", k=attn.heads)
        if inputs is None or inputs.text is None:
            # Made within the U-Net's own pass, so that hooks which bring weights in or scale a LoRA have done so.
            key, value = self.text = text_keys_values(attn, encoder_hidden_states)
        else:
            key, value = inputs.text
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[2], query.shape[0])
            attention_mask = rearrange(attention_mask, "(b k) q t -> b k q t", k=attn.heads)
        if inputs is not None and inputs.words is not None:
            inputs.words.add(query, key, attn.scale, inputs.size, self.level)
        if self.is_last:
            raise GuidancePassDone
        out = rearrange(attend(query, key, value, attention_mask, attn.scale), "b k n d -> b n (k d)")
        if inputs is not None and inputs.references:
            out = _with_references(out, flat, attn.heads, inputs.references)
        return attn.to_out[1](attn.to_out[0](out))


def _with_references(
    out: torch.Tensor, query: torch.Tensor, heads: int, references: Sequence[LayerReference | None]
) -> torch.Tensor:
    """Text attention (B, N, C) plus, for the rows of each branch, the attention to its references."""
    rows = out.shape[0] // len(references)
    parts = zip(out.split(rows), query.split(rows), references, strict=True)
    return torch.cat(
        [
            part if reference is None else part + reference_attention(queries, heads, reference)
            for part, queries, reference in parts
        ]
    )


class UNetBackbone:
    """A stock U-Net behind the seam; see `realcustom.models.backbone.Backbone`.

    Attributes:
        unet: diffusers' UNet2DConditionModel (or FSDP's and DDP's inner module).
        options: passed to every U-Net call (`cross_attention_kwargs`, `timestep_cond`).

    Raises:
        ValueError: an attention layer is not of the plain kind SD v1.5 and SDXL have.
    """

    def __init__(self, unet, options: dict | None = None):
        self.unet, self.options = unet, dict(options or {})
        self._names = attention_names(unet)
        crosses = cross_attention_names(unet)
        if not crosses or len(self._names) != len(unet.attn_processors):
            raise ValueError("This U-Net has no text cross-attention layers that a reference could be attached to.")
        for name in self._names:
            module = unet.get_submodule(name)
            if module.residual_connection or module.spatial_norm is not None or module.group_norm is not None:
                raise ValueError(f"The attention layer {name} is not of the kind that SD v1.5 and SDXL have.")
        self.widths = tuple(unet.get_submodule(name).to_q.out_features for name in crosses)
        self.word_levels = frozenset(level_of(unet, name) for name in crosses)
        self.self_levels = frozenset(level_of(unet, name) for name in self._names if name not in crosses)
        self._before: dict = {}
        self._processors: dict[str, CrossAttentionProcessor | SelfAttentionProcessor] = {}
        self._texts: dict[tuple[int, ...], tuple[Sequence, list[LayerKeysValues]]] = {}

    def text_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per cross-attention layer the weights of the text's keys and values, each (C, c)."""
        modules = [self.unet.get_submodule(name) for name in cross_attention_names(self.unet)]
        return [(module.to_k.weight, module.to_v.weight) for module in modules]

    @property
    def _cross(self) -> list[CrossAttentionProcessor]:
        return [one for one in self._processors.values() if isinstance(one, CrossAttentionProcessor)]

    @property
    def _selves(self) -> list[SelfAttentionProcessor]:
        return [one for one in self._processors.values() if isinstance(one, SelfAttentionProcessor)]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Our processors on the U-Net for a while; whatever happens, it gets its own ones back.

        Raises:
            ValueError: they are there already, from a call that has not ended.
        """
        with _claiming:
            before = dict(self.unet.attn_processors)
            if any(isinstance(one, (CrossAttentionProcessor, SelfAttentionProcessor)) for one in before.values()):
                raise ValueError(
                    "This model is in the middle of another call: wait until it has ended, or load the model again "
                    "for calls at the same time."
                )
            self._before = before
            kinds = {True: CrossAttentionProcessor, False: SelfAttentionProcessor}
            self._processors = {name: kinds[name.endswith("attn2")](level_of(self.unet, name)) for name in self._names}
            self.unet.set_attn_processor({f"{name}.processor": one for name, one in self._processors.items()})
        try:
            yield
        finally:
            self.unet.set_attn_processor(dict(before))
            self._before, self._processors, self._texts = {}, {}, {}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within `installed`, the U-Net as it was before, for another user of it."""
        self.unet.set_attn_processor(dict(self._before))
        try:
            yield
        finally:
            self.unet.set_attn_processor({f"{name}.processor": one for name, one in self._processors.items()})

    def mask_grid(self, latents: torch.Tensor) -> Size:
        """The size of the largest cross-attention map."""
        return self._sizes(latents)[min(self.word_levels)]

    def thinned(self, latents: torch.Tensor, stride: int) -> torch.Tensor:
        """Every n-th value, not a mean: a mean would also average the noise away that the timestep tells of."""
        return latents[..., ::stride, ::stride]

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, branches: Sequence[Branch], maps_only: bool = False
    ) -> list[torch.Tensor]:
        """One pass of all branches; see `Backbone.predict`. latents (B, C, h, w)."""
        recorder = branches[-1].recorder
        sizes = self._sizes(latents)
        known = self._texts.get(tuple(id(branch.text) for branch in branches))
        self._place(branches, sizes, None if known is None else known[1])
        for processor in self._selves:
            processor.keeps = recorder is not None and processor.level in recorder.self_levels
            processor.kept = None
        self._cross[-1].is_last = maps_only
        text = joined([branch.text for branch in branches])
        batch = latents.shape[0]
        latents = latents if len(branches) == 1 else torch.cat([latents] * len(branches))
        if timestep.dim() and len(branches) > 1:
            timestep = timestep.repeat(len(branches))
        control = branches[0].control
        residuals = {} if control is None else control.residuals(latents, timestep, text)
        try:
            out = self.unet(
                latents,
                timestep,
                encoder_hidden_states=text.embeds,
                added_cond_kwargs=text.added,
                return_dict=False,
                **residuals,
                **self.options,
            )[0]
        except GuidancePassDone:
            out = None
        if known is None and not torch.is_grad_enabled():
            self._keep_texts(branches)
        if recorder is not None:
            self._hand_over(recorder, sizes)
        return [] if out is None else list(out.split(batch))

    def _sizes(self, latents: torch.Tensor) -> list[Size]:
        return level_sizes(tuple(latents.shape[-2:]), len(self.unet.config.down_block_types))

    def _place(self, branches: Sequence[Branch], sizes: list[Size], texts: list[LayerKeysValues] | None) -> None:
        """Give every cross-attention layer its part of the pass."""
        recorder = branches[-1].recorder
        masks = [_LayerMasks(branch) for branch in branches]
        sees = any(branch.references is not None for branch in branches)
        for index, processor in enumerate(self._cross):
            size = sizes[processor.level]
            references = tuple(
                None if branch.references is None else _layer_reference(branch.references, index, mask.at(size))
                for branch, mask in zip(branches, masks, strict=True)
            )
            processor.inputs = LayerInputs(
                size=size,
                text=None if texts is None else texts[index],
                references=references if sees else (),
                words=None if recorder is None else recorder.words,
            )

    def _keep_texts(self, branches: Sequence[Branch]) -> None:
        """Keys and values of the texts, which no step changes, for the passes to come with the same texts."""
        texts = [branch.text for branch in branches]
        self._texts[tuple(map(id, texts))] = (texts, [processor.text for processor in self._cross])
        while len(self._texts) > KEPT_TEXTS:
            self._texts.pop(next(iter(self._texts)))
        for processor in self._cross:
            processor.text = None

    def _hand_over(self, recorder, sizes: list[Size]) -> None:
        for processor in self._selves:
            if processor.kept is not None:
                recorder.add_self(*processor.kept, sizes[processor.level], processor.level)
                processor.kept = None


class _LayerMasks:
    """A branch's masks at the sizes of the layers, each made once a pass: (B, S, N, 1)."""

    def __init__(self, branch: Branch):
        self._masks = branch.masks
        if self._masks is not None and branch.references is not None and branch.references.layers[0][0].shape[1] == 1:
            self._masks = self._masks.sum(dim=1, keepdim=True)  # one reference for all subjects
        self._at: dict[Size, torch.Tensor] = {}

    def at(self, size: Size) -> torch.Tensor | None:
        if self._masks is None:
            return None
        if size not in self._at:
            self._at[size] = rearrange(resize(self._masks, size), "b s h w -> b s (h w) 1")
        return self._at[size]


def _layer_reference(references, index: int, masks: torch.Tensor | None) -> LayerReference:
    key, value = references.layers[index]
    return LayerReference(key, value, references.bias, masks)
