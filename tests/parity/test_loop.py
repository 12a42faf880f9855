"""The released denoising loop, step by step, with both mask-reuse settings."""

import torch

from realcustom.encoders.image import ReferenceFeatures
from realcustom.guidance.guidance_scale import SingleScale
from realcustom.guidance.mask import MaskSettings, Updates
from realcustom.models.attention import VisualKeysValues
from realcustom.models.backbone import Text
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.denoise import Conditions, Sampling, denoise
from realcustom.pipelines.references import FixedReferences
from realcustom.pipelines.scheduler import RealCustomScheduler

from .released_unet import load_released, released_resize
from .test_masks import normalisation_of, rule_of

MASK_TOLERANCE, PREDICTION_TOLERANCE, RELATIVE = 1e-4, 5e-4, 1e-4


def text(given, kind, batch):
    added = {"text_embeds": given[f"pooled_{kind}"].expand(batch, -1), "time_ids": given["time_ids"]}
    return Text(embeds=given[f"text_{kind}"].expand(batch, -1, -1), added=added)


def layers(adapter, given, kind):
    features = ReferenceFeatures(given[f"deep_{kind}"], given[f"deep_local_{kind}"])
    return VisualKeysValues([(key[None], value[None]) for key, value in adapter(features)])


def conditions_of(given, adapter, batch):
    return Conditions(
        text=text(given, "pos", batch),
        negative=text(given, "neg", batch),
        token_weights=given["target_token"].unsqueeze(0).expand(batch, -1, -1),
        strengths=torch.ones(1),
        regions=None,
        references=FixedReferences(layers(adapter, given, "pos"), layers(adapter, given, "neg")),
    )


def settings_of(case):
    mode = case["mask_strategy"]
    return MaskSettings(
        scope=case["mask_scope"],
        normalisation=normalisation_of(mode),
        rule=rule_of(mode),
        spread=0,
        updates=Updates(until=case["mask_reused_step"]),
    )


class SeenGuidance(SingleScale):
    """The formula, which also notes the predictions it combines."""

    def combine(self, negative, text, full):
        seen.append((negative, full))
        return super().combine(negative, text, full)


seen = []


@torch.no_grad()
def test_whole_loop(load_reference, reference_folder, max_difference, monkeypatch):
    monkeypatch.setattr("realcustom.models.unet.resize", released_resize)
    reference = load_reference("loop")
    unet, adapter = load_released(reference_folder)
    for name, case in reference.meta["cases"].items():
        given, expected = reference.under(f"{name}/in/"), reference.under(f"{name}/out/")
        noise = torch.randn(given["latent"].shape, generator=torch.Generator().manual_seed(case["seed"]))
        assert torch.equal(noise, given["latent"])
        batch = case["batch"]
        backbone = UNetBackbone(unet)
        assert backbone.mask_grid(noise) == tuple(expected["masks"].shape[-2:])
        scheduler = RealCustomScheduler()
        scheduler.set_timesteps(case["steps"])
        assert scheduler.timesteps.tolist() == expected["timesteps"].tolist()
        latents = noise
        sampling = Sampling(scheduler=scheduler, steps=case["steps"], timesteps=scheduler.timesteps, step_kwargs={})
        conditions, guidance = conditions_of(given, adapter, batch), SeenGuidance(case["guidance_scale"])
        with backbone.installed():
            largest = expected["latents"].abs().max()
            for step in denoise(backbone, sampling, latents, conditions, guidance, settings_of(case)):
                index, (negative, full) = step.index, seen.pop()
                assert max_difference(latents, expected["latents"][index]) <= RELATIVE * largest, (name, index)
                assert max_difference(step.masks, expected["masks"][index]) <= MASK_TOLERANCE, (name, index)
                assert max_difference(full, expected["pred_cond"][index]) <= PREDICTION_TOLERANCE, (name, index)
                assert max_difference(negative, expected["pred_uncond"][index]) <= PREDICTION_TOLERANCE, (name, index)
                latents = step.latents
        final = expected["pred_original_sample"]
        assert max_difference(latents, final) <= RELATIVE * final.abs().max(), name
