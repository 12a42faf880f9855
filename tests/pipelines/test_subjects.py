"""Calls with subjects: independence of the batch, several subjects, regions, strengths, both formulas."""

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom import MaskSettings, Subject
from realcustom.guidance.mask import Updates
from realcustom.pipelines.scheduler import RealCustomScheduler

PROMPT = "a robot and a dog with the pink hat in the snow"


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def run(pipe, subjects, generators, **call):
    call = {"num_inference_steps": 4, "output_type": "pt", "num_images_per_prompt": len(generators), **call}
    return pipe(PROMPT, subjects, generator=generators, **call)


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request):
    return request.getfixturevalue("tiny_pipeline" if request.param == "sd" else "tiny_xl_pipeline")


@pytest.fixture
def other_image():
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("scheduler", [RealCustomScheduler(), None])
def test_batch_of_four_is_four_batches_of_one(pipe, reference_image, scheduler):
    pipe.scheduler = scheduler or pipe.scheduler
    together = run(pipe, {"dog": reference_image}, seeds(5, 6, 7, 8))
    for index, seed in enumerate((5, 6, 7, 8)):
        alone = run(pipe, {"dog": reference_image}, seeds(seed))
        assert (alone.images[0] - together.images[index]).abs().max() <= 1e-4
        assert (alone.masks["dog"][:, 0] - together.masks["dog"][:, index]).abs().max() <= 1e-4


def test_the_reference_matters_and_strength_zero_removes_it(pipe, reference_image, other_image):
    first = run(pipe, {"dog": reference_image}, seeds(1)).images
    second = run(pipe, {"dog": other_image}, seeds(1)).images
    assert (first - second).abs().max() > 1e-3
    off = [
        run(pipe, {"dog": Subject((image,), strength=0.0)}, seeds(1)).images for image in (reference_image, other_image)
    ]
    assert torch.equal(*off)


def test_masks_of_each_step_keep_the_scope(pipe, reference_image):
    out = run(pipe, {"dog": reference_image}, seeds(1, 2), mask=MaskSettings(scope=0.25), height=64, width=96)
    masks = out.masks["dog"]
    assert masks.shape[:2] == (4, 2)
    assert masks.shape[3] * 64 == masks.shape[2] * 96
    cells = masks.shape[2] * masks.shape[3]
    assert ((masks > 0).sum(dim=(-2, -1)) <= int(cells * 0.25)).all()
    assert out.images.shape[-2:] == (64, 96)


def test_several_subjects_never_share_a_position(pipe, reference_image, other_image):
    out = run(pipe, {"robot": reference_image, "dog": other_image}, seeds(1), mask=MaskSettings(scope=0.6))
    assert not ((out.masks["robot"] > 0) & (out.masks["dog"] > 0)).any()
    assert list(out.masks) == ["robot", "dog"]


def test_two_places_of_one_word_are_two_subjects(pipe, reference_image, other_image):
    prompt = "a dog and a dog"
    both = {"dog#1": reference_image, "dog#2": other_image}
    out = pipe(prompt, both, num_inference_steps=2, output_type="pt", generator=seeds(1))
    assert list(out.masks) == ["dog#1", "dog#2"]
    swapped = dict(zip(both, reversed(both.values()), strict=True))
    assert (
        pipe(prompt, swapped, num_inference_steps=2, output_type="pt", generator=seeds(1)).images != out.images
    ).any()
    with pytest.raises(ValueError, match='"dog" and "dog#2"'):
        pipe(prompt, {"dog": reference_image, "dog#2": other_image}, num_inference_steps=1)


def test_one_image_under_two_words_and_several_images_of_one_subject(pipe, reference_image, other_image):
    assert run(pipe, {"robot": reference_image, "dog": reference_image}, seeds(1)).images.shape[0] == 1
    uneven = {"robot": [reference_image], "dog": [other_image, reference_image]}
    assert run(pipe, uneven, seeds(1)).images.isfinite().all()


def test_padding_of_uneven_subjects_changes_nothing(pipe, reference_image, other_image):
    """A subject's result does not depend on another subject having more images: its region is the whole left."""
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    single = {"robot": Subject((reference_image,), region=left), "dog": Subject((other_image,), region=right)}
    double = {"robot": single["robot"], "dog": Subject((other_image, other_image), region=right)}
    # The same image twice is the same attention: softmax over duplicated keys with duplicated values.
    torch.testing.assert_close(
        run(pipe, single, seeds(1)).images, run(pipe, double, seeds(1)).images, rtol=0, atol=1e-4
    )


