"""The miniature's networks: stock classes of diffusers and transformers at small sizes. The numbers live here.

Shapes: pictures (B, 3, 128, 128) in [-1, 1]; latents (B, 8, 16, 16), unit variance after scaling; text (B, 32, 192);
reference tokens (R, 64, 192). All builders give random weights; seed torch before calling them.
"""

from __future__ import annotations

from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 128
LATENT_SIZE = 16
LATENT_CHANNELS = 8
TEXT_WIDTH = 192
REFERENCE_IMAGE_SIZE = 64
REFERENCE_PATCH = 8
GUIDANCE = (3.5, None)  # chosen on held-out pictures other than the benchmark's
SCOPE = 0.35  # of the mask; subjects of the sticker world fill 20 to 50 % of a picture


def build_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderTiny:
    """128 px to 16 x 16 x 8 and back; no block at full or half resolution, where a CPU spends its time.

    `scaling_factor` 1.0 holds because training keeps the latents at unit variance.
    """
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(48, 48, 48, 48),
        num_encoder_blocks=(0, 0, 2, 4),
        decoder_block_out_channels=(64, 64, 64, 64),
        num_decoder_blocks=(6, 3, 0, 0),
        scaling_factor=1.0,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer, three layers of width 192."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(latent_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """9.6 M parameters, text cross-attention at 16 x 16 and 8 x 8; few wide heads, which a CPU computes faster."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(96, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 3),
        transformer_layers_per_block=1,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, whose targets keep unit variance at every noise level."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # Stable Diffusion's; trailing steps do not use it
        set_alpha_to_one=False,
    )


def build_reference_encoder():
    """A `ReferenceEncoder` of a SigLIP-class (width 128) and a DINOv2-class network (width 64), four blocks each."""
    from realcustom.encoders.image import ReferenceEncoder

    shared = {"image_size": REFERENCE_IMAGE_SIZE, "patch_size": REFERENCE_PATCH, "num_hidden_layers": 4}
    siglip = {**shared, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
    dino = {**shared, "hidden_size": 64, "num_attention_heads": 1, "mlp_ratio": 4, "num_register_tokens": 4}
    return ReferenceEncoder(
        siglip_config=siglip,
        dino_config=dino,
        siglip_layers=(0, 1, 2, 3),
        dino_layers=(0, 1, 2, 3),
        image_size=REFERENCE_IMAGE_SIZE,
    )


def build_adapter(unet: UNet2DConditionModel, reference_encoder, projector: str = "cross-layer-cross-scale"):
    """A RealCustom++ adapter, K/V started from the text's K/V; projector: a key of `realcustom.models.projector`."""
    from realcustom.models.adapter import RealCustomAdapter
    from realcustom.models.unet import UNetBackbone

    width = reference_encoder.feature_dim
    config = {"kind": projector, "vision_dim": width, "out_dim": TEXT_WIDTH, "hidden_dim": 2 * width}
    backbone = UNetBackbone(unet)
    adapter = RealCustomAdapter.for_backbone(backbone, projector=config, guidance=GUIDANCE, scope=SCOPE)
    adapter.init_from_text(backbone)
    return adapter


def build_scoring_adapter(unet: UNet2DConditionModel, reference_encoder):
    """A RealCustom adapter: plain tokens and the scoring module, K/V started from the text's K/V."""
    from realcustom.models.adapter import RealCustomAdapter
    from realcustom.models.unet import UNetBackbone

    backbone = UNetBackbone(unet)
    adapter = RealCustomAdapter.for_backbone(
        backbone,
        projector={"kind": "plain", "vision_dim": reference_encoder.feature_dim, "out_dim": TEXT_WIDTH},
        scoring={
            "feature_dim": TEXT_WIDTH,
            "text_dim": TEXT_WIDTH,
            "latent_channels": unet.config.in_channels,
            "hidden_dim": TEXT_WIDTH,
        },
        scope=SCOPE,
    )
    adapter.init_from_text(backbone)
    return adapter


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """2 M parameters: the U-Net's encoder without its attention, which an outline does not need, started from the
    U-Net's weights where they have a counterpart. It reads pictures (B, 3, 128, 128) in [0, 1]."""
    config = unet.config
    levels = len(config.block_out_channels)
    controlnet = ControlNetModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2D",
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        conditioning_embedding_out_channels=(16, 32, 64, 96),
    )
    known = controlnet.state_dict()
    shared = {name: weights for name, weights in unet.state_dict().items() if name in known}
    controlnet.load_state_dict({**known, **shared})
    return controlnet
