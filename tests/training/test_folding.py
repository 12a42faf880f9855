"""The autoencoder's cheaper training: the same pictures, gradients and latents as those of the network as it stands."""

import pytest
import torch
from diffusers import AutoencoderTiny

from realcustom.miniature.builders import TEXT_WIDTH, build_unet
from realcustom.training.autoencoder import AutoencoderLoss, center
from realcustom.training.folding import (
    MARGIN,
    decode_folded,
    decode_mostly_folded,
    decode_whole,
    widen_latents,
    widen_unet,
)


def tiny(decoder=(1, 1, 0, 0)):
    torch.manual_seed(0)
    return AutoencoderTiny(
        latent_channels=3,
        encoder_block_out_channels=(6,) * 4,
        num_encoder_blocks=(0, 0, 1, 1),
        decoder_block_out_channels=(5,) * 4,
        num_decoder_blocks=decoder,
        scaling_factor=1.0,
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_folded_decoder_gives_the_same_pictures_and_gradients():
    vae = tiny()
    latents = torch.randn(2, 3, 5, 4, generator=generator())
    inner = (slice(None), slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    results = []
    for decoded in (decode_folded(vae, latents), decode_whole(vae, latents, generator())[inner]):
        vae.zero_grad()
        (decoded**2).sum().backward()
        results.append((decoded, [parameter.grad.clone() for parameter in vae.decoder.parameters()]))
    (folded, gradients), (whole, expected) = results
    assert folded.shape == (2, 3, 8 * 5 - 2 * MARGIN, 8 * 4 - 2 * MARGIN)
    torch.testing.assert_close(folded, whole, atol=1e-6, rtol=1e-5)
    for gradient, true in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, true, atol=1e-4, rtol=1e-4)


def test_a_decoder_with_blocks_at_half_resolution_is_refused():
    with pytest.raises(ValueError, match="without blocks at half"):
        decode_folded(tiny((1, 1, 1, 0)), torch.zeros(1, 3, 4, 4))


def test_some_batches_are_decoded_whole():
    vae, latents, random = tiny(), torch.zeros(1, 3, 2, 2), generator()
    with torch.no_grad():
        sides = [decode_mostly_folded(vae, latents, random).shape[-1] for _ in range(200)]
    assert set(sides) == {16, 16 - 2 * MARGIN}
    assert 8 < sides.count(16) < 40


def test_wider_latents_change_no_picture_and_start_at_unit_variance():
    vae = tiny()
    pixels = torch.rand(4, 3, 32, 32, generator=generator()) * 2 - 1
    with torch.no_grad():
        latents, decoded = vae.encode(pixels).latents, vae.decode(vae.encode(pixels).latents).sample
        widen_latents(vae, 5, pixels)
        wide = vae.encode(pixels).latents
        torch.testing.assert_close(wide[:, :3], latents)
        torch.testing.assert_close(vae.decode(wide).sample, decoded)
    assert vae.config.latent_channels == 5
    assert wide[:, 3:].mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert wide[:, 3:].std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-4)
    vae.decode(wide).sample.sum().backward()
    assert float(vae.decoder.layers[0].weight.grad[:, 3:].abs().sum(dim=(0, 2, 3)).min()) > 0
    with pytest.raises(ValueError, match="5 latent channels already"):
        widen_latents(vae, 5, pixels)


def test_a_wider_unet_predicts_as_before_and_learns_the_new_channels():
    torch.manual_seed(0)
    unet = build_unet(3)
    maps, text = torch.randn(2, 5, 16, 16), torch.randn(2, 4, TEXT_WIDTH)
    with torch.no_grad():
        expected = unet(maps[:, :3], 9, encoder_hidden_states=text).sample
    predicted = widen_unet(unet, 5)(maps, 9, encoder_hidden_states=text).sample
    torch.testing.assert_close(predicted[:, :3], expected)
    assert not predicted[:, 3:].any()
    (predicted - maps).square().sum().backward()
    assert float(unet.conv_out.weight.grad[3:].abs().sum(dim=(1, 2, 3)).min()) > 0
    assert float(unet.conv_in.weight.grad[:, 3:].abs().sum(dim=(0, 2, 3)).min()) > 0
    with pytest.raises(ValueError, match="5 latent channels"):
        widen_unet(unet, 4)


class Copy(torch.nn.Module):
    """Latents are the pictures."""

    class Out:
        def __init__(self, **values):
            self.__dict__.update(values)

    def encode(self, pixels):
        return self.Out(latents=pixels)

    def decode(self, latents):
        return self.Out(sample=latents)


def test_a_perfect_autoencoder_has_no_error_in_any_view():
    batch = {"pixels": torch.randint(256, (2, 3, 16, 16), generator=generator(), dtype=torch.uint8)}
    loss = AutoencoderLoss(noise=0, moments=0, squared=2, equivariance=1, scales=2)
    for seed in range(6):
        assert float(loss({"vae": Copy()}, batch, generator(seed))[0]) == pytest.approx(0, abs=1e-6)


def test_nested_latents_are_decoded_from_their_first_half():
    batch = {"pixels": torch.zeros(2, 4, 8, 8, dtype=torch.uint8)}
    seen = []

    def decode(vae, latents, random):
        seen.append(latents)
        return latents

    for share in (1.0, 0.0):
        AutoencoderLoss(noise=0, nested=share, decode=decode)({"vae": Copy()}, batch, generator())
    cut, whole = seen
    assert torch.equal(cut[:, :2], whole[:, :2])
    assert not cut[:, 2:].any()
    assert whole[:, 2:].all()


def test_the_squared_error_counts_where_the_decoder_draws():
    batch = {"pixels": torch.full((2, 3, 12, 12), 255, dtype=torch.uint8)}

    def decode(vae, latents, random):
        return center(latents, (8, 8)) - 0.5

    for weight, expected in ((0, 0.5), (2, 1.0)):
        loss = AutoencoderLoss(noise=0, moments=0, squared=weight, decode=decode)
        assert float(loss({"vae": Copy()}, batch, generator())[0]) == pytest.approx(expected)
