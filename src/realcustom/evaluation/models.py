"""Opening a model to measure, and the few calls into its stock components that measuring needs.

Shapes: B pictures, (h, w) latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realcustom.engine.loading import load_pipeline, resolve_device
from realcustom.models.backbone import Text


def open_pipeline(model: str = "miniature", adapter: str | None = None, device: str | None = None):
    """A pipeline to measure: whatever `load_pipeline` opens, or the folder of a base model still in training.

    Such a folder holds unet, vae, text_encoder, tokenizer and scheduler without a model_index.json.

    Raises:
        ValueError: nothing that can be opened.
    """
    folder = Path(model)
    if not (folder / "unet").is_dir() or (folder / "model_index.json").is_file():
        pipe = load_pipeline(model, adapter=adapter, device=device)
    else:
        pipe = _from_parts(folder, adapter).to(resolve_device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_parts(folder: Path, adapter: str | None):
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    from realcustom.encoders.image import ReferenceEncoder
    from realcustom.models.adapter import RealCustomAdapter
    from realcustom.pipelines.sd15 import RealCustomPipeline

    kinds = [diffusers.AutoencoderKL.load_config(folder, subfolder="vae")["_class_name"]]
    kinds.append(diffusers.DDIMScheduler.load_config(folder, subfolder="scheduler")["_class_name"])
    vae, scheduler = (getattr(diffusers, kind) for kind in kinds)
    extra = {}
    if adapter is not None:
        extra["adapter"] = RealCustomAdapter.from_pretrained(adapter, subfolder="adapter")
        extra["reference_encoder"] = ReferenceEncoder.from_pretrained(adapter, subfolder="reference_encoder")
    return RealCustomPipeline(
        vae=vae.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=scheduler.from_pretrained(folder, subfolder="scheduler"),
        **extra,
    )


@torch.no_grad()
def encode_pictures(pipe, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents (B, C, h, w) of pictures, in the VAE's own statistics; a KL autoencoder gives its mean."""
    pixels = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    vae = pipe.vae
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
    encoded = vae.encode(values)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((latents - shift) * vae.config.scaling_factor).to(pipe.unet.dtype)


@torch.no_grad()
def encode_prompts(pipe, prompts: Sequence[str]) -> Text:
    """What the text encoders make of B prompts, for SD v1.5 and SDXL shapes."""
    prompts = list(prompts)
    if getattr(pipe, "text_encoder_2", None) is None:
        embeds, _ = pipe.encode_prompt(prompts, pipe.device, 1, False)
        return Text(embeds=embeds)
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, device=pipe.device, do_classifier_free_guidance=False)
    height, width = pipe.native_size
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=pipe.device)
    return Text(embeds=embeds, added={"text_embeds": pooled, "time_ids": sizes.expand(len(prompts), -1)})
