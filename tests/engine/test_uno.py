"""A FLUX folder with UNO's LoRA through the engine: the same request as for every model."""

import pytest
import torch
from conftest import picture
from safetensors.torch import load_file, save_file
from tiny_flux import build_transformer, released_state, write_flux_files

from realcustom import Engine, Request
from realcustom.engine.loading import load_pipeline

PROMPT = "a dog and a cat on the sofa"


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """A stock FLUX folder, and a LoRA file in the release's layout."""
    return write_flux_files(tokenizer, tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def engine(files):
    return Engine.load(str(files / "base"), lora=(str(files / "uno" / "dit_lora.safetensors"),), device="cpu")


def ask(**changes):
    options = {"subjects": {"dog": picture(1), "cat": picture(2)}, "height": 48, "width": 64, "steps": 2}
    return Request(prompt=PROMPT, **{**options, **changes})


def test_a_request_with_subjects(engine):
    seen = []
    result = engine.run(ask(num_images=2, seed=5), progress=lambda now: seen.append(engine.preview(now.latents)))
    assert [image.size for image in result.images] == [(64, 48)] * 2
    assert result.masks["dog"].shape == (2, 2, 3, 4)
    assert result.request.guidance_scale == 4.0
    assert all(picture.size == (64, 48) for pictures in seen for picture in pictures)
    assert len(seen) >= 2


def test_requests_together_are_requests_alone(engine):
    requests = [
        ask(seed=1),
        ask(seed=2, subjects={"dog": picture(3).resize((64, 20)), "cat": picture(4)}),
        ask(seed=3, subjects={}),
    ]
    together = engine.run_many(requests)
    for request, result in zip(requests, together, strict=True):
        assert engine.run(request).images[0].tobytes() == result.images[0].tobytes()


def test_presets_and_refusals(engine):
    assert engine.run(ask(preset="turbo")).request.steps == 2
    for changes, sentence in (
        ({"height": 40}, "multiple of 16"),
        ({"negative_prompt": "a hat"}, "reads no negative prompt"),
        ({"image_guidance_scale": 3.0}, "no image_guidance_scale"),
    ):
        with pytest.raises(ValueError, match=sentence):
            engine.run(ask(**changes))


def test_a_lora_that_lacks_a_part_is_refused(files, tmp_path):
    state = load_file(files / "uno" / "dit_lora.safetensors")
    state.popitem()
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="missing"):
        load_pipeline(str(files / "base"), lora=(str(tmp_path / "part.safetensors"),), device="cpu")
    with pytest.raises(ValueError, match="no adapter"):
        load_pipeline(str(files / "base"), adapter=str(files / "base"), device="cpu")


def test_unos_lora_is_an_adapter_too(files, engine):
    adapted = Engine.load(str(files / "base"), adapter=str(files / "uno"), device="cpu")
    assert adapted.run(ask(seed=4)).images[0].tobytes() == engine.run(ask(seed=4)).images[0].tobytes()
    both = Engine.load(
        str(files / "base"),
        adapter=str(files / "uno"),
        lora=f"{files / 'uno' / 'dit_lora.safetensors'}:0",
        device="cpu",
    )
    assert both.run(ask(seed=4)).images[0].tobytes() == engine.run(ask(seed=4)).images[0].tobytes()


def test_unos_lora_wants_flux(files, tiny_model):
    with pytest.raises(ValueError, match="is UNO's LoRA, and the model"):
        load_pipeline(str(tiny_model), adapter=str(files / "uno"), device="cpu")


def test_the_transformer_may_come_from_one_file_in_its_authors_names(files, engine, tmp_path):
    other = build_transformer()
    torch.nn.init.normal_(other.proj_out.weight, generator=torch.Generator().manual_seed(3))
    save_file(released_state(other), tmp_path / "flux1-dev.safetensors")
    save_file(
        released_state(load_pipeline(str(files / "base"), device="cpu").transformer), tmp_path / "same.safetensors"
    )
    options = {"adapter": str(files / "uno"), "device": "cpu"}
    wanted = engine.run(ask(seed=4)).images[0].tobytes()
    same = Engine.load(str(files / "base"), base_file=str(tmp_path / "same.safetensors"), **options)
    assert same.run(ask(seed=4)).images[0].tobytes() == wanted
    changed = Engine.load(str(files / "base"), base_file=str(tmp_path / "flux1-dev.safetensors"), **options)
    assert changed.run(ask(seed=4)).images[0].tobytes() != wanted
    with pytest.raises(ValueError, match="missing"):
        load_pipeline(str(files / "base"), base_file=str(files / "uno" / "dit_lora.safetensors"), device="cpu")
