"""How a model is loaded: options that every door shares, that are stored with the image, and adapters from the hub."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import build_components, picture
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from single_file import original_layout

from realcustom import Engine, RealCustomPipeline, Request
from realcustom.engine import loading
from realcustom.engine.options import LoadOptions, lora_scale
from realcustom.guidance.mask import RULES, Updates
from realcustom.hub.settings import AdapterSettings, CallDefaults
from realcustom.pipelines.samplers import SCHEDULERS, scheduler_named


def made(engine: Engine, **fields) -> np.ndarray:
    request = Request(**{"prompt": "a dog on the beach", "subjects": {"dog": picture(0)}, "steps": 2, **fields})
    return np.asarray(engine.run(request).images[0], dtype=int)


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first - second).max())


@pytest.fixture(scope="module")
def plain(tiny_model) -> np.ndarray:
    return made(Engine.load(str(tiny_model)))


@pytest.fixture(scope="module")
def lora(tokenizer, tmp_path_factory):
    """A LoRA file for the tiny U-Net, strong enough to be seen."""
    folder = tmp_path_factory.mktemp("lora")
    unet = build_components(tokenizer)["unet"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder / "pytorch_lora_weights.safetensors"


def test_a_lora_at_its_scale(tiny_model, plain, lora):
    whole = made(Engine.load(str(tiny_model), lora=(str(lora),)))
    none = made(Engine.load(str(tiny_model), lora=(f"{lora}:0",)))
    assert difference(whole, plain) > 2
    assert difference(none, plain) <= 1
    both = Engine.load(str(tiny_model), lora=(f"{lora}:0.5", f"{lora.parent}:0.5"))
    assert difference(made(both), whole) <= 1, "two halves are a whole"
    assert both.source["lora"] == [f"{lora}:0.5", f"{lora.parent}:0.5"]


def test_a_scheduler_by_name(tiny_model, plain):
    engine = Engine.load(str(tiny_model), scheduler="euler")
    assert difference(made(engine), plain) > 0
    assert engine.source == {"model": str(tiny_model), "adapter": None, "scheduler": "euler"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_noise_schedule(name, tiny_pipeline):
    before = tiny_pipeline.scheduler.config
    scheduler = scheduler_named(name, tiny_pipeline.scheduler)
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"):
        assert scheduler.config[key] == before[key]
    tiny_pipeline.scheduler = scheduler
    tiny_pipeline.set_progress_bar_config(disable=True)
    latents = tiny_pipeline("a dog", {"dog": picture(0)}, num_inference_steps=4, output_type="latent").images
    assert latents.isfinite().all()


def test_the_base_from_one_file(tiny_model, tokenizer, plain, tmp_path):
    parts = build_components(tokenizer)
    with torch.no_grad():
        parts["unet"].conv_out.bias += 0.5
    stock = {name: part for name, part in parts.items() if name not in ("adapter", "reference_encoder", "controlnet")}
    stock = StableDiffusionPipeline(**stock, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    _, file = original_layout(stock, tmp_path)
    engine = Engine.load(str(tiny_model), base_file=str(file))
    assert torch.equal(engine.pipeline.unet.conv_out.bias, parts["unet"].conv_out.bias)
    assert difference(made(engine), plain) > 2
    assert engine.source["base_file"] == str(file)
    with pytest.raises(ValueError, match="no file nowhere"):
        Engine.load(str(tiny_model), base_file="nowhere.safetensors")


def test_another_reference_encoder(tiny_model, plain, tmp_path):
    from conftest import build_reference_encoder

    torch.manual_seed(9)
    build_reference_encoder().save_pretrained(tmp_path / "encoder")
    engine = Engine.load(str(tiny_model), reference_encoder=str(tmp_path / "encoder"))
    assert difference(made(engine), plain) > 0
    assert engine.source["reference_encoder"] == str(tmp_path / "encoder")


def test_an_adapter_without_an_encoder_says_what_is_missing(tokenizer, tmp_path):
    parts = build_components(tokenizer)
    stock = {name: part for name, part in parts.items() if name not in ("adapter", "reference_encoder", "controlnet")}
    StableDiffusionPipeline(
        **stock, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(tmp_path / "base")
    parts["adapter"].save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"give one with reference_encoder=FOLDER\.") as caught:
        Engine.load(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    assert "--reference-encoder FOLDER" in caught.value.spoken
    parts["reference_encoder"].save_pretrained(tmp_path / "encoder")
    options = {"adapter": str(tmp_path / "adapter"), "reference_encoder": str(tmp_path / "encoder")}
    assert made(Engine.load(str(tmp_path / "base"), **options)).shape == (64, 64, 3)


def test_settings_travel_with_the_adapter(tiny_model, tmp_path):
    for name in ("adapter", "reference_encoder"):
        (tmp_path / name).symlink_to(tiny_model / name)
    mask = {"scope": 0.1, "spread": 0, "rule": "threshold", "updates": {"until": 3}, "word_levels": [0]}
    defaults = CallDefaults(steps=4, height=48, width=96, guidance_scale=2.0, negative_prompt="a cat", mask=mask)
    AdapterSettings(scheduler="unipc", defaults=defaults).save(tmp_path)
    engine = Engine.load(str(tiny_model), adapter=str(tmp_path))
    resolved = engine.resolve(Request(prompt="a dog", subjects={"dog": picture(0)}))
    found = (resolved.steps, resolved.height, resolved.width, resolved.guidance_scale, resolved.negative_prompt)
    assert found == (4, 48, 96, 2.0, "a cat")
    assert resolved.mask_scope == 0.1
    assert type(engine.pipeline.scheduler).__name__ == "UniPCMultistepScheduler"
    mask = engine.pipeline.default_mask
    assert (mask.updates, mask.rule, mask.word_levels) == (Updates(until=3), RULES["threshold"], (0,))
    said = engine.resolve(Request(prompt="a dog", subjects={"dog": picture(0)}, steps=9, negative_prompt=""))
    assert (said.steps, said.negative_prompt) == (9, ""), "what a request says counts"
    assert engine.resolve(Request(prompt="a dog")).negative_prompt is None, "without a subject it is the stock call"
    out = engine.pipeline("a dog", {"dog": picture(0)}, output_type="latent")
    assert (out.images.shape[-2:], out.masks["dog"].shape[0]) == ((6, 12), 4), "a call in Python takes them, too"
    engine.pipeline.save_pretrained(tmp_path / "saved")
    again = RealCustomPipeline.from_pretrained(tmp_path / "saved")
    assert again.call_defaults == engine.pipeline.call_defaults


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"defaults": {"steps": 0}}, "number of steps must be a whole number"),
        ({"defaults": {"colour": 1}}, "'colour' is no field"),
        ({"speed": 3}, "'speed' is no field"),
        ({"defaults": {"mask": {"shape": "round"}}}, "'shape' is no setting of the mask"),
        ({"defaults": {"mask": {"rule": "round"}}}, 'no rule "round"; there are top-share'),
        ({"defaults": {"mask": {"updates": 3}}}, "updates must look like"),
        ({"defaults": {"mask": {"scope": "much"}}}, "mask's settings make no sense"),
        ({"scheduler": "fastest"}, 'no scheduler "fastest"'),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tiny_model, tmp_path, record, sentence):
    for name in ("adapter", "reference_encoder"):
        (tmp_path / name).symlink_to(tiny_model / name)
    (tmp_path / "pipeline.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=sentence):
        Engine.load(str(tiny_model), adapter=str(tmp_path))


def test_an_adapter_from_a_folder_of_a_repository(hub, tiny_model, plain, tmp_path):
    repo = tmp_path / "repo" / "toys" / "blue"
    for name in ("adapter", "reference_encoder"):
        shutil.copytree(tiny_model / name, repo / name)
    (tmp_path / "repo" / "large.bin").write_bytes(b"\0" * 5000)
    hub.repos["me/adapters"] = tmp_path / "repo"
    hub.tags.add("v1")
    engine = Engine.load(str(tiny_model), adapter="me/adapters/toys/blue@v1")
    assert difference(made(engine), plain) <= 1
    assert engine.source["adapter"] == "me/adapters/toys/blue@v1"
    assert "large.bin" not in hub.fetched()
    with pytest.raises(ValueError, match='has no folder "toys/red"'):
        Engine.load(str(tiny_model), adapter="me/adapters/toys/red")
    with pytest.raises(ValueError, match='has no revision "v2"'):
        Engine.load(str(tiny_model), adapter="me/adapters/toys/blue@v2")
    pipe = RealCustomPipeline.from_pretrained(tiny_model, adapter="me/adapters/toys/blue")
    assert all(
        torch.equal(t, engine.pipeline.adapter.state_dict()[name]) for name, t in pipe.adapter.state_dict().items()
    )


def test_a_base_model_from_the_hub_is_recorded_with_its_commit(hub, tiny_model, plain):
    hub.repos["me/base"] = tiny_model
    engine = Engine.load("me/base")
    assert engine.source == {"model": "me/base", "adapter": None, "revision": hub.commit("me/base")}
    assert difference(made(engine), plain) <= 1
    hub.log.clear()
    Engine.load("me/base", revision=hub.commit("me/base"))
    assert hub.fetched() == {}


def test_options_are_stored_and_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "style.safetensors").touch()
    options = LoadOptions(
        model="sdxl", adapter="ours", lora=["style.safetensors:0.5", "me/lora"], vae_tiling=True, offload="model",
        device="cuda", dtype="float16", revision="a+b",
    )  # fmt: skip
    record = options.record()
    assert record == {
        "model": "sdxl", "adapter": str(tmp_path / "ours"), "revision": "a+b", "offload": "model", "vae_tiling": True,
        "lora": [f"{tmp_path}/style.safetensors:0.5", "me/lora"],
    }  # fmt: skip
    monkeypatch.chdir("/")
    again = LoadOptions.from_dict(json.loads(json.dumps(record)), device="cpu")
    assert again.record() == record
    assert "offload" not in options.deciding()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"offload": "all"}, "no offload"),
        ({"dtype": "int8"}, 'no dtype "int8"'),
        ({"lora": [":0.5"]}, "A LoRA must look like"),
        ({"lora": ["a.safetensors:99"]}, "scale of a LoRA"),
        ({"adapter": 3}, "The adapter must be text"),
        ({"speed": 1}, "'speed' is no option"),
    ],
)
def test_options_that_make_no_sense(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoadOptions.from_dict({"model": "miniature", **fields})


def test_a_colon_may_belong_to_a_loras_name():
    assert lora_scale("C:/style.safetensors") == ("C:/style.safetensors", 1.0)
    assert lora_scale("me/lora:-0.25") == ("me/lora", -0.25)


def test_loras_that_cannot_be_had(tiny_model, tmp_path, lora):
    (tmp_path / "a.pt").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name, sentence in (
        (tmp_path / "a.pt", "refused"),
        (tmp_path / "broken.safetensors", "does not fit this model"),
        ("nothing-here", "There is no LoRA"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Engine.load(str(tiny_model), lora=(str(name),))


def test_offload_needs_an_accelerator(tiny_model):
    with pytest.raises(ValueError, match="on a CPU there is none"):
        Engine.load(str(tiny_model), device="cpu", offload="model")


def by_layer(pipe) -> None:
    """The hooks of sequential offload, for which diffusers itself asks for an accelerator."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=True)


