"""UNOPipeline on a tiny random FLUX: the stock pipeline without references, exact and repeatable with them."""

import numpy as np
import pytest
import torch
from conftest import picture
from diffusers import FluxPipeline
from tiny_flux import T5_TOKENS, build_flux_components, build_uno_pipeline

from realcustom import UNOPipeline
from realcustom.guidance.mask import RULES, MaskSettings
from realcustom.models.flow import image_tokens
from realcustom.models.uno import PLACES
from realcustom.pipelines.uno_references import UnoSettings

PROMPT = "a dog and a cat on the sofa"
SMALL = UnoSettings(side=lambda count: 32)
CALL = {"height": 48, "width": 64, "num_inference_steps": 3, "max_sequence_length": T5_TOKENS, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(tokenizer):
    return build_uno_pipeline(tokenizer)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Scores near 0 stand for themselves in a soft mask, and this loud network tells 1e-7 from 0.
BINARY = MaskSettings(rule=RULES["top-share-binary"])


def draw(pipe, prompt=PROMPT, **arguments):
    arguments = {"generator": seeded(), "uno": SMALL, **CALL, **arguments}
    return pipe(prompt, **arguments).images


@pytest.mark.parametrize("guidance", [True, False])
def test_without_a_reference_it_is_the_stock_pipeline(tokenizer, guidance):
    stock = FluxPipeline(**build_flux_components(tokenizer, guidance))
    stock.set_progress_bar_config(disable=True)
    ours = build_uno_pipeline(tokenizer, guidance)
    for arguments in ({}, {"negative_prompt": "a hat", "true_cfg_scale": 2.0, "num_images_per_prompt": 2}):
        expected = stock(PROMPT, generator=seeded(), **CALL, **arguments).images
        assert np.array_equal(ours(PROMPT, generator=seeded(), **CALL, **arguments).images, expected)
        assert np.array_equal(ours(PROMPT, {}, references=[], generator=seeded(), **CALL, **arguments).images, expected)


@pytest.mark.parametrize("guidance", [True, False])
def test_references_of_any_number_and_size_change_the_image(tokenizer, guidance):
    pipe = build_uno_pipeline(tokenizer, guidance)
    references = [picture(1), picture(2).resize((64, 40)), picture(3).resize((20, 48))]
    images = [draw(pipe, references=references[:count]) for count in (0, 1, 2, 3)]
    for index, image in enumerate(images):
        assert all(np.abs(image - other).max() > 1e-3 for other in images[index + 1 :])


def test_a_seed_is_one_image(pipe):
    first, again = (draw(pipe, references=[picture(1)]) for _ in range(2))
    torch.manual_seed(5)
    assert np.array_equal(first, again)
    assert np.array_equal(first, draw(pipe, references=[picture(1)]))


def test_every_place_and_both_schedules_differ(pipe):
    references = [picture(1), picture(2)]
    images = [
        draw(pipe, references=references, uno=UnoSettings(side=lambda count: 32, place=place))
        for place in PLACES.values()
    ]
    images.append(draw(pipe, references=references, uno=UnoSettings(side=lambda count: 32, token_count=image_tokens)))
    for index, image in enumerate(images):
        assert all(np.abs(image - other).max() > 1e-5 for other in images[index + 1 :])


@pytest.mark.parametrize(
    "given",
    [{"references": [picture(1)]}, {"subjects": {"dog": picture(1), "cat": picture(2)}, "mask": BINARY}],
    ids=["references", "subjects"],
)
def test_four_images_are_four_calls(pipe, given):
    together = draw(pipe, num_images_per_prompt=4, generator=[seeded(seed) for seed in range(4)], **given)
    for seed in range(4):
        alone = draw(pipe, generator=seeded(seed), **given)
        assert np.abs(together[seed] - alone[0]).max() <= 1e-5


def test_several_prompts_with_subjects_of_their_own(pipe):
    prompts, subjects = ["a dog on the sofa", "a cat in the hat"], [{"dog": picture(1)}, {"cat": picture(2)}]
    together = draw(pipe, prompts, subjects=subjects, mask=BINARY, generator=[seeded(0), seeded(1)])
    for index in range(2):
        alone = draw(pipe, prompts[index], subjects=subjects[index], mask=BINARY, generator=seeded(index))
        assert np.abs(together[index] - alone[0]).max() <= 1e-5
    with pytest.raises(ValueError, match="same number and sizes"):
        draw(pipe, prompts, subjects=[subjects[0], {"cat": picture(2).resize((64, 20))}])


def test_true_guidance_and_its_interval(pipe):
    given = {"references": [picture(1)], "negative_prompt": "a red hat"}
    plain, guided = draw(pipe, **given), draw(pipe, true_cfg_scale=3.0, **given)
    late = draw(pipe, true_cfg_scale=3.0, guidance_interval=(0.5, 1.0), **given)
    assert np.array_equal(plain, draw(pipe, references=[picture(1)]))
    assert np.abs(plain - guided).max() > 1e-3
    assert np.abs(late - guided).max() > 1e-4


def test_embedded_guidance_is_four_by_default(pipe):
    given = {"references": [picture(1)]}
    assert np.array_equal(draw(pipe, **given), draw(pipe, guidance_scale=4.0, **given))
    assert np.abs(draw(pipe, **given) - draw(pipe, guidance_scale=1.0, **given)).max() > 1e-4


def test_callbacks_see_and_change_a_call(pipe):
    seen = []

    def callback(pipeline, index, timestep, tensors):
        seen.append((index, {name: None if t is None else tuple(t.shape) for name, t in tensors.items()}))
        assert pipeline.pictures(tensors["latents"])[0][0].size == (64, 48)
        if index == 1:
            pipeline._interrupt = True
        return {"latents": tensors["latents"] * 0.5}

    names = ["latents", "masks", "prompt_embeds"]
    changed = draw(
        pipe,
        subjects={"dog": picture(1)},
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )
    assert [index for index, _ in seen] == [0, 1]
    assert seen[0][1]["latents"] == (1, 12, 16)
    assert seen[0][1]["masks"] == (1, 1, 3, 4)
    assert np.abs(changed - draw(pipe, subjects={"dog": picture(1)})).max() > 1e-3
    pipe._interrupt = False


def test_prompt_embeds_instead_of_a_prompt(pipe):
    embeds, pooled, _ = pipe.encode_prompt(PROMPT, None, max_sequence_length=T5_TOKENS)
    given = {"references": [picture(1)]}
    image = draw(pipe, None, prompt_embeds=embeds, pooled_prompt_embeds=pooled, **given)
    assert np.abs(image - draw(pipe, **given)).max() <= 1e-5


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = UNOPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert np.abs(draw(loaded, references=[picture(1)]) - draw(pipe, references=[picture(1)])).max() <= 1e-5


def test_what_cannot_be_used_is_said(pipe):
    for arguments, sentence in (
        ({"subjects": {"bird": picture(1)}}, "does not stand in the prompt"),
        ({"subjects": {"dog": picture(1)}, "references": [picture(1)]}, "not both"),
        ({"references": [picture(1)], "height": 40}, "multiple of 16"),
        ({"references": [picture(1)], "sigmas": [1.0]}, "sigmas cannot be used"),
        ({"references": [picture(1)], "image_guidance_scale": 2.0}, "image_guidance_scale"),
        ({"subjects": {"dog": picture(1)}, "prompt": None}, "need a prompt"),
        ({"subjects": {"dog": picture(1)}, "prompt": "a dog " * 30}, "the model reads 24"),
    ):
        with pytest.raises(ValueError, match=sentence):
            draw(pipe, **arguments)
    with pytest.raises(TypeError):
        draw(pipe, references=[picture(1)], widht=3)
