"""UNO's training objective: the velocity of the target's latents, with the references' clean latents beside it.

Shapes: B samples, C latent channels, (h, w) the target's latents, N tokens, D = 4 * C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors.torch import save_file

from realcustom.encoders.reference_latents import encode
from realcustom.models.flow import flow_times, image_tokens, interpolated, shift_exponent
from realcustom.models.uno import Place, diagonal, grid_ids, pack, patch_grid, reference_tokens, velocity
from realcustom.models.uno_lora import SharedLora

from .base import tokenize
from .config import Batch, Feed, Modules, Parts
from .feeding import Source, feed_batches

TABLE_STEPS = 999  # the release draws among 1000 times
TRAINING_GUIDANCE = 1.0  # what the release tells a distilled transformer while it trains; it samples with 4


@dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """What one step of UNO's training reads.

    Attributes:
        latents: (B, C, h, w) of the targets.
        references: per slot (B, C, h', w'), clean.
        text: (B, T, c).
        pooled: (B, c') pooled text.
    """

    latents: torch.Tensor
    references: Sequence[torch.Tensor] = field(default_factory=tuple)
    text: torch.Tensor
    pooled: torch.Tensor


def time_table(resolution: int) -> torch.Tensor:
    """(1000,) times from 1 to 0, shifted by the true number of tokens of a square image of that side in pixels."""
    return flow_times(TABLE_STEPS, shift_exponent(image_tokens(resolution, resolution)))


def draw_times(table: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) of the table's times, all equally likely."""
    index = torch.randint(len(table), (count,), generator=generator, device=generator.device)
    return table[index.to(table.device)]


def guidance_condition(transformer, count: int, device: torch.device) -> dict[str, Any]:
    """`guidance` of a distilled transformer in training; nothing for one without."""
    if not transformer.config.guidance_embeds:
        return {}
    return {"guidance": torch.full((count,), TRAINING_GUIDANCE, device=device)}


def flow_prediction(
    transformer, batch: FlowBatch, noise: torch.Tensor, times: torch.Tensor, place: Place = diagonal
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted velocity and the true one, noise minus image, both (B, N, D).

    Args:
        noise: (B, N, D).
        times: (B,).
        place: where the references stand.
    """
    grid, image = patch_grid(batch.latents), pack(batch.latents)
    conditions: Mapping[str, Any] = {
        "pooled_projections": batch.pooled,
        **guidance_condition(transformer, len(image), image.device),
    }
    prediction = velocity(
        transformer,
        interpolated(image, noise, times).to(image.dtype),
        grid_ids(grid, device=image.device),
        times.to(image.dtype),
        batch.text,
        conditions,
        reference_tokens(batch.references, grid, place),
    )
    return prediction, noise - image


def flow_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Plain mean squared error in float32."""
    return F.mse_loss(prediction.float(), target.float())


@dataclass(frozen=True, kw_only=True)
class UnoLoss:
    """UNO's objective: (modules, batch, generator) -> (loss, metrics), "lora" trained, all else frozen.

    modules: transformer, lora, vae, text_encoder (CLIP), text_encoder_2 (T5).
    batch: as `realcustom.data.uno_rows.UnoRows` makes it, tokens by "tokens" (CLIP) and "tokens_2" (T5).

    The LoRA stays on the transformer between the steps, because gradient checkpointing runs it once more backwards.

    table: (times,) drawn from, `time_table`.
    empty: name -> (T,) tokens of the empty prompt.
    text_dropout: share of the prompts that are replaced by it; references are never dropped.
    place: where references stand.
    """

    table: torch.Tensor
    empty: Mapping[str, torch.Tensor]
    text_dropout: float = 0.1
    place: Place = diagonal

    def __call__(
        self, modules: Modules, batch: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        count, device = len(batch["images"]), batch["images"].device
        lost = torch.rand(count, generator=generator, device=device) <= self.text_dropout
        tokens = {
            name: torch.where(lost[:, None], self.empty[name].to(device), batch[name])
            for name in ("tokens", "tokens_2")
        }
        sample = self._encoded(modules, batch, tokens)
        target = pack(sample.latents)
        noise = torch.randn(target.shape, generator=generator, device=device)
        times = draw_times(self.table.to(device), count, generator)
        loss = flow_loss(*flow_prediction(modules["transformer"], sample, noise, times, self.place))
        return loss, {"mse": loss.detach()}

    @torch.no_grad()
    def _encoded(self, modules: Modules, batch: Batch, tokens: Mapping[str, torch.Tensor]) -> FlowBatch:
        """Pictures as posterior means, in float32 whatever the autocast; the release draws samples."""
        slots = sorted((name for name in batch if name.startswith("reference_")), key=lambda name: int(name[10:]))
        with torch.autocast(batch["images"].device.type, enabled=False):
            latents, *references = (encode(modules["vae"], batch[name]).float() for name in ("images", *slots))
        return FlowBatch(
            latents=latents,
            references=references,
            text=modules["text_encoder_2"](input_ids=tokens["tokens_2"]).last_hidden_state.float(),
            pooled=modules["text_encoder"](input_ids=tokens["tokens"]).pooler_output.float(),
        )


def staged_batches(feed: Feed, *, stages: Sequence[tuple[Source, int | None]], workers: int = 0) -> Iterator[Batch]:
    """Endless batches of one source after the other; with `functools.partial` a `Parts.data`.

    Args:
        feed: the position, counted over all stages.
        stages: sources, each with its number of batches of one process; None is all that follow.
    """
    start = feed.start
    for source, count in stages:
        if count is not None and start >= count:
            start -= count
            continue
        batches = feed_batches(replace(feed, start=start), source, workers)
        yield from batches if count is None else islice(batches, count - start)
        start = 0


def uno_parts(
    base: Mapping[str, Any],
    lora: SharedLora,
    stages: Sequence[tuple[Source, int | None]],
    resolution: int,
    dtype: torch.dtype | None = None,
    workers: int = 0,
    **loss,
) -> Parts:
    """The parts of a UNO training: everything frozen but the LoRA.

    Args:
        base: a FluxPipeline's components.
        lora: trained.
        stages: as `staged_batches` takes them.
        resolution: side in pixels whose tokens shift the times.
        dtype: of the frozen transformer and text encoders; the autoencoder stays as it is. None changes nothing.
        loss: further arguments of `UnoLoss`.
    """
    names = ("transformer", "text_encoder", "text_encoder_2")
    if dtype is not None:
        for name in names:
            base[name].to(dtype)
    stack = ExitStack()
    stack.enter_context(lora.attached(base["transformer"]))
    empty = {
        name: torch.from_numpy(tokenize(base[tokenizer], [""])[0]).long()
        for name, tokenizer in (("tokens", "tokenizer"), ("tokens_2", "tokenizer_2"))
    }
    return Parts(
        trained={"lora": lora},
        frozen={name: base[name] for name in (*names, "vae")},
        loss=UnoLoss(table=time_table(resolution), empty=empty, **loss),
        data=partial(staged_batches, stages=stages, workers=workers),
        export=export_lora,
        close=stack.close,
    )


def export_lora(modules: Modules, folder: Path) -> None:
    """Write the LoRA as the release's `dit_lora.safetensors` and in diffusers' layout, both for any FluxPipeline."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in modules["lora"].released_state().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "dit_lora.safetensors")
    converted = FluxLoraLoaderMixin.lora_state_dict(dict(state))
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in converted.items()},
        folder / "pytorch_lora_weights.safetensors",
    )
