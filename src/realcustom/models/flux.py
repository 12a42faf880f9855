"""The backbone of FLUX with UNO's references: text, image and references share one attention.

Everything happens at the stock transformer's own seams: what may see what is an additive bias of its attention mask,
and the attention that the guidance mask is made of is read from the inputs of its double blocks.

Shapes: B images, S subjects, R references, T text tokens, N = r * c image tokens, n reference tokens of all references,
L = T + N + n, D channels of a token, H heads, d channels of a head. The mask's grid is (r, c): one cell a token.
Levels are the double blocks, counted from the input.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange

from realcustom.guidance.attention_maps import Size
from realcustom.guidance.recorder import MaskRecorder
from realcustom.models.backbone import Branch, GuidancePassDone
from realcustom.models.uno import ReferenceTokens, grid_ids, velocity

TIME_SCALE = 1000  # of the schedulers' timesteps; the transformer takes times in [0, 1]
_claiming = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What sees what beyond the masks of image and references. All True is UNO as published.

    Attributes:
        references_see_references: of other subjects; a reference always sees itself and its subject's other images.
        references_see_image: the image under way, and with it what other references have left there.
        text_sees_references: text reads a reference as much as its mask's largest value lets any image token; the
            whole image reads the text.
    """

    references_see_references: bool = True
    references_see_image: bool = True
    text_sees_references: bool = True


@dataclass(frozen=True, kw_only=True)
class SubjectReferences:
    """References, and whose they are.

    Attributes:
        tokens: of all references.
        shares: (B or 1, R, S) how much reference r counts for subject s, 0 where it is not that subject's. A picture
            that shows several subjects counts for each of them.
        sight: what sees what.
    """

    tokens: ReferenceTokens
    shares: torch.Tensor
    sight: Sight = field(default_factory=Sight)


def reference_bias(
    references: SubjectReferences, masks: torch.Tensor | None, text: int, image: int
) -> torch.Tensor | None:
    """What the attention adds to its logits: log(mask * strength) from image tokens to a reference's.

    Args:
        masks: (B, S, r, c) from 0 on, strengths multiplied in; None is 1 everywhere.
        text, image: T and N.

    Returns:
        (B or 1, 1, L, L) float32, minus infinity where nothing is seen; None where nothing is added.
    """
    shares, sight, counts = references.shares, references.sight, references.tokens.counts
    if masks is None:
        seen = shares.sum(dim=2, keepdim=True).expand(-1, -1, image)
    else:
        seen = torch.einsum("brs,bsn->brn", shares.to(masks).expand(masks.shape[0], -1, -1), masks.flatten(2))
    if sight == Sight() and bool((seen == 1).all()):
        return None
    batch, total = seen.shape[0], text + image + sum(counts)
    visible = torch.ones(batch, total, total, device=seen.device)
    bounds = list(accumulate(counts, initial=text + image))
    spans = [slice(low, high) for low, high in pairwise(bounds)]
    related = torch.einsum("brs,bqs->brq", shares, shares) > 0
    for index, span in enumerate(spans):
        factor = seen[:, index]
        visible[:, text : text + image, span] = factor[:, :, None]
        reach = factor.amax(dim=1) if sight.text_sees_references else torch.zeros_like(factor[:, 0])
        visible[:, :text, span] = reach[:, None, None]
        if not sight.references_see_image:
            visible[:, span, text : text + image] = 0
        for other, keys in enumerate(spans):
            if other != index and not sight.references_see_references:
                visible[:, span, keys] = related[:, index, other].float()[:, None, None]
    return visible.log()[:, None]


def used_references(
    references: SubjectReferences | None, masks: torch.Tensor | None
) -> tuple[SubjectReferences | None, torch.Tensor | None]:
    """Without the references that no image sees anywhere: a strength of 0, or an empty mask.

    Returns:
        the others, or None where there are none, and the masks.
    """
    if references is None or masks is None:
        return references, masks
    shares = references.shares.to(masks)
    wanted = torch.einsum("brs,bs->r", shares.expand(masks.shape[0], -1, -1), masks.amax(dim=(2, 3))) > 0
    kept = wanted.nonzero().flatten().tolist()
    if len(kept) == len(wanted):
        return references, masks
    if not kept:
        return None, None
    tokens = references.tokens
    parts = [tokens.tokens.split(tokens.counts, dim=1)[index] for index in kept]
    ids = [tokens.ids.split(tokens.counts)[index] for index in kept]
    counts = tuple(tokens.counts[index] for index in kept)
    fewer = ReferenceTokens(tokens=torch.cat(parts, dim=1), ids=torch.cat(ids), counts=counts)
    return replace(references, tokens=fewer, shares=references.shares[:, kept]), masks


class BlockReader:
    """Reads the attention of one double block from its inputs, where a recorder wants it.

    Attributes:
        level: the block's number.
        recorder: takes the maps; None reads nothing.
        size: (r, c) of the pass.
        is_last: whether the pass ends here with `GuidancePassDone`.
    """

    def __init__(self, level: int):
        self.level = level
        self.recorder: MaskRecorder | None = None
        self.size: Size = (0, 0)
        self.is_last = False

    def __call__(self, attn, args, kwargs) -> None:
        """A forward pre-hook of the block's attention."""
        if self.recorder is None:
            return
        words, selves = self.recorder.words, self.level in self.recorder.self_levels
        if selves or words.levels is None or self.level in words.levels:
            query, key, text_key = image_attention(attn, self.size[0] * self.size[1], **kwargs)
            scale = attn.head_dim**-0.5
            words.add(query, text_key, scale, self.size, self.level)
            if selves:
                self.recorder.add_self(query, key, scale, self.size, self.level)
        if self.is_last:
            raise GuidancePassDone


