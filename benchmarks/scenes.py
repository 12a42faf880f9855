"""What is denoised: a U-Net, an adapter, and conditions for them, at three sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from realcustom.convert.release import SDXL_UNET
from realcustom.encoders.image import ReferenceFeatures
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.backbone import Text
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.scheduler import RealCustomScheduler

TEXT_TOKENS = 77
PUBLISHED = {"kind": "deep", "vision_dim": 2176, "out_dim": 2048}
PUBLISHED_TOKENS = 729


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a denoising loop needs, on one device.

    Attributes:
        text, negative: encoded prompts, B rows.
        token_weights: (B, S, T).
        features, zero_features: of S references and of as many all-zero images.
        latents: (B, C, h, w) unit noise.
        make_scheduler: a fresh scheduler.
        parts: what else an image needs, name -> function to time.
    """

    unet: UNet2DConditionModel
    adapter: RealCustomAdapter
    text: Text
    negative: Text
    token_weights: Tensor
    features: ReferenceFeatures
    zero_features: ReferenceFeatures
    latents: Tensor
    make_scheduler: Callable
    parts: dict[str, Callable]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the mask."""
        return UNetBackbone(self.unet).mask_grid(self.latents)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is asked for: `latent_size` height and width (None: the size's own), subjects S, images B."""

    latent_size: tuple[int, int] | None = None
    subjects: int = 1
    images: int = 1


def build_scene(size: str, extent: Extent, device: torch.device, dtype: torch.dtype) -> Scene:
    """The scene of a size in `SIZES`, the same at every call."""
    torch.manual_seed(0)
    unet, adapter, tokens, make_scheduler, parts = SIZES[size](device, dtype)
    height, width = extent.latent_size or (unet.config.sample_size,) * 2
    at = {"device": device, "dtype": dtype}
    features = random_features(extent.subjects, tokens, adapter.config.projector_config["vision_dim"], at)
    zero = random_features(1, tokens, adapter.config.projector_config["vision_dim"], at)
    repeat = [0] * extent.subjects
    zero = ReferenceFeatures(zero.deep[repeat], zero.local[repeat], tuple(level[repeat] for level in zero.shallow))
    weights = torch.zeros(extent.images, extent.subjects, TEXT_TOKENS, device=device)
    for subject in range(extent.subjects):
        weights[:, subject, 2 + 3 * subject] = 1
    return Scene(
        unet=unet,
        adapter=adapter,
        text=random_text(unet, extent.images, at),
        negative=random_text(unet, extent.images, at),
        token_weights=weights,
        features=features,
        zero_features=zero,
        latents=torch.randn(extent.images, unet.config.in_channels, height, width).to(**at),
        make_scheduler=make_scheduler,
        parts=parts,
    )


def random_features(count: int, tokens: int, width: int, at: dict) -> ReferenceFeatures:
    """Deep, local and three shallow levels of `count` references."""
    deep, local = torch.randn(count, tokens, width).to(**at), torch.randn(count, 4 * tokens, width).to(**at)
    return ReferenceFeatures(deep, local, tuple(torch.randn(count, tokens, width).to(**at) for _ in range(3)))


def random_text(unet, images: int, at: dict) -> Text:
    """A prompt's embeddings, the same for every image, and for SDXL the pooled text and the sizes."""
    embeds = torch.randn(1, TEXT_TOKENS, unet.config.cross_attention_dim).to(**at).expand(images, -1, -1)
    if unet.config.addition_embed_type != "text_time":
        return Text(embeds=embeds)
    side = 8.0 * unet.config.sample_size
    ids = torch.tensor([[side, side, 0, 0, side, side]]).to(**at).expand(images, -1)
    return Text(embeds=embeds, added={"text_embeds": torch.randn(1, 1280).to(**at).expand(images, -1), "time_ids": ids})


def finished(unet, projector: dict, device, dtype) -> tuple[UNet2DConditionModel, RealCustomAdapter]:
    """The U-Net with an adapter, both frozen and in place."""
    backbone = UNetBackbone(unet)
    adapter = RealCustomAdapter.for_backbone(backbone, projector)
    adapter.init_from_text(backbone)
    return placed(unet, device, dtype), placed(adapter, device, dtype)


def placed(module, device, dtype):
    """A network in its place, frozen. diffusers' own `to` warns of modules to keep in float32 even where none is."""
    return torch.nn.Module.to(module, device, dtype).eval()


def miniature(device, dtype):
    """The bundled model's networks; its weights where they are installed, else random ones."""
    from PIL import Image

    from realcustom.hub.bundled import MODELS
    from realcustom.miniature import builders

    unet, vae, encoder = builders.build_unet(), builders.build_vae(), builders.build_reference_encoder()
    adapter = builders.build_adapter(unet, encoder)
    scheduler = builders.build_scheduler()
    folder = MODELS["miniature"]
    if (folder / "model_index.json").is_file():
        unet, vae, encoder, adapter = (
            type(part).from_pretrained(folder, subfolder=name)
            for part, name in ((unet, "unet"), (vae, "vae"), (encoder, "reference_encoder"), (adapter, "adapter"))
        )
    unet, adapter, vae, encoder = (placed(part, device, dtype) for part in (unet, adapter, vae, encoder))
    latents = torch.randn(1, unet.config.in_channels, 16, 16).to(device, dtype)
    parts = {
        "reference encoder, one 256 px image": lambda: encoder.encode([Image.new("RGB", (256, 256), "red")]),
        "VAE decoder, 128 px": lambda: vae.decode(latents).sample,
    }
    tokens = (builders.REFERENCE_IMAGE_SIZE // builders.REFERENCE_PATCH) ** 2
    return unet, adapter, tokens, lambda: type(scheduler).from_config(scheduler.config), parts


def medium(device, dtype):
    """A random U-Net for CPUs, SDXL-like in its depths, with the projector at the published widths."""
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(128, 256, 512),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 8),
        cross_attention_dim=2048,
        use_linear_projection=True,
    )
    unet, adapter = finished(unet, PUBLISHED, device, dtype)
    return unet, adapter, PUBLISHED_TOKENS, RealCustomScheduler, vae_part(device, dtype, 64)


def sdxl(device, dtype):
    """SDXL's U-Net at its real size with random weights, for GPUs."""
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
    unet, adapter = finished(unet, PUBLISHED, device, dtype)
    return unet, adapter, PUBLISHED_TOKENS, RealCustomScheduler, vae_part(device, dtype, 128)


def vae_part(device, dtype, side: int) -> dict[str, Callable]:
    """Decoding one image of `side` x `side` latents with Stable Diffusion's autoencoder, random weights."""
    made = {}

    def decode():
        if not made:
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            )
            made["vae"] = placed(vae, device, dtype)
        return made["vae"].decode(torch.randn(1, 4, side, side).to(device, dtype)).sample

    return {f"VAE decoder, {8 * side} px": decode}


SIZES = {"miniature": miniature, "medium": medium, "sdxl": sdxl}
