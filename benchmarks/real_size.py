"""Dry run at the published size, without weights and without memory: every network on the meta device.

Builds SDXL's U-Net, the adapter with each projector and the reference encoder (SigLIP so400m/14-384, DINOv2-L/14 with
registers) in bfloat16, checks that they fit together by running their shapes through, and prints what each holds.

    python benchmarks/real_size.py
"""

import argparse
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from realcustom.convert.release import SDXL_UNET
from realcustom.encoders.image import DINOV2_LARGE, SIGLIP_SO400M, ReferenceEncoder, ReferenceFeatures
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone, cross_attention_names


@dataclass(frozen=True, kw_only=True)
class RealSize:
    """Counts of one build: parameters are numbers, `layers` and `matrices` belong to the U-Net's cross-attention."""

    projector_kind: str
    unet_parameters: int
    siglip_parameters: int
    dino_parameters: int
    layers: int
    matrices: int
    matrix_parameters: int
    projector_parameters: int
    projector_tensors: int
    tokens: tuple[int, int]
    keys: tuple[tuple[int, ...], ...]

    @property
    def release_parameters(self) -> int:
        """What the release's one checkpoint holds: U-Net, visual keys and values, projector."""
        return self.unet_parameters + self.matrix_parameters + self.projector_parameters


def count(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def build(projector_kind: str) -> tuple[UNet2DConditionModel, RealCustomAdapter, ReferenceEncoder]:
    """The three networks at the published size, on the meta device in bfloat16."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
        encoder = ReferenceEncoder(SIGLIP_SO400M, DINOV2_LARGE)
        width = unet.config.cross_attention_dim
        projector = {"kind": projector_kind, "vision_dim": encoder.feature_dim, "out_dim": width}
        adapter = RealCustomAdapter.for_backbone(UNetBackbone(unet), projector)
    # diffusers' own `to` warns about modules to keep in float32 even where there are none, as here.
    return tuple(nn.Module.to(network, torch.bfloat16) for network in (unet, adapter, encoder))


def check_unet_pass(unet: UNet2DConditionModel) -> None:
    """Run the shapes of one 1024 x 1024 pass with text alone; ValueError where they do not come back."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    sample, text = torch.zeros(1, 4, 128, 128, **meta), torch.zeros(1, 77, 2048, **meta)
    added = {"text_embeds": torch.zeros(1, 1280, **meta), "time_ids": torch.zeros(1, 6, **meta)}
    noise = unet(sample, 999, text, added_cond_kwargs=added).sample
    if noise.shape != sample.shape:
        raise ValueError(f"The U-Net gives {tuple(noise.shape)} for {tuple(sample.shape)}.")


@torch.no_grad()
def dry_run(projector_kind: str = "deep") -> RealSize:
    """Build everything, run shapes from a reference image to the keys and values, and count."""
    unet, adapter, encoder = build(projector_kind)
    size = encoder.pixel_size
    features: ReferenceFeatures = encoder(torch.zeros(1, 3, size, size, device="meta"))
    tokens = adapter.tokens(features)
    keys = tuple(tuple(key.shape) for key, _ in adapter.keys_values(tokens))
    matrices = [*adapter.to_k.parameters(), *adapter.to_v.parameters()]
    check_unet_pass(unet)
    return RealSize(
        projector_kind=projector_kind,
        unet_parameters=count(unet),
        siglip_parameters=count(encoder.siglip),
        dino_parameters=count(encoder.dino),
        layers=len(cross_attention_names(unet)),
        matrices=len(matrices),
        matrix_parameters=sum(matrix.numel() for matrix in matrices),
        projector_parameters=count(adapter.projector),
        projector_tensors=len(adapter.projector.state_dict()),
        tokens=tuple(tokens.shape[1:]),
        keys=keys,
    )


def report(size: RealSize) -> str:
    """The counts as lines of text."""
    millions = 1e6
    return "\n".join(
        [
            f"projector '{size.projector_kind}'",
            f"  SDXL U-Net                {size.unet_parameters / millions:9.1f} M",
            f"  SigLIP so400m/14 at 384   {size.siglip_parameters / millions:9.1f} M  (without its pooling head)",
            f"  DINOv2-L/14, 4 registers  {size.dino_parameters / millions:9.1f} M",
            f"  visual keys and values    {size.matrix_parameters / millions:9.1f} M  "
            f"({size.matrices} matrices in {size.layers} layers)",
            f"  projector                 {size.projector_parameters / millions:9.1f} M  "
            f"({size.projector_tensors} tensors)",
            f"  release checkpoint        {size.release_parameters / millions:9.1f} M  (U-Net and the two above)",
            f"  visual tokens             {size.tokens[0]} of {size.tokens[1]}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projector", nargs="+", default=["deep", "shallow"], help="projectors to build")
    for kind in parser.parse_args().projector:
        print(report(dry_run(kind)))


if __name__ == "__main__":
    main()