def image_attention(
    attn, image: int, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, image_rotary_emb, **_
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query and key of the image's tokens (B, H, N, d), and the text's key (B, H, T, d), as the block itself has them.

    Args:
        attn: the joint attention of a double block.
        image: N; the first of `hidden_states`.
    """
    text = encoder_hidden_states.shape[1]
    hidden_states = hidden_states[:, :image]
    query, key, text_key = (
        norm(project(states).unflatten(-1, (-1, attn.head_dim)))
        for norm, project, states in (
            (attn.norm_q, attn.to_q, hidden_states),
            (attn.norm_k, attn.to_k, hidden_states),
            (attn.norm_added_k, attn.add_k_proj, encoder_hidden_states),
        )
    )
    rotations = [part[text : text + image] for part in image_rotary_emb], [part[:text] for part in image_rotary_emb]
    query, key = (apply_rotary_emb(part, rotations[0], sequence_dim=1) for part in (query, key))
    text_key = apply_rotary_emb(text_key, rotations[1], sequence_dim=1)
    return tuple(rearrange(part, "b n k d -> b k n d") for part in (query, key, text_key))


class FluxBackbone:
    """diffusers' FluxTransformer2DModel behind the seam; see `realcustom.models.backbone.Backbone`.

    Attributes:
        transformer: the network, with or without LoRAs.
        grid: (r, c) of the images under way; latents are tokens (B, N, D).
        options: passed to every call of the transformer (`joint_attention_kwargs`).
    """

    def __init__(self, transformer, grid: Size, options: dict | None = None):
        self.transformer, self.grid, self.options = transformer, tuple(grid), dict(options or {})
        self.widths: tuple[int, ...] = ()
        self.word_levels = self.self_levels = frozenset(range(len(transformer.transformer_blocks)))
        self._readers: list[BlockReader] = []
        self._grids: dict[int, Size] = {self.grid[0] * self.grid[1]: self.grid}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Readers on the double blocks for a while; whatever happens, they are taken off again.

        Raises:
            ValueError: there are some already, from a call that has not ended.
        """
        blocks = self.transformer.transformer_blocks
        with _claiming:
            if any(isinstance(hook, BlockReader) for hook in blocks[0].attn._forward_pre_hooks.values()):
                raise ValueError(
                    "This model is in the middle of another call: wait until it has ended, or load the model again "
                    "for calls at the same time."
                )
            self._readers = [BlockReader(level) for level in range(len(blocks))]
            handles = [
                block.attn.register_forward_pre_hook(reader, with_kwargs=True)
                for block, reader in zip(blocks, self._readers, strict=True)
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._readers = []

    def mask_grid(self, latents: torch.Tensor) -> Size:
        """One cell a token."""
        return self.grid

    def thinned(self, latents: torch.Tensor, stride: int) -> torch.Tensor:
        """Tokens of the latents with every n-th row and column of tokens; to the transformer a smaller image."""
        grid = rearrange(latents, "b (h w) d -> b d h w", h=self.grid[0])[..., ::stride, ::stride]
        size = tuple(grid.shape[-2:])
        self._grids[size[0] * size[1]] = size
        return rearrange(grid, "b d h w -> b (h w) d")

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, branches: Sequence[Branch], maps_only: bool = False
    ) -> list[torch.Tensor]:
        """One pass a branch, since they differ in length; see `Backbone.predict`. latents (B, N, D)."""
        times = (timestep / TIME_SCALE).expand(latents.shape[0])
        return [
            prediction
            for branch in branches
            if (prediction := self._branch(latents, times, branch, maps_only and branch is branches[-1])) is not None
        ]

    def _branch(
        self, latents: torch.Tensor, times: torch.Tensor, branch: Branch, maps_only: bool
    ) -> torch.Tensor | None:
        grid = self._grids[latents.shape[1]]
        references, masks = used_references(branch.references, branch.masks)
        options = dict(self.options)
        if references is not None:
            bias = reference_bias(references, masks, branch.text.embeds.shape[1], latents.shape[1])
            if bias is not None:
                joint = options.get("joint_attention_kwargs") or {}
                options["joint_attention_kwargs"] = {**joint, "attention_mask": bias.to(latents)}
        self._read(branch.recorder, grid, maps_only)
        try:
            return velocity(
                self.transformer,
                latents,
                grid_ids(grid, device=latents.device),
                times,
                branch.text.embeds,
                {**(branch.text.added or {}), **options},
                None if references is None else references.tokens,
            )
        except GuidancePassDone:
            return None

    def _read(self, recorder: MaskRecorder | None, grid: Size, maps_only: bool) -> None:
        """Tell every double block what is wanted of it."""
        wanted: set[int] = set()
        if recorder is not None:
            levels = self.word_levels if recorder.words.levels is None else recorder.words.levels
            wanted = {*levels, *recorder.self_levels} & self.word_levels
        for reader in self._readers:
            reader.recorder, reader.size = recorder, grid
            reader.is_last = maps_only and reader.level == max(wanted)
