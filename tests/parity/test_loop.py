"""The released denoising loop, step by step, with both mask-reuse settings."""

import torch

from realcustom.encoders.image import ReferenceFeatures
from realcustom.guidance.guidance_scale import SingleScale
from realcustom.guidance.mask import MaskSettings
from realcustom.models.attention import installed
from realcustom.pipelines.branches import Conditions, Text, denoise, mask_grid
from realcustom.pipelines.scheduler import RealCustomScheduler

from .released_unet import load_released, released_resize
from .test_masks import NAMES

MASK_TOLERANCE, PREDICTION_TOLERANCE, RELATIVE = 1e-4, 5e-4, 1e-4


def text(given, kind, batch):
    added = {"text_embeds": given[f"pooled_{kind}"].expand(batch, -1), "time_ids": given["time_ids"]}
    return Text(embeds=given[f"text_{kind}"].expand(batch, -1, -1), added=added)


def layers(adapter, given, kind):
    features = ReferenceFeatures(given[f"deep_{kind}"], given[f"deep_local_{kind}"])
    return [(key[None], value[None]) for key, value in adapter(features)]


def conditions_of(given, adapter, batch):
    positive, negative = layers(adapter, given, "pos"), layers(adapter, given, "neg")
    return Conditions(
        text=text(given, "pos", batch),
        negative=text(given, "neg", batch),
        token_weights=given["target_token"].unsqueeze(0).expand(batch, -1, -1),
        strengths=torch.ones(1),
        regions=None,
        reference=lambda *_: positive,
        negative_reference=lambda *_: negative,
    )


def settings_of(case):
    mode = case["mask_strategy"]
    return MaskSettings(
        scope=case["mask_scope"],
        normalisation=next(NAMES[name] for name in NAMES if name in mode),
        selection="threshold" if "threshold" in mode else "top-share",
        binary="binary" in mode,
        spread=0,
        update_until=case["mask_reused_step"],
    )


@torch.no_grad()
def test_whole_loop(load_reference, reference_folder, max_difference):
    reference = load_reference("loop")
    unet, adapter = load_released(reference_folder)
    for name, case in reference.meta["cases"].items():
        given, expected = reference.under(f"{name}/in/"), reference.under(f"{name}/out/")
        noise = torch.randn(given["latent"].shape, generator=torch.Generator().manual_seed(case["seed"]))
        assert torch.equal(noise, given["latent"])
        batch, latent_size = case["batch"], tuple(noise.shape[-2:])
        assert mask_grid(unet, latent_size) == tuple(expected["masks"].shape[-2:])
        scheduler = RealCustomScheduler()
        scheduler.set_timesteps(case["steps"])
        assert scheduler.timesteps.tolist() == expected["timesteps"].tolist()
        latents = noise
        with installed(unet, latent_size) as attention:
            attention.resize_mask = released_resize
            loop = denoise(
                unet, scheduler, attention, latents, scheduler.timesteps, conditions_of(given, adapter, batch),
                SingleScale(case["guidance_scale"]), settings_of(case),
            )  # fmt: skip
            largest = expected["latents"].abs().max()
            for step in loop:
                index = step.index
                assert max_difference(latents, expected["latents"][index]) <= RELATIVE * largest, (name, index)
                assert max_difference(step.masks, expected["masks"][index]) <= MASK_TOLERANCE, (name, index)
                assert max_difference(step.full, expected["pred_cond"][index]) <= PREDICTION_TOLERANCE, (name, index)
                difference = max_difference(step.negative, expected["pred_uncond"][index])
                assert difference <= PREDICTION_TOLERANCE, (name, index)
                latents = step.latents
        final = expected["pred_original_sample"]
        assert max_difference(latents, final) <= RELATIVE * final.abs().max(), name
