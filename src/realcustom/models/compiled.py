"""`torch.compile` for the U-Net's transformer blocks: one compilation serves every block of a shape."""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock

from realcustom.models.unet import cross_attention_names

# Kinds of input a block meets in a run: each level, with and without references, with and without recorded maps.
KINDS = 64


def compile_blocks(unet, **options) -> int:
    """Compile every transformer block of a U-Net in place; prompt, strength, mask and step then change no code.

    Other image sizes, batch sizes or numbers of subjects and references are compiled when they first come. The block of
    the last cross-attention layer stays as it is: the guidance branch ends in the midst of it.

    Args:
        unet: diffusers' UNet2DConditionModel.
        options: for `torch.compile`, `mode="max-autotune-no-cudagraphs"` for instance.

    Returns:
        number of blocks compiled.
    """
    last = cross_attention_names(unet)[-1].rsplit(".", 1)[0]
    blocks = [
        module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock) and name != last
    ]
    for block in blocks:
        block.compile(**{"fullgraph": True, "dynamic": False, "recompile_limit": KINDS, **options})
    return len(blocks)
