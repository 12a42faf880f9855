"""ImageReward (a BLIP image encoder, a BERT that reads the prompt over it, and a small head) without its package.

The published checkpoint is `ImageReward.pt` beside `med_config.json`; its keys are those of BLIP's first release and
are renamed here to transformers' Blip classes. Shapes: N pictures, T text tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .preprocessing import clip_preprocessing

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw reward on its authors' validation set
TEXT_TOKENS = 35
VISION_KEYS = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


def reward_head(width: int) -> nn.Sequential:
    """The published head; dropout takes part in the numbering of its keys only."""
    sizes = (width, 1024, 128, 64, 16)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.Identity()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]), nn.Linear(sizes[-1], 1))


class ImageReward:
    """Human preference of a picture for its prompt; about standard normal over the authors' data."""

    def __init__(self, vision, text, head: nn.Module, tokenizer, batch_size: int = 16):
        self.vision, self.text, self.head = vision.eval(), text.eval(), head.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.preprocess = clip_preprocessing(vision.config.image_size)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> ImageReward:
        """From a folder with ImageReward.pt (or .safetensors), med_config.json and bert-base-uncased's tokenizer.

        Raises:
            ValueError: a file or a weight is missing.
        """
        from transformers import BertTokenizer

        folder = Path(folder)
        weights = _read_weights(folder)
        med = json.loads((folder / "med_config.json").read_text())
        vision, text = build(weights, med)
        head = reward_head(text.config.hidden_size)
        _fill(vision, {_vision_key(key): value for key, value in _under(weights, "blip.visual_encoder.").items()})
        _fill(text, _under(weights, "blip.text_encoder."))
        _fill(head, _under(weights, "mlp.layers."))
        for module in (vision, text, head):
            module.to(device or "cpu")
        return cls(vision, text, head, BertTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """(N,) rewards of each picture for its own prompt."""
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            stop = start + self.batch_size
            parts.append(self._score(pictures[start:stop], list(texts[start:stop])))
        return np.concatenate(parts)

    def _score(self, pictures: Sequence[Image.Image], texts: list[str]) -> np.ndarray:
        device = self.vision.device
        seen = self.vision(self.preprocess(pictures).to(device)).last_hidden_state
        encoded = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).to(device)
        read = self.text(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state[:, 0]
        return (((self.head(read)[:, 0]) - MEAN) / STD).float().cpu().numpy()


def build(weights: dict[str, Tensor], med: dict):
    """BlipVisionModel and BlipTextModel of the sizes that the weights and med_config.json tell."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    patches = weights["blip.visual_encoder.patch_embed.proj.weight"]
    positions = weights["blip.visual_encoder.pos_embed"].shape[1] - 1
    layers = {key.split(".")[3] for key in weights if key.startswith("blip.visual_encoder.blocks.")}
    width, _, _, patch = patches.shape
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // 64),
        patch_size=patch,
        image_size=round(positions**0.5) * patch,
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=weights["blip.text_encoder.embeddings.word_embeddings.weight"].shape[0],
        hidden_size=med["hidden_size"],
        encoder_hidden_size=width,
        intermediate_size=med["intermediate_size"],
        num_hidden_layers=med["num_hidden_layers"],
        num_attention_heads=med["num_attention_heads"],
        max_position_embeddings=med["max_position_embeddings"],
        hidden_act=med.get("hidden_act", "gelu"),
        layer_norm_eps=med.get("layer_norm_eps", 1e-12),
        is_decoder=True,  # gives the layers their cross-attention; the call itself stays bidirectional
    )
    return BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "ImageReward.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "ImageReward.safetensors")
    if (folder / "ImageReward.pt").is_file():
        return torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    raise ValueError(f"{folder} holds neither ImageReward.pt nor ImageReward.safetensors.")


def _under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _vision_key(key: str) -> str:
    for pattern, name in VISION_KEYS:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    raise ValueError(f"ImageReward's checkpoint has the key {key}, which no layer of its image encoder has.")


def _fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Strictly, except for buffers that only count positions."""
    report = module.load_state_dict(weights, strict=False)
    unknown = [key for key in report.unexpected_keys if not key.endswith("position_ids")]
    missing = [key for key in report.missing_keys if not key.endswith("position_ids")]
    if unknown or missing:
        raise ValueError(f"ImageReward's checkpoint does not fit: missing {missing[:3]}, unknown {unknown[:3]}.")
