"""Long and weighted prompts through both pipelines: without effect where nothing is asked, and words are found."""

import numpy as np
import pytest
import torch

T = 32  # tokens that the tiny encoders read
CHUNKS = (" ".join(["red"] * (T - 3) + ["a"]), "dog on the beach")
LONG = " ".join(CHUNKS)


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request):
    return request.getfixturevalue("tiny_pipeline" if request.param == "sd" else "tiny_xl_pipeline")


def image(pipe, prompt, subjects=None, **call):
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, subjects, generator=generator, **{**options, **call}).images[0]


def encoded(pipe, prompt, **options):
    """Embeddings of prompt and negative prompt as the loop gets them."""
    arguments = {"negative_prompt": "the snow", **options}
    call = pipe._completed(prompt, arguments)
    return pipe._encode(prompt, call, True)


@pytest.mark.parametrize("options", [{"long_prompts": True}, {"prompt_weights": True}])
@pytest.mark.parametrize("negative", [None, "the snow"])
def test_a_plain_prompt_is_read_as_before(pipe, reference_image, options, negative):
    for subjects in (None, {"dog": reference_image}):
        plain = image(pipe, "a dog on the beach", subjects, negative_prompt=negative)
        styled = image(pipe, "a dog on the beach", subjects, negative_prompt=negative, **options)
        np.testing.assert_allclose(styled, plain, atol=1e-5)


def test_a_long_prompt_is_its_chunks_one_after_the_other(pipe):
    text, negative = encoded(pipe, LONG, long_prompts=True)
    parts = [encoded(pipe, chunk)[0] for chunk in CHUNKS]
    torch.testing.assert_close(text.embeds, torch.cat([part.embeds for part in parts], dim=1))
    shorter = encoded(pipe, CHUNKS[1])[1]
    torch.testing.assert_close(negative.embeds[:, :T], shorter.embeds)
    torch.testing.assert_close(negative.embeds[:, T:], encoded(pipe, "", negative_prompt="")[1].embeds)
    if text.added is not None:
        torch.testing.assert_close(text.added["text_embeds"], parts[0].added["text_embeds"])


def test_a_weight_moves_the_embedding_along_its_way_from_the_empty_prompt(pipe):
    weighted = encoded(pipe, "a (dog:1.5) on the [beach]", prompt_weights=True)[0].embeds
    plain, empty = encoded(pipe, "a dog on the beach")[0].embeds, encoded(pipe, "")[0].embeds
    factors = torch.ones(1, T, 1)
    factors[:, 2], factors[:, 5] = 1.5, 1 / 1.1
    torch.testing.assert_close(weighted, empty + factors * (plain - empty))
    assert not torch.allclose(weighted, plain)


@pytest.mark.parametrize("prompt", [LONG, f"{CHUNKS[0]} (dog:1.3) on the beach"])
def test_a_word_of_a_later_chunk_is_a_target(pipe, reference_image, prompt):
    options = {"long_prompts": True, "prompt_weights": "(" in prompt}
    with_subject = image(pipe, prompt, {"dog": reference_image}, **options)
    assert np.abs(with_subject - image(pipe, prompt, **options)).max() > 1e-3
    with pytest.raises(ValueError, match="the model reads 32"):
        image(pipe, prompt, {"dog": reference_image})


def test_prompts_of_a_batch_share_their_number_of_chunks(tiny_pipeline, reference_image):
    prompts, generators = ["a dog on the beach", LONG], [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    call = {"num_inference_steps": 2, "output_type": "np", "long_prompts": True, "guidance_scale": 4.0}
    both = tiny_pipeline(prompts, {"dog": reference_image}, generator=generators, **call).images
    generator = torch.Generator().manual_seed(2)
    alone = tiny_pipeline(LONG, {"dog": reference_image}, generator=generator, **call).images[0]
    np.testing.assert_allclose(both[1], alone, atol=1e-5)
