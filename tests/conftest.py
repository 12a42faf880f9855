"""Tiny random models in the shapes of SD v1.5 and SDXL, a few thousand weights each, and pictures to use them on."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TEXT_WIDTH = 32
CAPTIONS = (
    "a dog on the beach",
    "a red cat in the forest",
    "a robot and a dog with the pink hat in the snow",
    "a toy on a city street at sunset",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    """A CLIP tokenizer that knows the words of `CAPTIONS` whole."""
    from realcustom.miniature.tokenizer import train_tokenizer

    return train_tokenizer(CAPTIONS)


def text_config(tokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_vae() -> AutoencoderKL:
    """8 times down, as the real ones."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


def build_unet(cross_attention_dim: int = TEXT_WIDTH) -> UNet2DConditionModel:
    """SD v1.5's layout: attention at the latent's resolution and at half of it; 64 px images."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=cross_attention_dim,
    )


def build_xl_unet(cross_attention_dim: int = 2 * TEXT_WIDTH) -> UNet2DConditionModel:
    """SDXL's layout: no attention at the latent's resolution, linear projections, several transformer layers."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        cross_attention_dim=cross_attention_dim,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def build_reference_encoder():
    """SigLIP and DINOv2 with registers, two levels of 32 channels each, 4 x 4 tokens."""
    from realcustom.encoders.image import ReferenceEncoder

    shared = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 8}
    return ReferenceEncoder(
        siglip_config={**shared, "intermediate_size": 48},
        dino_config={**shared, "mlp_ratio": 1, "num_register_tokens": 2},
        siglip_layers=(0, 1),
        dino_layers=(0, 1),
        image_size=32,
    )


def build_adapter(unet: UNet2DConditionModel, reference_encoder, kind: str = "deep"):
    from realcustom.models.adapter import RealCustomAdapter
    from realcustom.models.unet import UNetBackbone

    projector = {
        "kind": kind,
        "vision_dim": reference_encoder.feature_dim,
        "out_dim": unet.config.cross_attention_dim,
        "hidden_dim": 64,
    }
    backbone = UNetBackbone(unet)
    adapter = RealCustomAdapter.for_backbone(backbone, projector=projector)
    adapter.init_from_text(backbone)
    return adapter


def build_components(tokenizer) -> dict:
    """Components of a tiny `RealCustomPipeline`, the same at every call."""
    torch.manual_seed(0)
    unet = build_unet()
    reference_encoder = build_reference_encoder()
    return {
        "vae": build_vae().eval(),
        "text_encoder": CLIPTextModel(text_config(tokenizer)).eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
        "scheduler": build_scheduler(),
        "reference_encoder": reference_encoder.eval(),
        "adapter": build_adapter(unet, reference_encoder).eval(),
    }


def build_xl_components(tokenizer) -> dict:
    """Components of a tiny `RealCustomXLPipeline`, the same at every call."""
    torch.manual_seed(0)
    unet = build_xl_unet()
    reference_encoder = build_reference_encoder()
    return {
        "vae": build_vae().eval(),
        "text_encoder": CLIPTextModel(text_config(tokenizer)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer)).eval(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet.eval(),
        "scheduler": build_scheduler(),
        "reference_encoder": reference_encoder.eval(),
        "adapter": build_adapter(unet, reference_encoder).eval(),
    }


@pytest.fixture
def tiny_components(tokenizer) -> dict:
    return build_components(tokenizer)


@pytest.fixture
def tiny_xl_components(tokenizer) -> dict:
    return build_xl_components(tokenizer)


@pytest.fixture
def tiny_pipeline(tiny_components):
    """A tiny random `RealCustomPipeline`; 64 x 64 images."""
    from realcustom import RealCustomPipeline

    pipe = RealCustomPipeline(**tiny_components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_xl_pipeline(tiny_xl_components):
    """A tiny random `RealCustomXLPipeline`; 64 x 64 images."""
    from realcustom import RealCustomXLPipeline

    pipe = RealCustomXLPipeline(**tiny_xl_components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tmp_path_factory) -> Path:
    """A folder with a saved tiny `RealCustomPipeline`."""
    from realcustom import RealCustomPipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    RealCustomPipeline(**build_components(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def black_model(tokenizer, tmp_path_factory) -> Path:
    """A folder with the same pipeline, and a tiny safety checker that refuses every picture."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    from realcustom import RealCustomPipeline

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=sizes, projection_dim=8))
    with torch.no_grad():
        # Least similarities at which a concept is seen; -2 is below all.
        checker.concept_embeds_weights.fill_(-2.0)
        checker.special_care_embeds_weights.fill_(2.0)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    folder = tmp_path_factory.mktemp("models") / "black"
    parts = {**build_components(tokenizer), "safety_checker": checker, "feature_extractor": processor}
    RealCustomPipeline(**parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory) -> Path:
    """A folder with a ControlNet for `tiny_model` that says something."""
    from diffusers import ControlNetModel

    torch.manual_seed(2)
    net = ControlNetModel.from_unet(build_unet(), conditioning_embedding_out_channels=(8, 8, 8, 8))
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    folder = tmp_path_factory.mktemp("models") / "outlines"
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_model(tokenizer, tmp_path_factory) -> Path:
    """A folder with a saved tiny `RealCustomXLPipeline`."""
    from realcustom import RealCustomXLPipeline

    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    RealCustomXLPipeline(**build_xl_components(tokenizer)).save_pretrained(folder)
    return folder


def picture(seed: int = 0, size: int = 48) -> Image.Image:
    """A coloured disc on noise: a stand-in for a photograph of a subject."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
    colour = tuple(int(value) for value in random.integers(0, 256, 3))
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=colour)
    return image


@pytest.fixture
def reference_image() -> Image.Image:
    return picture(0)


@pytest.fixture
def reference_file(tmp_path) -> Path:
    path = tmp_path / "rex.png"
    picture(0).save(path)
    return path
