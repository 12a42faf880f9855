"""Real models by name: which repositories they come from, what they take, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file of a repository of weights.

    Attributes:
        what: the file's part in the model, for people.
        paths: patterns (`fnmatch`) below one of the repository's roots; the first that matches counts.
        optional: whether the model can do without.
        unless_unet: whether it is left alone where a file before it holds the whole U-Net already.
    """

    what: str
    paths: tuple[str, ...]
    optional: bool = False
    unless_unet: bool = False


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A base model and the adapter weights that belong to it.

    Attributes:
        about: what it is, in a sentence.
        base, base_revision: repository in diffusers' layout, and a branch, tag or commit of it.
        weights, weights_revision: repository of the files that `realcustom.convert` makes an adapter of.
        roots: folders of that repository in which the files may lie.
        files: what is fetched of it, in this order.
        pipeline: class name in the base's model_index.json.
        fetch_gb: about how much is fetched, 10^9 bytes.
        memory_gb: about what bfloat16 weights take, 10^9 bytes, without the pictures under way.
        licences: of the base and of the weights.
        converted: whether an adapter is made of the files; False: they are one as they are.
    """

    about: str
    base: str
    base_revision: str = "main"
    weights: str
    weights_revision: str = "main"
    roots: tuple[str, ...] = ("",)
    files: tuple[Wanted, ...]
    pipeline: str
    fetch_gb: tuple[float, float]
    memory_gb: float
    licences: tuple[str, str]
    converted: bool = True


UNO_LORA = "dit_lora.safetensors"  # as the authors of UNO call it

RELEASE = (
    Wanted(what="RealCustom++ weights", paths=("realcustom/RealCustom_highres.pth", "realcustom/*.pth")),
    Wanted(
        what="U-Net of the release",
        paths=("sdxl/unet/sdxl-unet.bin", "sdxl/unet/general_v1-3_sdxl_03.pth", "sdxl/unet/*.bin", "sdxl/unet/*.pth"),
        optional=True,
        unless_unet=True,
    ),
    Wanted(
        what="SigLIP",
        paths=(
            "vit_so400m_patch14_siglip_384/open_clip_pytorch_model.bin",
            "vit_so400m_patch14_siglip_384/*.safetensors",
            "vit_so400m_patch14_siglip_384/*.bin",
        ),
    ),
    Wanted(
        what="DINOv2",
        paths=(
            "vit_large_patch14_reg4_dinov2.lvd142m/pytorch_model.bin",
            "vit_large_patch14_reg4_dinov2.lvd142m/*.safetensors",
            "vit_large_patch14_reg4_dinov2.lvd142m/*.bin",
        ),
    ),
)

NAMED: dict[str, NamedModel] = {
    "sdxl": NamedModel(
        about="RealCustom++ as its authors released it, on SDXL; 1024x1024",
        base="stabilityai/stable-diffusion-xl-base-1.0",
        weights="bytedance-research/RealCustom",
        roots=("ckpts", ""),
        files=RELEASE,
        pipeline="StableDiffusionXLPipeline",
        fetch_gb=(12.5, 19.0),
        memory_gb=9.1,
        licences=("CreativeML Open RAIL++-M", "as its repository says"),
    ),
    "sd15": NamedModel(
        about="IP-Adapter Plus under RealCustom's mask, on SD v1.5; 512x512; not the papers' weights",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        weights="h94/IP-Adapter",
        roots=("models",),
        files=(
            Wanted(what="IP-Adapter Plus", paths=("ip-adapter-plus_sd15.safetensors", "ip-adapter-plus_sd15.bin")),
            Wanted(
                what="CLIP ViT-H",
                paths=("image_encoder/model.safetensors", "image_encoder/pytorch_model.bin"),
            ),
        ),
        pipeline="StableDiffusionPipeline",
        fetch_gb=(5.4, 5.4),
        memory_gb=4.1,
        licences=("CreativeML Open RAIL-M", "Apache-2.0"),
    ),
    "flux": NamedModel(
        about="UNO's LoRA under RealCustom's mask, on FLUX.1-dev; 512x512; the base asks for a token",
        base="black-forest-labs/FLUX.1-dev",
        weights="bytedance-research/UNO",
        files=(Wanted(what="UNO's LoRA", paths=(UNO_LORA,)),),
        pipeline="FluxPipeline",
        fetch_gb=(35.6, 35.6),
        memory_gb=35.6,
        licences=("FLUX.1 [dev] Non-Commercial", "as its repository says"),
        converted=False,
    ),
}
"""Names that are fetched and converted at their first use; `realcustom.hub.bundled.MODELS` are those that ship."""