def by_group(pipe) -> None:
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("offload", [by_layer, by_group])
@pytest.mark.parametrize("model", ["tiny_model", "tiny_xl_model"])
def test_weights_that_come_and_go_make_the_same_picture(offload, model, request):
    engine = Engine.load(str(request.getfixturevalue(model)))
    expected = made(engine)
    offload(engine.pipeline)
    engine.pipeline.feature_cache.clear()
    assert difference(made(engine), expected) == 0
    assert engine.run(Request(prompt="a dog", steps=1)).metadata[0]["device"] == "cpu"


def test_the_best_device_there_is(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert loading.resolve_device(None).type == expected


def test_too_little_memory_is_tried_again_with_offload(monkeypatch, caplog):
    tried = []

    def load(sources, options, place):
        tried.append(options.offload)
        if options.offload is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return "pipeline"

    monkeypatch.setattr(loading, "_load", load)
    # The meta device stands for an accelerator: nothing is computed.
    assert loading.load_sources(None, LoadOptions(device="meta")) == "pipeline"
    assert tried == [None, "model"]
    assert "offload=model" in caplog.text


def test_memory_that_is_never_enough_is_told_with_what_helps(monkeypatch):
    def load(sources, options, place):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loading, "_load", load)
    for device in ("meta", "cpu"):
        with pytest.raises(ValueError, match="dtype bfloat16 halves"):
            loading.load_sources(None, LoadOptions(device=device))
