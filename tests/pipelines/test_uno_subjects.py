"""RealCustom on UNO: every reference acts where its word is, and the settings of the mask mean what they say."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import picture
from tiny_flux import T5_TOKENS, build_uno_pipeline

from realcustom import MaskSettings, Subject
from realcustom.guidance.contact import StrongestOutside
from realcustom.guidance.mask import RULES, Updates
from realcustom.models.flow import image_tokens
from realcustom.models.flux import Sight
from realcustom.models.uno_lora import SharedLora
from realcustom.pipelines.uno_references import UnoSettings

PROMPT = "a dog and a cat on the sofa"
DOG, CAT = picture(1), picture(2)
STEPS = 4


@pytest.fixture(scope="module")
def pipe(tokenizer):
    return build_uno_pipeline(tokenizer)


def draw(pipe, subjects=None, settings=None, **arguments):
    uno = UnoSettings(side=lambda count: 32, **(settings or {}))
    call = {"height": 64, "width": 48, "num_inference_steps": STEPS, "max_sequence_length": T5_TOKENS}
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, subjects, generator=generator, uno=uno, output_type="np", **call, **arguments)


def difference(first, second):
    return np.abs(first.images - second.images).max()


class Passes:
    """Counts a transformer's calls and the tokens each had."""

    def __init__(self, transformer):
        self.lengths = []
        self._hook = transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.lengths.append(kwargs["hidden_states"].shape[1])

    def __enter__(self):
        return self.lengths

    def __exit__(self, *_):
        self._hook.remove()


def test_masks_by_word(pipe):
    result = draw(pipe, {"dog": DOG, "cat": CAT})
    assert set(result.masks) == {"dog", "cat"}
    for masks in result.masks.values():
        assert masks.shape == (STEPS, 1, 4, 3)
        assert ((masks > 0).sum(dim=(2, 3)) <= int(12 * pipe.default_mask.scope)).all()
    assert not ((result.masks["dog"] > 0) & (result.masks["cat"] > 0)).any()


def test_strength_zero_is_text_to_image(pipe):
    """Under the true token count both ways have FluxPipeline's own times."""
    subjects = {"dog": Subject(DOG, strength=0.0), "cat": Subject(CAT, strength=0.0)}
    without = draw(pipe, subjects, {"token_count": image_tokens})
    stock = draw(pipe, guidance_scale=4.0)
    assert difference(without, stock) <= 1e-5
    assert difference(draw(pipe, {"dog": DOG}, {"token_count": image_tokens}), stock) > 1e-3


def test_mask_of_everything_is_uno(pipe):
    everything = MaskSettings(scope=1.0, rule=RULES["top-share-binary"])
    assert difference(draw(pipe, {"dog": DOG}, mask=everything), draw(pipe, references=[DOG])) == 0
    outside = MaskSettings(rule=StrongestOutside(RULES["top-share-binary"]))
    assert difference(draw(pipe, {"dog": DOG}, mask=outside), draw(pipe, references=[DOG])) == 0
    assert difference(draw(pipe, {"dog": DOG}), draw(pipe, references=[DOG])) > 1e-4


def test_one_pass_more_while_the_mask_is_updated(pipe):
    def lengths(**changes):
        with Passes(pipe.transformer) as seen:
            draw(pipe, {"dog": DOG}, mask=MaskSettings(**changes))
        return list(seen)

    text, full = 12, 12 + 4
    assert lengths() == [text, full] * STEPS
    assert lengths(updates=Updates(until=2)) == [text, full] * 2 + [full] * 2
    assert lengths(updates=Updates(interval=3)) == [text, full, full, full, text, full]
    # The lagged branch reads the latents of the step before; here it is a pass of its own all the same.
    assert lengths(lagged=True, updates=Updates(until=2)) == [text, full, full, text, full, full]
    assert lengths(stride=2) == [4, full] * STEPS


