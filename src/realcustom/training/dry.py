"""Random networks of the real backbones' layouts at a few thousand weights, to try a recipe in seconds."""

from __future__ import annotations

import string

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.miniature.tokenizer import train_tokenizer

IMAGE_SIZE = 64
LATENT_SIZE = 8
TEXT_WIDTH = 16


def dry_base() -> dict:
    """SD v1.5: three levels with attention and one without, one text encoder, epsilon prediction."""
    tokenizer = train_tokenizer(["a dog on the beach"])
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    )
    return {
        "unet": unet,
        "vae": _autoencoder(),
        "text_encoder": CLIPTextModel(_text_config(tokenizer)),
        "tokenizer": tokenizer,
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }


def dry_base_xl() -> dict:
    """SDXL: no attention at the latent's resolution, several transformer layers below, two text encoders."""
    base = dry_base()
    config = _text_config(base["tokenizer"])
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + TEXT_WIDTH,
        cross_attention_dim=2 * TEXT_WIDTH,
    )
    return {**base, "unet": unet, "text_encoder_2": CLIPTextModelWithProjection(config)}


def dry_flux() -> dict:
    """FLUX: joint and single blocks, CLIP and T5, distilled guidance, 4 latent channels instead of 16."""
    base = dry_base()
    t5 = T5Config(vocab_size=32, d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_lowercase]
    return {
        "transformer": transformer,
        "vae": base["vae"],
        "text_encoder": base["text_encoder"],
        "text_encoder_2": T5EncoderModel(t5),
        "tokenizer": base["tokenizer"],
        "tokenizer_2": T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=32),
    }


class NoiseRows:
    """An endless source in the shape of `realcustom.data.uno_rows.UnoRows`, with noise for pictures."""

    size = None

    def __init__(self, references: int, tokens: int, tokens_2: int):
        self.references, self.lengths = references, {"tokens": tokens, "tokens_2": tokens_2}

    def batch(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """A target of 48 x 64 pixels and references of 32 x 32 a sample, by their position."""
        generators = [torch.Generator().manual_seed(int(position)) for position in positions]

        def noise(*shape: int) -> torch.Tensor:
            return torch.stack([torch.rand(shape, generator=generator) * 2 - 1 for generator in generators])

        batch = {"images": noise(3, 48, 64)}
        batch |= {f"reference_{slot}": noise(3, 32, 32) for slot in range(self.references)}
        for name, length in self.lengths.items():
            batch[name] = torch.stack([torch.randint(2, 20, (length,), generator=each) for each in generators])
        return batch


def dry_reference_encoder() -> ReferenceEncoder:
    """Four levels, 2 x 2 tokens of 2 x 32 channels."""
    shared = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "patch_size": 8}
    return ReferenceEncoder(
        siglip_config={**shared, "intermediate_size": 32},
        dino_config={**shared, "mlp_ratio": 1},
        siglip_layers=(0, 1, 2, 3),
        dino_layers=(0, 1, 2, 3),
        image_size=16,
    )


def dry_clip_encoder() -> ClipReferenceEncoder:
    """2 x 2 tokens of 32 channels."""
    config = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return ClipReferenceEncoder({**config, "patch_size": 8}, layer=1, image_size=16)


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


def _text_config(tokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
