"""Without a subject our pipelines are diffusers' own, pixel for pixel; and they give the U-Net back untouched."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.scheduler import RealCustomScheduler

OWN = ("adapter", "reference_encoder", "controlnet")


def stock(pipe, cls, **extra):
    components = {name: part for name, part in pipe.components.items() if name not in OWN}
    made = cls(**components, **extra)
    made.set_progress_bar_config(disable=True)
    return made


def images(pipe, **call):
    generator = torch.Generator().manual_seed(3)
    return pipe("a dog on the beach", num_inference_steps=3, generator=generator, output_type="np", **call).images


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler(), RealCustomScheduler()])
def test_sd_without_subject_equals_stock(tiny_pipeline, scheduler):
    if scheduler is not None:
        tiny_pipeline.scheduler = scheduler
    ours = images(tiny_pipeline, guidance_scale=5.0, negative_prompt="snow")
    theirs = images(
        stock(tiny_pipeline, StableDiffusionPipeline, requires_safety_checker=False),
        guidance_scale=5.0,
        negative_prompt="snow",
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler(), RealCustomScheduler()])
def test_sdxl_without_subject_equals_stock(tiny_xl_pipeline, scheduler):
    if scheduler is not None:
        tiny_xl_pipeline.scheduler = scheduler
    ours = images(tiny_xl_pipeline, guidance_scale=5.0, height=64, width=96)
    theirs = images(stock(tiny_xl_pipeline, StableDiffusionXLPipeline), guidance_scale=5.0, height=64, width=96)
    assert np.array_equal(ours, theirs)


def test_text_only_through_our_processors_equals_stock(tiny_xl_pipeline):
    unet = tiny_xl_pipeline.unet
    latents, text = torch.randn(2, 4, 8, 12), torch.randn(2, 77, 64)
    added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.ones(2, 6)}
    call = {"added_cond_kwargs": added, "return_dict": False}
    with torch.no_grad():
        before = unet(latents, 500, text, **call)[0]
        with UNetBackbone(unet).installed():
            during = unet(latents, 500, text, **call)[0]
        after = unet(latents, 500, text, **call)[0]
    torch.testing.assert_close(during, before, rtol=0, atol=1e-5)
    assert torch.equal(after, before)


def test_unet_is_given_back_also_after_an_exception(tiny_pipeline, reference_image):
    before = dict(tiny_pipeline.unet.attn_processors)

    def stop(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        tiny_pipeline("a dog", {"dog": reference_image}, num_inference_steps=2, callback_on_step_end=stop)
    assert tiny_pipeline.unet.attn_processors == before
    tiny_pipeline("a dog", {"dog": reference_image}, num_inference_steps=2)
    assert tiny_pipeline.unet.attn_processors == before
