"""Adapter training on the real backbones: what SD v1.5 and SDXL runs have in common, and their dry forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone

from .adapter import TRAINED, AdapterLoss, export_adapter
from .base import tokenize
from .conditions import encode_text, encode_text_xl
from .config import Parts
from .feeding import feed_batches


def load_base(pipeline_class, base: str) -> dict:
    """The networks, tokenizer and scheduler of a stock pipeline's folder or hub id."""
    pipeline = pipeline_class.from_pretrained(base)
    return {name: component for name, component in pipeline.components.items() if component is not None}


def adapter_parts(
    base: Mapping[str, object],
    reference_encoder,
    adapter: RealCustomAdapter,
    data: Callable,
    dtype: torch.dtype | None = None,
    base_name: str | None = None,
    **loss,
) -> Parts:
    """The parts of an adapter's training: everything frozen but the adapter.

    Args:
        base: unet, vae, text_encoder, tokenizer, scheduler, and for SDXL text_encoder_2.
        reference_encoder: frozen.
        adapter: trained; its keys and values start from the text's.
        data: Feed -> batches.
        dtype: of the frozen U-Net and text encoders; the autoencoder stays as it is. None changes nothing.
        base_name: hub id or folder of the base, recorded with the exported adapter.
        loss: further arguments of `AdapterLoss`.
    """
    backbone = UNetBackbone(base["unet"])
    adapter.init_from_text(backbone)
    large = "text_encoder_2" in base
    names = ("unet", "vae", "text_encoder", "text_encoder_2") if large else ("unet", "vae", "text_encoder")
    for name in names:
        if name != "vae":
            base[name].to(dtype)
    stack = ExitStack()
    stack.enter_context(backbone.installed())
    empty = torch.from_numpy(tokenize(base["tokenizer"], [""])[0]).long()
    return Parts(
        trained={"adapter": adapter},
        frozen={**{name: base[name] for name in names}, "reference_encoder": reference_encoder},
        loss=AdapterLoss(
            backbone=backbone,
            scheduler=base["scheduler"],
            empty_tokens=empty,
            encode=encode_text_xl if large else encode_text,
            **loss,
        ),
        data=data,
        export=partial(export_adapter, settings=replace(TRAINED, base=base_name)),
        close=stack.close,
    )


class RandomRecords:
    """Noise in the form of prepared records, for dry runs: the same numbers at every index."""

    size = None

    def __init__(self, tokenizer, size: int, reference_size: int):
        self.tokens = torch.from_numpy(tokenize(tokenizer, ["a dog on the beach"])).long()
        self.size_px = size
        self.reference_size = reference_size

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """pixels, references, tokens and sizes, as `Framing` gives them."""
        count = len(indices)
        random = np.random.default_rng(tuple(int(index) for index in indices))
        return {
            "pixels": _noise(random, count, self.size_px),
            "references": _noise(random, count, self.reference_size),
            "tokens": self.tokens.expand(count, -1),
            "sizes": torch.tensor([[self.size_px, self.size_px, 0, 0, self.size_px, self.size_px]]).expand(count, -1),
        }


def random_data(tokenizer, size: int, reference_size: int) -> Callable:
    """A `Parts.data` of noise."""
    return partial(feed_batches, source=RandomRecords(tokenizer, size, reference_size))


def _noise(random: np.random.Generator, count: int, size: int) -> Tensor:
    return torch.from_numpy(random.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