def test_region_confines_the_mask(pipe, reference_image):
    subject = Subject((reference_image,), region=(0.0, 0.0, 0.5, 1.0))
    masks = run(pipe, {"dog": subject}, seeds(1), mask=MaskSettings(scope=0.9)).masks["dog"]
    half = masks.shape[-1] // 2
    assert (masks[..., half:] == 0).all()
    assert (masks[..., :half] > 0).any()


def test_eq_13_and_scale_one(pipe, reference_image):
    both = run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=7.5, image_guidance_scale=12.5)
    assert both.images.isfinite().all()
    assert run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=1.0).images.isfinite().all()


def test_eq_13_with_equal_scales_is_the_single_scale(pipe, reference_image):
    """w_t = w_i = w: eps_neg + w (eps_T - eps_neg) + w (eps_TI - eps_T) = eps_neg + w (eps_TI - eps_neg)."""
    single = run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=2.0).images
    double = run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=2.0, image_guidance_scale=2.0).images
    torch.testing.assert_close(single, double, rtol=0, atol=1e-4)


def test_an_adapter_brings_its_own_scales(pipe, reference_image):
    assert pipe.guidance_scales(None, None) == (3.5, None)
    given = run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=2.0, image_guidance_scale=5.0).images
    single = run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=2.0).images
    before = pipe.adapter.config.guidance
    pipe.adapter.register_to_config(guidance=(2.0, 5.0))
    try:
        assert torch.equal(run(pipe, {"dog": reference_image}, seeds(1)).images, given)
        assert torch.equal(run(pipe, {"dog": reference_image}, seeds(1), guidance_scale=2.0).images, single)
        assert pipe.guidance_scales(None, 4.0) == (2.0, 4.0)
    finally:
        pipe.adapter.register_to_config(guidance=before)


def test_an_adapter_brings_its_own_scope(pipe, reference_image):
    assert pipe.default_mask == MaskSettings()
    wide = run(pipe, {"dog": reference_image}, seeds(1), mask=MaskSettings(scope=0.5)).masks["dog"]
    before = pipe.adapter.config.scope
    pipe.adapter.register_to_config(scope=0.5)
    try:
        assert torch.equal(run(pipe, {"dog": reference_image}, seeds(1)).masks["dog"], wide)
    finally:
        pipe.adapter.register_to_config(scope=before)
    assert (run(pipe, {"dog": reference_image}, seeds(1)).masks["dog"] > 0).float().mean() < (wide > 0).float().mean()


def test_frozen_mask_saves_guidance_passes(pipe, reference_image):
    passes = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    run(pipe, {"dog": reference_image}, seeds(1), mask=MaskSettings(spread=0, updates=Updates(until=2)))
    handle.remove()
    assert len(passes) == 4 + 2
    frozen = run(pipe, {"dog": reference_image}, seeds(1), mask=MaskSettings(updates=Updates(until=2))).masks["dog"]
    assert torch.equal(frozen[1], frozen[2])
    assert torch.equal(frozen[2], frozen[3])


def test_callback_sees_and_replaces_latents(pipe, reference_image):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append(tensors["masks"].shape)
        return {"latents": torch.zeros_like(tensors["latents"])}

    call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "masks"]}
    out = run(pipe, {"dog": reference_image}, seeds(1), output_type="latent", **call)
    assert len(seen) == 4
    assert (out.images == 0).all()


def test_list_of_prompts(pipe, reference_image):
    prompts = ["a dog on the beach", "a red cat and a dog in the forest"]
    generators = seeds(1, 2)
    together = pipe(prompts, {"dog": reference_image}, num_inference_steps=2, generator=generators, output_type="pt")
    alone = pipe(prompts[1], {"dog": reference_image}, num_inference_steps=2, generator=seeds(2), output_type="pt")
    torch.testing.assert_close(together.images[1], alone.images[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "subjects", "message"),
    [
        ("a category", {"cat": None}, "does not stand in the prompt"),
        ("a dog with the pink hat", {"dog": None, "dog with the pink hat": None}, "overlap"),
        ("a dog " + "on the beach " * 60, {"dog": None}, "tokens"),
        (["a dog", "a cat"], {"dog": None}, "does not stand in the prompt"),
    ],
)
def test_refusals(pipe, reference_image, prompt, subjects, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, dict.fromkeys(subjects, reference_image), num_inference_steps=1)
