"""Less work for an AutoencoderTiny in training: its decoder's linear end as two small convolutions. New latent channels
for it and for a U-Net.

After its last block the decoder of the miniature only doubles its maps (nearest neighbour) and convolves, without a
nonlinearity in between. A convolution behind a doubling is a convolution of the coarse map with four times as many
channels, followed by a pixel shuffle (Shi et al. 2016); two convolutions in a row are one. So what costs most, 64
channels at full resolution, need not be computed to be trained.

Shapes: latents (B, C, h, w), pictures (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

MARGIN = 2  # pixels; the folded end knows nothing of the padding between the convolutions it replaces
WHOLE = 0.1  # share of the batches decoded as the network stands, which teach it its border

Decode = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""(autoencoder, latents, generator) -> pictures, or their middle."""


def decode_whole(vae: nn.Module, latents: Tensor, generator: torch.Generator) -> Tensor:
    """As the network stands."""
    return vae.decode(latents).sample


def decode_mostly_folded(vae: AutoencoderTiny, latents: Tensor, generator: torch.Generator) -> Tensor:
    """`decode_folded`, for `WHOLE` of all batches `decode_whole`."""
    if float(torch.rand((), generator=generator, device=generator.device)) < WHOLE:
        return decode_whole(vae, latents, generator)
    return decode_folded(vae, latents)


def decode_folded(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """What `vae.decode` gives, without the outermost `MARGIN` pixels: (B, 3, H - 2 MARGIN, W - 2 MARGIN).

    Raises:
        ValueError: the decoder does not end in two doublings with convolutions only.
    """
    layers = list(vae.decoder.layers)
    end = 1 + max(place for place, layer in enumerate(layers) if isinstance(layer, AutoencoderTinyBlock))
    kinds = [type(layer) for layer in layers[end:]]
    if kinds != [nn.Upsample, nn.Conv2d, nn.Upsample, nn.Conv2d, nn.Conv2d]:
        raise ValueError("Only a decoder without blocks at half and full resolution can be folded.")
    _, first, _, second, last = layers[end:]
    maps = 3 * torch.tanh(latents / 3)  # as DecoderTiny does
    for layer in layers[:end]:
        maps = layer(maps)
    maps = F.pixel_shuffle(F.conv2d(maps, doubled(first.weight), padding=1), 2)
    # Of the kernels of two convolutions in a row, the transposed convolution is that of both.
    both = F.conv_transpose2d(last.weight, second.weight)
    pixels = F.pixel_shuffle(F.conv2d(maps, doubled(both), padding=1), 2) + last.bias[:, None, None]
    return 2 * pixels[..., MARGIN:-MARGIN, MARGIN:-MARGIN] - 1


def doubled(kernel: Tensor) -> Tensor:
    """The kernel (O, I, n, n), n 3 or 5, of a convolution behind a doubling, for one in front of a pixel shuffle.

    Returns:
        (4 O, I, 3, 3): each of the four fine pixels sums the weights that fall on the same coarse one.
    """
    outputs, inputs, size, _ = kernel.shape
    fall = kernel.new_zeros(2, size, 3)
    for parity in (0, 1):
        for tap in range(size):
            fall[parity, tap, (parity + tap - size // 2) // 2 + 1] = 1
    folded = torch.einsum("oiyx,pyv,qxw->opqivw", kernel, fall, fall)
    return folded.reshape(4 * outputs, inputs, 3, 3)


@torch.no_grad()
def widen_latents(vae: AutoencoderTiny, channels: int, pixels: Tensor) -> AutoencoderTiny:
    """More latent channels, changed in place: nothing else changes until training gives the decoder weights for them.

    Args:
        vae: with fewer than `channels` latent channels.
        channels: afterwards; the new ones come last.
        pixels: pictures, over which the new channels get mean 0 and standard deviation 1.

    Raises:
        ValueError: it has as many or more.
    """
    present = vae.config.latent_channels
    if channels <= present:
        raise ValueError(f"The autoencoder has {present} latent channels already: ask for more than that.")
    narrow_out, narrow_in = vae.encoder.layers[-1], vae.decoder.layers[0]
    out = nn.Conv2d(narrow_out.in_channels, channels, 3, padding=1)
    out.weight[:present], out.bias[:present] = narrow_out.weight, narrow_out.bias
    into = nn.Conv2d(channels, narrow_in.out_channels, 3, padding=1)
    into.weight[:, :present], into.weight[:, present:], into.bias[:] = narrow_in.weight, 0, narrow_in.bias
    vae.encoder.layers[-1], vae.decoder.layers[0] = out, into
    vae.register_to_config(latent_channels=channels)
    new = vae.encode(pixels).latents[:, present:]
    deviation, mean = torch.std_mean(new, dim=(0, 2, 3))
    out.weight[present:] /= deviation[:, None, None, None]
    out.bias[present:] = (out.bias[present:] - mean) / deviation
    return vae


@torch.no_grad()
def widen_unet(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """More latent channels, changed in place: it reads none of the new ones and predicts 0 for them, until trained.

    Raises:
        ValueError: it has more than `channels`.
    """
    present = unet.config.in_channels
    if channels < present:
        raise ValueError(f"The U-Net has {present} latent channels: ask for as many or more.")
    narrow_in, narrow_out = unet.conv_in, unet.conv_out
    into = nn.Conv2d(channels, narrow_in.out_channels, 3, padding=1)
    into.weight[:, :present], into.weight[:, present:], into.bias[:] = narrow_in.weight, 0, narrow_in.bias
    out = nn.Conv2d(narrow_out.in_channels, channels, 3, padding=1)
    out.weight[:present], out.bias[:present] = narrow_out.weight, narrow_out.bias
    out.weight[present:], out.bias[present:] = 0, 0
    unet.conv_in, unet.conv_out = into, out
    unet.register_to_config(in_channels=channels, out_channels=channels)
    return unet
