"""IP-Adapter's files under RealCustom's mask: with a full mask they are diffusers' own IP-Adapter."""

import json

import numpy as np
import pytest
import torch
from conftest import build_components, build_xl_components, picture
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from release_files import build_ip_adapter
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from realcustom import Engine, MaskSettings, RealCustomPipeline, RealCustomXLPipeline, Request, Subject
from realcustom.convert.folder import convert
from realcustom.encoders.clip_image import crop_pixels
from realcustom.guidance.mask import BinaryMask

EVERYWHERE = MaskSettings(scope=1.0, rule=BinaryMask(), spread=0)
STEPS, SCALE = 3, 5.0
ENDINGS = ("bin", "safetensors")
KINDS = [
    (large, plus, ending) for large in (False, True) for plus in (False, True) for ending in ("bin", "safetensors")
]


def stock(large: bool, parts: dict):
    parts = {name: part for name, part in parts.items() if name not in ("adapter", "reference_encoder", "controlnet")}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    if large:
        return StableDiffusionXLPipeline(**parts, feature_extractor=processor)
    return StableDiffusionPipeline(
        **parts, feature_extractor=processor, safety_checker=None, requires_safety_checker=False
    )


def components(large: bool, tokenizer) -> dict:
    return (build_xl_components if large else build_components)(tokenizer)


@pytest.mark.parametrize(("large", "plus", "ending"), KINDS)
def test_a_full_mask_is_diffusers_ip_adapter(large, plus, ending, tokenizer, tmp_path):
    parts = components(large, tokenizer)
    build_ip_adapter(tmp_path, parts["unet"], plus, ending)
    theirs = stock(large, parts)
    theirs.save_pretrained(tmp_path / "base")
    done = convert([tmp_path / f"ip-adapter.{ending}", tmp_path / "image_encoder"], tmp_path / "ours",
                   unet_config=parts["unet"].config)  # fmt: skip
    assert done.parts == ("adapter", "reference_encoder")
    kind = RealCustomXLPipeline if large else RealCustomPipeline
    ours = kind.from_pretrained(tmp_path / "base", adapter=tmp_path / "ours")
    image = picture(3, size=40).resize((57, 40))
    call = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent", "negative_prompt": "a cat"}

    def latents(pipe, **more):
        pipe.set_progress_bar_config(disable=True)
        return pipe("a dog on the beach", generator=torch.Generator().manual_seed(0), **call, **more).images

    masked = latents(ours, subjects={"dog": image}, mask=EVERYWHERE)
    plain = latents(theirs)
    theirs.load_ip_adapter(str(tmp_path), subfolder="", weight_name=f"ip-adapter.{ending}",
                           image_encoder_folder=str(tmp_path / "image_encoder"))  # fmt: skip
    theirs.set_ip_adapter_scale(1.0)
    expected = latents(theirs, ip_adapter_image=image)
    assert (expected - plain).abs().max() > 0.05, "the reference acts"
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)


def test_pixels_are_those_of_clips_own_preprocessing():
    processor = CLIPImageProcessor(
        do_normalize=False, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    for size in ((57, 40), (40, 91), (32, 32), (301, 200)):
        image = picture(1, size=64).resize(size)
        expected = processor(image, return_tensors="pt").pixel_values[0]
        assert (crop_pixels(image, 32) - expected).abs().max() <= 1 / 255 + 1e-6


@pytest.fixture(scope="module")
def converted(tokenizer, tmp_path_factory):
    """(base folder, converted folder) of IP-Adapter Plus on the SD v1.5 shape."""
    folder = tmp_path_factory.mktemp("ip")
    parts = components(False, tokenizer)
    file = build_ip_adapter(folder, parts["unet"], True, "safetensors")
    stock(False, parts).save_pretrained(folder / "base")
    convert([file, folder / "image_encoder"], folder / "ours", unet_config=parts["unet"].config)
    return folder / "base", folder / "ours"


def test_words_subjects_regions_and_strengths_work_on_top(converted):
    base, ours = converted
    engine = Engine.load(str(base), adapter=str(ours))
    subjects = {
        "dog": Subject(picture(1), region=(0, 0, 0.5, 1)),
        "robot": Subject((picture(2), picture(3)), strength=0.5),
    }
    request = Request(prompt="a dog and a robot", subjects=subjects, steps=2)
    result = engine.run(request)
    masks = {word: maps[-1, 0] for word, maps in result.masks.items()}
    assert masks["dog"].max() > 0
    assert masks["robot"].max() > 0
    assert (masks["dog"] * masks["robot"]).max() == 0
    assert masks["dog"][:, masks["dog"].shape[1] // 2 :].max() == 0, "outside its region"
    without = engine.run(Request(prompt="a dog and a robot", steps=2, guidance_scale=7.5))
    assert np.abs(np.asarray(result.images[0], int) - np.asarray(without.images[0], int)).max() > 2


def test_a_pickle_beside_the_same_safetensors_is_left_alone(tokenizer, tmp_path):
    unet = components(False, tokenizer)["unet"]
    for ending in ENDINGS:
        build_ip_adapter(tmp_path / "files", unet, False, ending)
    encoder = tmp_path / "files" / "image_encoder"
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(1)}, encoder / "pytorch_model.bin")
    done = convert([tmp_path / "files"], tmp_path / "ours", unet_config=unet.config)
    assert done.parts == ("adapter", "reference_encoder")
    build_ip_adapter(tmp_path / "files", unet, True, "bin", "ip-adapter-plus")
    with pytest.raises(ValueError, match="are both IP-Adapter: name only one"):
        convert([tmp_path / "files"], tmp_path / "more", unet_config=unet.config)


def test_the_settings_say_what_it_is(converted):
    _, ours = converted
    settings = json.loads((ours / "pipeline.json").read_text())
    assert "not the papers' weights" in settings["origin"]
    assert settings["defaults"]["guidance_scale"] == 7.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("ip_adapter.1.to_v_ip.weight"), "they lack 1.to_v_ip.weight"),
        (lambda state: state.update({"ip_adapter.99.to_k_ip.weight": torch.zeros(2)}), "unknown 99.to_k_ip.weight"),
        (lambda state: state.update({"image_proj.proj.3.weight": torch.zeros(2)}), "another kind"),
        (lambda state: state.update({"unet.conv_in.bias": torch.zeros(2)}), "unknown entries: unet.conv_in.bias"),
        (lambda state: state.update({"ip_adapter.1.to_k_ip.weight": torch.zeros(3, 32)}), "misshapen"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, sentence, tokenizer, tmp_path):
    from safetensors.torch import load_file

    parts = components(False, tokenizer)
    file = build_ip_adapter(tmp_path, parts["unet"], False, "safetensors")
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(ValueError, match=sentence):
        convert([file], tmp_path / "ours", unet_config=parts["unet"].config)
    assert not (tmp_path / "ours").exists()
