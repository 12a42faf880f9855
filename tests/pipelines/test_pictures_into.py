"""Runs that start from a picture, fill a hole or are under a ControlNet: stock without a subject, and with one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build_unet, build_xl_unet
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image, ImageDraw

from realcustom.pipelines.controls import joined_nets
from realcustom.types import Subject

OWN = ("adapter", "reference_encoder", "controlnet")
STEPS = {"num_inference_steps": 4, "guidance_scale": 4.0, "negative_prompt": "snow", "output_type": "np"}


def scene(width=64, height=64):
    """A picture with edges at every scale."""
    rows = np.random.default_rng(0).integers(256, size=(height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BILINEAR)


def hole(width=64, height=64, box=(16, 8, 48, 40)):
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def stock(pipe, cls, **extra):
    components = {name: part for name, part in pipe.components.items() if name not in OWN}
    if not cls.__name__.startswith("StableDiffusionXL"):
        extra["requires_safety_checker"] = False
    relative = cls(**components, **extra)
    relative.set_progress_bar_config(disable=True)
    return relative


def drawn(pipe, *subjects, **call):
    generator = torch.Generator().manual_seed(3)
    return pipe("a dog on the beach", *subjects, generator=generator, **{**STEPS, **call}).images


def native(width_of):
    """A U-Net with the input of an inpainting model."""
    torch.manual_seed(1)
    unet = width_of()
    wide = torch.nn.Conv2d(9, unet.conv_in.out_channels, 3, padding=1)
    unet.conv_in = wide
    unet.register_to_config(in_channels=9)
    return unet


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request):
    return request.getfixturevalue("tiny_pipeline" if request.param == "sd" else "tiny_xl_pipeline")


def of(pipe, plain, large):
    return large if hasattr(pipe, "text_encoder_2") else plain


SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_equals_stock(pipe, scheduler, strength):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    theirs = stock(pipe, of(pipe, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline))
    call = {"image": scene(96, 64), "strength": strength}
    np.testing.assert_allclose(drawn(pipe, **call), drawn(theirs, **call), atol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("knows_holes", [False, True])
def test_inpainting_equals_stock(pipe, scheduler, strength, knows_holes):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    if knows_holes:
        pipe.unet = native(of(pipe, build_unet, build_xl_unet))
    theirs = stock(pipe, of(pipe, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline))
    call = {"image": scene(), "mask_image": hole(), "strength": strength, "height": 64, "width": 64}
    np.testing.assert_allclose(drawn(pipe, **call), drawn(theirs, **call), atol=1e-5)


def test_only_the_hole_and_its_surroundings_equals_stock(pipe):
    theirs = stock(pipe, of(pipe, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline))
    call = {"image": scene(160, 128), "mask_image": hole(160, 128), "padding_mask_crop": 8, "strength": 0.8}
    call |= {"height": 64, "width": 64, "output_type": "pil"}
    (ours,), (expected,) = drawn(pipe, **call), drawn(theirs, **call)
    assert ours.size == (160, 128)
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1


@pytest.fixture
def controlled(pipe):
    torch.manual_seed(2)
    nets = [ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)) for _ in range(2)]
    for net in nets:  # zero convolutions would say nothing
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.2)
    pipe.register_modules(controlnet=nets[0].eval())
    return pipe, nets


def test_control_equals_stock(controlled):
    pipe, nets = controlled
    theirs = stock(
        pipe, of(pipe, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline), controlnet=nets[0]
    )
    span = {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.2, "control_guidance_end": 0.8}
    size = {"height": 64, "width": 64}
    ours = drawn(pipe, control_image=scene(), **span, **size)
    np.testing.assert_allclose(ours, drawn(theirs, image=scene(), **span, **size), atol=1e-5)
    assert np.abs(ours - drawn(pipe, **size)).max() > 0.01


def test_several_controls_on_pictures_equal_stock(controlled, tiny_pipeline):
    pipe, nets = controlled
    if pipe is not tiny_pipeline:
        pytest.skip("SDXL differs in its conditions only, which the tests above hold")
    pipe.register_modules(controlnet=joined_nets(nets))
    several = {"control_image": [scene(), hole().convert("RGB")], "controlnet_conditioning_scale": [0.7, 0.4]}
    several |= {"control_guidance_start": [0.0, 0.4], "control_guidance_end": [0.6, 1.0]}
    start = {"image": scene(), "strength": 0.8, **several}
    theirs = stock(pipe, StableDiffusionControlNetImg2ImgPipeline, controlnet=nets)
    expected = drawn(theirs, height=64, width=64, **start)
    np.testing.assert_allclose(drawn(pipe, **start), expected, atol=1e-5)
    theirs = stock(pipe, StableDiffusionControlNetInpaintPipeline, controlnet=nets)
    start |= {"mask_image": hole(), "height": 64, "width": 64}
    np.testing.assert_allclose(drawn(pipe, **start), drawn(theirs, **start), atol=1e-5)


def test_a_control_on_a_network_that_knows_holes_equals_stock(controlled):
    pipe, nets = controlled
    if hasattr(pipe, "text_encoder_2"):
        pytest.skip("SDXL differs in its conditions only, which the tests above hold")
    pipe.unet = native(build_unet)
    theirs = stock(pipe, StableDiffusionControlNetInpaintPipeline, controlnet=nets[0])
    call = {"image": scene(), "mask_image": hole(), "control_image": scene(), "height": 64, "width": 64}
    call |= {"controlnet_conditioning_scale": 0.7, "strength": 0.8}
    np.testing.assert_allclose(drawn(pipe, **call), drawn(theirs, **call), atol=1e-5)


def test_a_control_is_cut_as_the_picture_is(controlled, tiny_pipeline):
    pipe, nets = controlled
    if pipe is not tiny_pipeline:
        pytest.skip("the same code")
    theirs = stock(pipe, StableDiffusionControlNetInpaintPipeline, controlnet=nets[0])
    call = {"image": scene(160, 128), "mask_image": hole(160, 128), "padding_mask_crop": 8, "height": 64, "width": 64}
    call |= {"control_image": scene(160, 128), "controlnet_conditioning_scale": 0.7, "output_type": "pil"}
    (ours,), (expected,) = drawn(pipe, **call), drawn(theirs, **call)
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
    call["control_image"] = scene(160, 128).resize((80, 64))  # of another size it is stretched to the picture first
    assert np.abs(np.asarray(drawn(pipe, **call)[0], dtype=int) - np.asarray(ours, dtype=int)).mean() < 8


def test_a_control_of_another_family_is_refused(tiny_pipeline, tiny_xl_pipeline, reference_image):
    for pipe, other in ((tiny_pipeline, tiny_xl_pipeline), (tiny_xl_pipeline, tiny_pipeline)):
        pipe.register_modules(controlnet=ControlNetModel.from_unet(other.unet))
        with pytest.raises(ValueError, match="another model family"):
            drawn(pipe, {"dog": reference_image}, control_image=scene())


CALLS = {
    "image": {"image": scene(), "strength": 0.7},
    "hole": {"image": scene(), "mask_image": hole()},
    "crop": {"image": scene(96, 96), "mask_image": hole(96, 96), "padding_mask_crop": 4},
    "control": {"control_image": scene(), "control_guidance_end": 0.7},
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_subject_without_strength_leaves_the_text_to_itself(controlled, reference_image, kind):
    pipe, _ = controlled
    call = {**CALLS[kind], "height": 64, "width": 64, "output_type": "pil"}
    (plain,) = drawn(pipe, **call)
    (silent,) = drawn(pipe, {"dog": Subject(reference_image, strength=0.0)}, **call)
    (subject,) = drawn(pipe, {"dog": reference_image}, **call)
    plain, silent, subject = (np.asarray(image, dtype=int) for image in (plain, silent, subject))
    assert np.abs(plain - silent).max() <= 1
    assert np.abs(plain - subject).max() > 1


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("settings", [{}, {"lagged": True}, {"stride": 2}])
def test_a_batch_is_its_images_one_by_one(controlled, reference_image, kind, settings):
    pipe, _ = controlled
    mask = replace(pipe.default_mask, **settings)
    call = {**STEPS, **CALLS[kind], "height": 64, "width": 64, "output_type": "pil", "mask": mask}
    call |= {"image_guidance_scale": 2.0} if settings else {}
    subjects = {"dog": reference_image}

    def images(*seeds):
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            "a dog on the beach", subjects, generator=generator, num_images_per_prompt=len(seeds), **call
        ).images

    together, alone = images(5, 6), [images(5)[0], images(6)[0]]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_the_subject_stands_in_the_hole(tiny_pipeline, reference_image):
    call = {**STEPS, "image": scene(), "mask_image": hole(box=(0, 0, 31, 63)), "height": 64, "width": 64}
    out = tiny_pipeline("a dog on the beach", {"dog": reference_image}, **call)
    assert not out.masks["dog"][..., 4:].any()
    elsewhere = {"dog": Subject(reference_image, region=(0.5, 0, 1, 1))}
    assert not tiny_pipeline("a dog on the beach", elsewhere, **call).masks["dog"][..., :4].any()


def test_a_region_is_cut_as_the_picture_is(tiny_pipeline, reference_image):
    call = {**STEPS, "image": scene(128, 128), "mask_image": hole(128, 128, (64, 64, 127, 127)), "padding_mask_crop": 0}
    call |= {"height": 64, "width": 64, "output_type": "pil"}
    right = {"dog": Subject(reference_image, region=(0.75, 0, 1, 1))}
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((96, 0, 127, 127), fill=255)
    for subjects in (right, {"dog": Subject(reference_image, region=mask)}):
        masks = tiny_pipeline("a dog on the beach", subjects, **call).masks["dog"]
        assert masks.shape[-2:] == (16, 16)
        assert not masks[..., :12].any()
        assert not masks[..., :8, :].any()
        assert masks[..., 12:].any()
    with pytest.raises(ValueError, match="lies outside the part"):
        tiny_pipeline("a dog on the beach", {"dog": Subject(reference_image, region=(0, 0, 0.4, 1))}, **call)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"mask_image": hole()}, "give image, too"),
        ({"strength": 0.5}, "give image, too"),
        ({"image": scene(), "strength": 0.0}, "above 0 up to 1"),
        ({"image": scene(), "strength": 0.1}, "less than one"),
        ({"image": scene(), "padding_mask_crop": 8}, "give mask_image, too"),
        ({"image": scene(), "mask_image": Image.new("L", (64, 64))}, "black everywhere"),
        ({"control_image": scene()}, "needs a ControlNet"),
    ],
)
def test_what_does_not_fit_together_is_said(tiny_pipeline, reference_image, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        drawn(tiny_pipeline, {"dog": reference_image}, **call)


def test_an_inpainting_base_needs_a_hole(tiny_pipeline, reference_image):
    tiny_pipeline.unet = native(build_unet)
    with pytest.raises(ValueError, match="fills holes"):
        drawn(tiny_pipeline, {"dog": reference_image})
