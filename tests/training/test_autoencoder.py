"""The autoencoder's loss: views of latents and pictures agree, and equivariance is asked of the share it should be."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from realcustom.training.autoencoder import SCALES, AutoencoderLoss, draw_view, latents_of, viewed


def tiny():
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(0, 1),
        num_decoder_blocks=(1, 0), latent_channels=4,
    )  # fmt: skip


def test_a_view_mirrors_and_scales():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(viewed(maps, 1.0), maps)
    assert torch.equal(viewed(maps, 1.0, mirrored=True), maps.flip(-1))
    half = viewed(maps, 0.5, mirrored=True)
    assert half.shape == (1, 1, 2, 2)
    assert float(half.mean()) == pytest.approx(float(maps.mean()))
    assert half[0, 0, 0, 0] > half[0, 0, 0, 1]


def test_the_share_of_changed_batches():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_view(0.5, generator) for _ in range(2000)]
    changed = [view for view in drawn if view != (1.0, False)]
    # A changed view is the whole unmirrored picture once in `2 * len(SCALES)`.
    assert len(changed) / 2000 == pytest.approx(0.5 * (1 - 1 / (2 * len(SCALES))), abs=0.04)
    assert {scale for scale, _ in changed} == set(SCALES)
    assert draw_view(0.0, generator) == (1.0, False)


def test_latents_of_both_kinds():
    kl = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pixels = torch.zeros(2, 3, 8, 8)
    assert latents_of(tiny(), pixels).shape == (2, 4, 4, 4)
    assert torch.equal(latents_of(kl, pixels), latents_of(kl, pixels))  # the mean, not a sample


def mirrored_error(vae, pixels):
    with torch.no_grad():
        latents = latents_of(vae, pixels)
        return float((vae.decode(latents.flip(-1)).sample - vae.decode(latents).sample.flip(-1)).abs().mean())


def test_equivariance_is_learned_where_it_is_asked_for():
    blocks = torch.randint(256, (16, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    errors = {}
    for share in (0.0, 1.0):
        vae, loss = tiny(), AutoencoderLoss(noise=0.0, equivariance=share)
        optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(2)
        for _ in range(150):
            value, metrics = loss({"vae": vae}, {"pixels": pixels}, generator)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        errors[share] = mirrored_error(vae, pixels.float() / 127.5 - 1)
        assert set(metrics) == {"l1", "edges", "moments", "latent_std"}
    assert errors[1.0] < 0.8 * errors[0.0], errors
