"""Random networks of the real backbones' layouts at a few thousand weights, to try a recipe in seconds."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

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