def test_strength_region_and_images_of_a_subject(pipe):
    plain = draw(pipe, {"dog": DOG})
    assert difference(draw(pipe, {"dog": Subject(DOG, strength=0.3)}), plain) > 1e-4
    region = draw(pipe, {"dog": Subject(DOG, region=(0.0, 0.0, 1.0, 0.5))})
    assert (region.masks["dog"][:, :, 2:] == 0).all()
    assert (region.masks["dog"][:, :, :2] > 0).any()
    two = draw(pipe, {"dog": [DOG, CAT]})
    assert difference(two, plain) > 1e-4
    weighted = draw(pipe, {"dog": Subject((DOG, CAT), weights=(1.0, 0.2))})
    assert difference(weighted, two) > 1e-5
    assert difference(weighted, plain) > 1e-5


def test_one_picture_for_two_words_stands_once(pipe):
    with Passes(pipe.transformer) as lengths:
        draw(pipe, {"dog": DOG, "cat": DOG.copy()})
    assert max(lengths) == 12 + 4


def test_every_sight_differs(pipe):
    sights = [
        Sight(),
        Sight(references_see_references=False),
        Sight(references_see_image=False),
        Sight(text_sees_references=False),
    ]
    results = [draw(pipe, {"dog": DOG, "cat": CAT}, {"sight": sight}) for sight in sights]
    for index, result in enumerate(results):
        assert all(difference(result, other) > 1e-5 for other in results[index + 1 :])


def test_releases_lora_through_the_pipeline(tokenizer, pipe):
    loaded = build_uno_pipeline(tokenizer)
    lora = SharedLora(loaded.transformer, rank=3)
    generator = torch.Generator().manual_seed(2)
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    plain = draw(loaded, references=[DOG])
    loaded.load_uno(lora.released_state())
    assert loaded.get_active_adapters() == ["uno"]
    with_lora = draw(loaded, references=[DOG])
    attached = build_uno_pipeline(tokenizer)
    with lora.attached(attached.transformer):
        assert difference(draw(attached, references=[DOG]), with_lora) <= 1e-5
    assert difference(draw(attached, references=[DOG]), plain) <= 1e-5
    assert difference(with_lora, plain) > 1e-3
    half = draw(loaded, references=[DOG], joint_attention_kwargs={"scale": 0.5})
    loaded.set_adapters("uno", 0.5)
    assert difference(half, draw(loaded, references=[DOG])) <= 1e-5
    assert difference(half, with_lora) > 1e-4
    loaded.set_adapters("uno", 1.0)
    loaded.fuse_lora()
    assert difference(with_lora, draw(loaded, references=[DOG])) <= 1e-4
    loaded.unfuse_lora()
    loaded.unload_lora_weights()
    assert difference(draw(loaded, references=[DOG]), plain) <= 1e-5
    with pytest.raises(ValueError, match="no UNO LoRA"):
        loaded.load_uno({"other": torch.zeros(1)})


@pytest.mark.parametrize("given", [{"references": [DOG]}, {"subjects": {"dog": DOG, "cat": CAT}}])
def test_bfloat16_and_fp8_layerwise_casting(tokenizer, given):
    single = draw(build_uno_pipeline(tokenizer), **given)
    half = build_uno_pipeline(tokenizer).to(torch.bfloat16)
    assert difference(draw(half, **given), single) < 0.3
    half.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert half.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    eighth = draw(half, **given)
    assert np.isfinite(eighth.images).all()
    assert difference(eighth, single) > 0


@pytest.mark.parametrize("offload", ["model", "leaves", "blocks", "layers"])
def test_offloaded_weights_draw_the_same(tokenizer, pipe, offload):
    """The hooks that bring weights in, with the CPU as the device that computes."""
    moved, place = build_uno_pipeline(tokenizer), torch.device("cpu")
    if offload == "model":
        moved.enable_model_cpu_offload(device=place)
    elif offload == "leaves":
        moved.enable_group_offload(place, offload_type="leaf_level")
    elif offload == "layers":  # sequential: weights on the meta device until their layer runs
        for part in (moved.transformer, moved.vae):
            cpu_offload(part, place, offload_buffers=False)
        assert moved.transformer.device.type == "meta"
    else:
        moved.transformer.enable_group_offload(place, offload_type="block_level", num_blocks_per_group=1)
    subjects = {"dog": DOG, "cat": CAT}
    assert difference(draw(moved, subjects), draw(pipe, subjects)) <= 1e-5
