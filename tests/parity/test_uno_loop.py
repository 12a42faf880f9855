"""The whole denoising loop of the release through our pipeline: every step's latents and velocities, float32 and bf16.

The text comes in encoded and the references as latents: a stand-in for the VAE gives out what the reference's did.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from realcustom import UNOPipeline
from realcustom.guidance.guidance_scale import EmbeddedScale
from realcustom.models.backbone import Text
from realcustom.models.flow import released_tokens, shift_exponent
from realcustom.models.flux import FluxBackbone, SubjectReferences
from realcustom.models.uno import PLACES, pack, reference_tokens, unpack
from realcustom.pipelines.denoise import Sampling, unmasked
from realcustom.pipelines.uno_references import UnoSettings

from .flux_small import build_uno, stored_latents

TOLERANCE = 1e-4
BF16_TOLERANCE = 0.1
IMAGE_LEVELS = 6


class StoredLatents(torch.nn.Module):
    """A VAE whose encoder hands out stored latents in turn, and whose decoder shows three channels of them."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0, block_out_channels=(1,) * 4, latent_channels=16)

    def __init__(self, latents, dtype):
        super().__init__()
        self.latents, self.dtype, self.device = iter(latents), dtype, torch.device("cpu")

    def encode(self, images):
        latent = next(self.latents)
        assert images.shape[-2:] == tuple(8 * side for side in latent.shape[-2:])
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latent.to(self.dtype)))

    def decode(self, latents, return_dict):
        return (latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3),)


def run(transformer, given, info, **call):
    """The loop of a case: latents after every step, velocity of every step, and what the pipeline returns."""
    dtype = given["txt"].dtype
    references = stored_latents(given)
    pipe = UNOPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=StoredLatents(references, dtype),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    latents, velocities = [], []
    hook = transformer.register_forward_hook(lambda module, args, out: velocities.append(out[0]))

    def callback(pipeline, index, timestep, tensors):
        latents.append(tensors["latents"])
        return {}

    result = pipe(
        prompt_embeds=given["txt"],
        pooled_prompt_embeds=given["vec"],
        references=[Image.new("RGB", (8 * each.shape[-1], 8 * each.shape[-2])) for each in references],
        uno=UnoSettings(fit=lambda size, side: size, place=PLACES[info["pe"]]),
        num_inference_steps=info["steps"],
        guidance_scale=info["guidance"],
        callback_on_step_end=callback,
        **call,
    )
    hook.remove()
    tokens = latents[0].shape[1]
    return latents, [velocity[:, :tokens] for velocity in velocities], result.images, pipe.scheduler.sigmas


@pytest.fixture(scope="module")
def loop(load_reference):
    return load_reference("uno/loop")


def float32_cases(loop):
    return {name: info for name, info in loop.meta["cases"].items() if "dtype" not in info}


def test_every_step_of_every_loop(loop, max_difference, reference_folder):
    """The loop itself, also without references and with several images, whose references are their own."""
    transformer = build_uno(reference_folder)
    for case, info in float32_cases(loop).items():
        given = loop.under(f"{case}/in/")
        grid = tuple(side // 2 for side in given["noise"].shape[-2:])
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        mu = shift_exponent(released_tokens(info["height_px"], info["width_px"]))
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / info["steps"], info["steps"]), mu=mu)
        added = {"pooled_projections": given["vec"]}
        if transformer.config.guidance_embeds:
            added["guidance"] = torch.full((info["batch"],), info["guidance"])
        tokens = reference_tokens(stored_latents(given), grid, PLACES[info["pe"]])
        references = None
        if tokens is not None:
            references = SubjectReferences(tokens=tokens, shares=torch.eye(len(tokens.counts))[None])
        sampling = Sampling(scheduler=scheduler, steps=info["steps"], timesteps=scheduler.timesteps, step_kwargs={})
        texts = (Text(embeds=given["txt"], added=added), None)
        backbone = FluxBackbone(transformer, grid)
        with torch.no_grad(), backbone.installed():
            steps = list(unmasked(backbone, sampling, pack(given["noise"]), texts, references, EmbeddedScale()))
        latents = torch.stack([step.latents for step in steps])
        assert max_difference(latents, loop[f"{case}/out/tokens"][1:]) <= TOLERANCE, case


def test_the_pipeline_with_references(loop, max_difference, reference_folder):
    transformer = build_uno(reference_folder)
    single = {name: info for name, info in float32_cases(loop).items() if info["batch"] == 1 and info["ref_latent_hw"]}
    assert single
    for case, info in single.items():
        given = loop.under(f"{case}/in/")
        latents, velocities, final, sigmas = run(
            transformer, given, info, latents=pack(given["noise"]), height=info["height_px"], width=info["width_px"],
            output_type="latent",
        )  # fmt: skip
        grid = tuple(side // 2 for side in given["noise"].shape[-2:])
        assert max_difference(sigmas, loop[f"{case}/out/timesteps"]) <= 1e-6
        assert max_difference(torch.stack(latents), loop[f"{case}/out/tokens"][1:]) <= TOLERANCE, case
        assert max_difference(torch.stack(velocities), loop[f"{case}/out/preds"]) <= TOLERANCE, case
        assert max_difference(unpack(final, grid), loop[f"{case}/out/latent"]) <= TOLERANCE, case


def test_the_releases_own_pipeline_in_bfloat16(loop, max_difference, reference_folder):
    """From the seed to the 8-bit picture; noise drawn in bfloat16, times as the release rounds them."""
    cases = {name: info for name, info in loop.meta["cases"].items() if "dtype" in info}
    assert cases
    transformer = build_uno(reference_folder, torch.bfloat16)
    for case, info in cases.items():
        given = loop.under(f"{case}/in/")
        size = {"height": info["used_height"], "width": info["used_width"]}
        generator = torch.Generator().manual_seed(info["seed"])
        latents, _, image, _ = run(transformer, given, info, generator=generator, output_type="np", **size)
        grid = tuple(side // 2 for side in given["noise"].shape[-2:])
        assert max_difference(unpack(latents[-1], grid).float(), loop[f"{case}/out/latent"]) <= BF16_TOLERANCE
        levels = np.round(image[0] * 255) - loop[f"{case}/out/image"].numpy().astype(float)
        assert np.abs(levels).max() <= IMAGE_LEVELS
