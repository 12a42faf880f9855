"""Lagged and strided masks, guidance interval, few-step bases, and compilation that nothing of a call repeats."""

import pytest
import torch
from diffusers import LCMScheduler
from torch._dynamo.utils import counters

from realcustom import MaskSettings, Subject
from realcustom.guidance.mask import Updates

PROMPT = "a robot and a dog with the pink hat in the snow"


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request):
    return request.getfixturevalue("tiny_pipeline" if request.param == "sd" else "tiny_xl_pipeline")


def run(pipe, image, prompt=PROMPT, **call):
    call = {"num_inference_steps": 4, "output_type": "pt", "generator": torch.Generator().manual_seed(1), **call}
    return pipe(prompt, {"dog": image}, **call)


def batches(pipe):
    """The batch sizes of the U-Net's calls from now on."""
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[0]))
    return seen


def test_lagged_mask_is_one_call_a_step(pipe, reference_image):
    seen = batches(pipe)
    out = run(pipe, reference_image, mask=MaskSettings(lagged=True))
    assert seen == [1, 2, 3, 3, 3]
    masks = out.masks["dog"]
    # The first two steps share the first guidance pass's mask.
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert out.images.isfinite().all()


def test_a_lagged_mask_is_the_mask_of_the_step_before(pipe, reference_image):
    """With strength 0 the latents do not depend on the masks: the lagged ones are the others, a step late."""
    subject = Subject((reference_image,), strength=0.0)
    prompt = run(pipe, subject, mask=MaskSettings())
    late = run(pipe, subject, mask=MaskSettings(lagged=True))
    # Step 1 is recorded by the batch of step 1 and used at step 2.
    torch.testing.assert_close(late.masks["dog"][2:], prompt.masks["dog"][1:-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(late.images, prompt.images, rtol=0, atol=1e-5)


def test_eq_13_takes_its_text_prediction_from_the_shared_batch(pipe, reference_image):
    scales = {"guidance_scale": 4.0, "image_guidance_scale": 4.0}
    seen = batches(pipe)
    lagged = run(pipe, reference_image, mask=MaskSettings(lagged=True), **scales)
    assert seen == [1, 2, 3, 3, 3]
    single = run(pipe, reference_image, mask=MaskSettings(lagged=True), guidance_scale=4.0)
    torch.testing.assert_close(lagged.images, single.images, rtol=0, atol=1e-4)


def test_strided_guidance_branch_sees_smaller_latents(pipe, reference_image):
    sizes = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: sizes.append(tuple(arguments[0].shape[-2:])))
    full = run(pipe, reference_image)
    sizes.clear()
    out = run(pipe, reference_image, mask=MaskSettings(stride=2))
    side = sizes[1][0]
    assert sizes == [(side // 2, side // 2), (side, side)] * 4
    assert out.masks["dog"].shape == full.masks["dog"].shape
    assert out.images.isfinite().all()


def test_guidance_interval_saves_the_negative_images(pipe, reference_image):
    seen = batches(pipe)
    out = run(pipe, reference_image, guidance_interval=(0.0, 0.5), mask=MaskSettings(updates=Updates(until=1)))
    assert seen == [1, 2, 2, 1, 1]
    assert out.images.isfinite().all()


def test_few_step_base_needs_no_negative_pass(pipe, reference_image):
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    seen = batches(pipe)
    out = run(pipe, reference_image, guidance_scale=1.0, mask=MaskSettings(lagged=True))
    assert seen == [1, 1, 2, 2, 2]
    assert out.images.isfinite().all()


def test_missing_levels_and_strided_lag_are_refused(pipe, reference_image):
    with pytest.raises(ValueError, match="levels"):
        run(pipe, reference_image, mask=MaskSettings(word_levels=(9,)))
    with pytest.raises(ValueError, match="stride"):
        MaskSettings(stride=2, lagged=True)


def test_compiled_blocks_are_compiled_once(pipe, reference_image):
    expected = run(pipe, reference_image, mask=MaskSettings()).images
    torch._dynamo.reset()
    pipe.compile_blocks(backend="eager")
    before = dict(counters["stats"])
    torch.testing.assert_close(run(pipe, reference_image).images, expected, rtol=0, atol=1e-4)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > before.get("unique_graphs", 0)
    run(pipe, Subject((reference_image,), strength=0.5), "a dog on the beach", num_inference_steps=6)
    run(pipe, reference_image, mask=MaskSettings(scope=0.4, updates=Updates(until=3)), guidance_scale=2.0)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
