"""`tests-tiny`: small random extractors saved and loaded in exactly the formats of the real ones.

They exercise the whole path of a benchmark offline; their numbers mean nothing.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

WORDS = ("a", "dog", "cat", "in", "on", "the", "red", "with", "and")


def write_tiny(folder: Path) -> None:
    """Subfolders clip, dino and pickscore, each a transformers folder with a config and safetensors."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "bos_token_id": 0}
        text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        vision = {**small, "image_size": 32, "patch_size": 8}
        for name in ("clip", "pickscore"):
            CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
                folder / name
            )
            tokenizer.save_pretrained(folder / name)
        ViTModel(ViTConfig(**vision), add_pooling_layer=False).save_pretrained(folder / "dino")


def tiny_tokenizer():
    """A CLIP tokenizer that spells everything but a few words letter by letter."""
    from realcustom.miniature.tokenizer import train_tokenizer

    return train_tokenizer([" ".join(WORDS), *string.ascii_lowercase, string.digits])
