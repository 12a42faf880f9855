"""Going on from a trained autoencoder with wider latents, and training the base on them."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from realcustom.miniature.builders import build_vae
from realcustom.training import latents
from realcustom.training.loop import train
from realcustom.training.recipes import configure, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name, **options):
    return configure(load_recipe(RECIPES / f"{name}.py"), {key: str(value) for key, value in options.items()})


def test_the_base_trains_on_the_wider_latents_of_an_earlier_autoencoder(cutouts, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 8)
    torch.manual_seed(0)
    earlier = build_vae()
    earlier.to(torch.float16).save_pretrained(tmp_path / "start")
    shared = {"subjects": cutouts, "batch_size": 2, "steps": 1}
    wider = {"start": str(tmp_path / "start"), "latent_channels": 12, "equivariance": 1.0, "noise": 0.03}
    train(
        recipe("miniature_autoencoder", **shared, **wider, workers=0, out=tmp_path / "vae").replace(sample_every=None)
    )
    vae = AutoencoderTiny.from_pretrained(tmp_path / "vae/export")
    assert vae.config.latent_channels == 12
    kept, trained = earlier.float().decoder.layers[0].weight, vae.decoder.layers[0].weight
    torch.testing.assert_close(trained[:, :8], kept, atol=1e-2, rtol=0)
    base = {"vae": tmp_path / "vae/export", "cache": tmp_path / "latents", "count": 8, "workers": 1}
    train(recipe("miniature_base", **shared, **base, out=tmp_path / "base").replace(sample_every=None))
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "base/export/unet")
    assert (unet.config.in_channels, unet.config.out_channels) == (12, 12)
