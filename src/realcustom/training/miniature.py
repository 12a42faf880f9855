"""Adapter training and export of the miniature: what its recipes have in common.

The reference encoders of the miniature are small and have no pretrained weights: they learn how subjects look
(`realcustom.training.appearance`). Then they can be frozen, as those of the real backbones always are: that makes the
adapter's training half as fast again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from realcustom.encoders.image import ReferenceEncoder
from realcustom.miniature.builders import IMAGE_SIZE, build_reference_encoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.sd15 import RealCustomPipeline

from .adapter import AdapterLoss, CurriculumCache, export_adapter
from .base import tokenize
from .config import Modules, Parts
from .curriculum import Chooser, Curriculum
from .feeding import feed_batches
from .latents import LatentCache
from .logs import grid


def load_base(folder: str | Path) -> dict:
    """Networks, tokenizer and scheduler of an exported base run."""
    folder = Path(folder)
    if not (folder / "unet").is_dir():
        raise ValueError(f"{folder} holds no exported base model: train recipes/miniature_base.py first.")
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": AutoencoderTiny.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
    }


@dataclass(frozen=True, kw_only=True)
class AdapterRun:
    """Where a miniature adapter's training starts and what it sees.

    base: exported folder of the base run. cache: latent cache with references. count: records of it.
    start: exported folder of an earlier adapter run to go on from, or "".
    encoder: exported folder whose reference encoder is taken and stays frozen; "" trains the one of `start`.
    samples: of the whole training, from which the curriculum's stages follow.
    seen: those of them that `start` has seen.
    examples: (prompt, word, reference picture) of the sample grids.
    """

    base: Path
    cache: Path
    count: int
    samples: int
    curriculum: Curriculum
    start: str = ""
    encoder: str = ""
    seen: int = 0
    seed: int = 0
    examples: Sequence[tuple[str, str, Image.Image]] = ()


def start_networks(
    unet: UNet2DConditionModel,
    build: Callable[[object, ReferenceEncoder], RealCustomAdapter],
    start: str = "",
    encoder: str = "",
) -> tuple[RealCustomAdapter, ReferenceEncoder]:
    """Adapter and reference encoder to start from.

    Args:
        unet: that the adapter belongs to.
        build: (unet, reference encoder) -> a new adapter, where `start` is "".
        start: exported folder of the adapter.
        encoder: exported folder of the reference encoder; "" takes the one of `start`, or a new one without.
    """
    source = encoder or start
    vision = (
        ReferenceEncoder.from_pretrained(Path(source) / "reference_encoder") if source else build_reference_encoder()
    )
    adapter = RealCustomAdapter.from_pretrained(Path(start) / "adapter") if start else build(unet, vision)
    return adapter, vision


def adapter_parts(run: AdapterRun, build: Callable[[object, ReferenceEncoder], RealCustomAdapter], **loss) -> Parts:
    """The parts of a miniature adapter's training.

    Args:
        run: start and data.
        build: (unet, reference encoder) -> a new adapter, keys and values started from the text's.
        loss: further arguments of `AdapterLoss`.
    """
    base = load_base(run.base)
    adapter, encoder = start_networks(base["unet"], build, run.start, run.encoder)
    cache = LatentCache(run.cache, partial(tokenize, base["tokenizer"]), run.count)
    chooser = Chooser(run.curriculum, cache.difficulty[: cache.size], run.samples, run.seed, run.seen)
    stack = ExitStack()
    backbone = UNetBackbone(base["unet"])
    stack.enter_context(backbone.installed())
    empty = torch.from_numpy(tokenize(base["tokenizer"], [""])[0]).long()
    sample = AdapterGrid(
        backbone=backbone,
        tokenizer=base["tokenizer"],
        scheduler=base["scheduler"],
        examples=tuple(run.examples),
    )
    frozen = {name: base[name] for name in ("unet", "vae", "text_encoder")}
    learns = {} if run.encoder else {"reference_encoder": encoder}
    return Parts(
        trained={"adapter": adapter, **learns},
        frozen=frozen if learns else {**frozen, "reference_encoder": encoder},
        loss=AdapterLoss(backbone=backbone, scheduler=base["scheduler"], empty_tokens=empty, **loss),
        data=partial(feed_batches, source=CurriculumCache(cache, chooser)),
        sample=sample if run.examples else None,
        export=export_adapter,
        close=stack.close,
    )


@dataclass(frozen=True, kw_only=True)
class AdapterGrid:
    """Every example as reference, text only and customised; (modules, step) -> uint8 (H, W, 3).

    `backbone` is the training's, installed on the same U-Net, which it lends to the pipeline for the pictures.
    """

    backbone: UNetBackbone
    tokenizer: object
    scheduler: object
    examples: tuple[tuple[str, str, Image.Image], ...]
    steps: int = 20
    guidance_scale: float = 3.5

    def __call__(self, modules: Modules, step: int) -> np.ndarray:
        pipeline = RealCustomPipeline(
            vae=modules["vae"],
            text_encoder=modules["text_encoder"],
            tokenizer=self.tokenizer,
            unet=modules["unet"],
            scheduler=self.scheduler,
            reference_encoder=modules["reference_encoder"],
            adapter=modules["adapter"],
        )
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        cells = []
        with self.backbone.lent():
            for number, (prompt, word, reference) in enumerate(self.examples):
                cells.append(reference.resize((IMAGE_SIZE, IMAGE_SIZE)))
                for subjects in (None, {word: reference}):
                    noise = torch.Generator().manual_seed(number)
                    cells += pipeline(prompt, subjects=subjects, generator=noise, **options).images
        return grid(np.stack([np.asarray(cell) for cell in cells]), columns=6)


def export_miniature(base: str | Path, adapter: str | Path, folder: str | Path, notes: Mapping | None = None) -> Path:
    """Write the whole pipeline in diffusers' layout, in float16 to be loaded as float32.

    The text encoder is written in float32: transformers would load it in the type it was stored in.

    Args:
        base: exported folder of the base run.
        adapter: exported folder of the adapter run.
        folder: to write.
        notes: what the model knows (words, scenes, ...) as plain JSON values, written as `knows.json`.

    Returns:
        The folder.
    """
    adapter, folder = Path(adapter), Path(folder)
    pipeline = RealCustomPipeline(
        **load_base(base),
        reference_encoder=ReferenceEncoder.from_pretrained(adapter / "reference_encoder"),
        adapter=RealCustomAdapter.from_pretrained(adapter / "adapter"),
    )
    for component in (pipeline.unet, pipeline.vae, pipeline.reference_encoder, pipeline.adapter):
        component.to(torch.float16)
    pipeline.save_pretrained(folder)
    _drop_setting(folder / "vae" / "config.json", "block_out_channels")
    for config in folder.rglob("config.json"):
        _drop_setting(config, "_name_or_path")
    if notes is not None:
        (folder / "knows.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="ascii")
    return folder


def _drop_setting(config: Path, name: str) -> None:
    """Remove what says where the parts lay, and what AutoencoderTiny derives itself and warns about at loading."""
    settings = json.loads(config.read_text())
    settings.pop(name, None)
    config.write_text(json.dumps(settings, indent=2) + "\n")
