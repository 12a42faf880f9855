"""A converted release through `Engine` runs the released loop with the release's settings, step by step.

What is expected is put together here from the parts that the other tests compare with the released code: text as the
release conditions on it, its sampler, its mask settings, its scale.
"""

import numpy as np
import pytest
import torch
from conftest import picture
from release_files import build_base, build_release

from realcustom import Engine, Request
from realcustom.convert.folder import convert
from realcustom.convert.release import NEGATIVE_PROMPT
from realcustom.guidance.guidance_scale import SingleScale
from realcustom.guidance.mask import NORMALISATIONS, RULES, MaskSettings, Updates
from realcustom.models.attention import VisualKeysValues
from realcustom.models.backbone import Text
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.denoise import Conditions, Sampling, denoise
from realcustom.pipelines.references import FixedReferences
from realcustom.pipelines.scheduler import RealCustomScheduler

PROMPT, WORD, SEED = "a dog on the beach", "dog", 11
WIDTH, HEIGHT = 96, 64  # not square: the release gives the width first


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    base, unet = build_base(folder / "base", large=True)
    release = build_release(folder / "release", unet)
    plain_unet = release / "ckpts" / "sdxl" / "unet"
    plain_unet.rename(folder / "unet")
    convert([release], folder / "ours", unet_config=base / "unet" / "config.json")
    return Engine.load(str(base), adapter=str(folder / "ours"), variant="full")


def released_text(pipe, prompt: str) -> Text:
    """Second-to-last hidden states of both encoders; the pooled text before its projection; sizes, width first."""
    hidden = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden.append(encoder(ids, output_hidden_states=True).hidden_states[-2])
    pooled = pipe.text_encoder_2.text_model(ids).pooler_output
    sizes = torch.tensor([[WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT]], dtype=torch.float32)
    return Text(embeds=torch.cat(hidden, dim=-1), added={"text_embeds": pooled, "time_ids": sizes})


def released_loop(pipe, image, negative_prompt: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Latents and the mask of every step."""
    features, black = pipe.reference_encoder.encode([image]), pipe.reference_encoder.negative(1)
    references = [
        VisualKeysValues([(key[None], value[None]) for key, value in pipe.adapter(each)]) for each in (features, black)
    ]
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77).input_ids
    (position,) = [index for index, token in enumerate(pipe.tokenizer.convert_ids_to_tokens(ids)) if "dog" in token]
    weights = torch.zeros(1, 1, 77)
    weights[0, 0, position] = 1
    conditions = Conditions(
        text=released_text(pipe, PROMPT),
        negative=released_text(pipe, negative_prompt),
        token_weights=weights,
        strengths=torch.ones(1),
        regions=None,
        references=FixedReferences(*references),
    )
    scheduler = RealCustomScheduler()
    scheduler.set_timesteps(25)
    size = (HEIGHT // 8, WIDTH // 8)
    latents = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(SEED))
    settings = MaskSettings(
        scope=0.2,
        normalisation=NORMALISATIONS["min-max-per-layer"],
        rule=RULES["top-share"],
        updates=Updates(until=12),
        spread=0,
    )
    sampling = Sampling(scheduler=scheduler, steps=25, timesteps=scheduler.timesteps, step_kwargs={})
    backbone, masks = UNetBackbone(pipe.unet), []
    with backbone.installed():
        for step in denoise(backbone, sampling, latents, conditions, SingleScale(3.5), settings):
            masks.append(step.masks)
            latents = step.latents
    return latents, masks


@torch.no_grad()
@pytest.mark.parametrize("negative_prompt", [None, ""])
def test_the_whole_loop_with_the_settings_that_were_converted(engine, negative_prompt):
    """None is the negative prompt that travels with the weights; "" is empty in both embeddings."""
    asked = {"prompt": PROMPT, "subjects": {WORD: picture(0)}, "seed": SEED, "width": WIDTH, "height": HEIGHT}
    result = engine.run(Request(**asked, negative_prompt=negative_prompt))
    expected = NEGATIVE_PROMPT if negative_prompt is None else negative_prompt
    latents, masks = released_loop(engine.pipeline, picture(0), expected)
    assert result.masks[WORD].shape[0] == 25
    for step, mask in enumerate(masks):
        assert np.abs(result.masks[WORD][step] - mask[:, 0].numpy()).max() <= 1e-4, step
    assert all(torch.equal(masks[12], mask) for mask in masks[13:]), "frozen from step 12 on"
    pipe = engine.pipeline
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    image = ((decoded[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(result.images[0], dtype=float) - image).max() <= 1


@torch.no_grad()
def test_a_missing_negative_prompt_is_the_empty_one(engine):
    """In both embeddings; stock SDXL would put zeros in the place of one of them."""
    pipe = engine.pipeline
    call = {"subjects": {WORD: picture(0)}, "num_inference_steps": 2, "output_type": "latent"}
    settings = pipe.config.defaults
    pipe.register_to_config(defaults={**settings, "negative_prompt": None})
    try:
        missing, empty = (
            pipe(PROMPT, negative_prompt=negative, generator=torch.Generator().manual_seed(0), **call).images
            for negative in (None, "")
        )
    finally:
        pipe.register_to_config(defaults=settings)
    assert torch.equal(missing, empty)
