"""The pipelines are true diffusers pipelines: saved, reloaded, assembled from parts, offloaded, extended."""

import json

import pytest
import torch
from accelerate import cpu_offload_with_hook
from conftest import build_adapter, build_unet
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from single_file import original_layout

from realcustom import RealCustomAdapter, RealCustomPipeline, RealCustomXLPipeline

OWN = ("adapter", "reference_encoder")


def call(pipe, image, **extra):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a dog", {"dog": image}, num_inference_steps=2, generator=generator, output_type="pt", **extra).images


@pytest.fixture(params=[RealCustomPipeline, RealCustomXLPipeline])
def pipe(request):
    return request.getfixturevalue("tiny_pipeline" if request.param is RealCustomPipeline else "tiny_xl_pipeline")


def test_saved_and_reloaded_bit_equal(pipe, reference_image, tmp_path):
    expected = call(pipe, reference_image)
    pipe.save_pretrained(tmp_path)
    # transformers may pick another attention kernel for a loaded text encoder: equal up to rounding.
    again = call(type(pipe).from_pretrained(tmp_path), reference_image)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
    assert not list(tmp_path.rglob("*.bin"))


def test_stock_base_plus_our_folders(pipe, reference_image, tmp_path):
    expected = call(pipe, reference_image)
    stock = StableDiffusionPipeline if isinstance(pipe, RealCustomPipeline) else StableDiffusionXLPipeline
    extra = {"requires_safety_checker": False} if stock is StableDiffusionPipeline else {}
    for name in ("safety_checker", "feature_extractor"):
        if stock is StableDiffusionPipeline:
            extra[name] = None
    components = {name: part for name, part in pipe.components.items() if name not in (*OWN, "controlnet")}
    stock(**{**components, **extra}).save_pretrained(tmp_path / "base")
    for name in OWN:
        getattr(pipe, name).save_pretrained(tmp_path / name)
    parts = {name: str(tmp_path / name) for name in OWN}
    loaded = type(pipe).from_pretrained(tmp_path / "base", **parts)
    torch.testing.assert_close(call(loaded, reference_image), expected, rtol=0, atol=1e-5)
    text_only = type(pipe).from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="load it with adapter=FOLDER"):
        call(text_only, reference_image)


def test_half_precision_keeps_its_dtype(pipe, reference_image):
    pipe.to(torch.bfloat16)
    images = call(pipe, reference_image)
    assert images.isfinite().all()
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.bfloat16}


def test_adapter_of_another_family_is_refused_at_loading(tmp_path, pipe):
    unet = build_unet()
    wrong = RealCustomAdapter(layers=[16, 16], token_dim=32, projector_config=build_adapter_config(unet))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="base model's family"):
        type(pipe).from_pretrained(tmp_path, adapter=wrong)


def build_adapter_config(unet):
    from conftest import build_reference_encoder

    return dict(build_adapter(unet, build_reference_encoder()).config.projector_config)


def test_model_offload_runs_every_part_through_its_hook(pipe, reference_image):
    """The hooks of `enable_model_cpu_offload`, set by hand because this needs no accelerator."""
    expected = call(pipe, reference_image)
    pipe.feature_cache.clear()
    ran, hooks, previous = [], [], None
    for name in pipe.model_cpu_offload_seq.split("->"):
        module = getattr(pipe, name)
        _, previous = cpu_offload_with_hook(module, "cpu", prev_module_hook=previous)
        hooks.append(previous)
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    assert torch.equal(call(pipe, reference_image), expected)
    for name in ("reference_encoder", "adapter", "unet"):
        assert name in ran
    for hook in hooks:
        hook.remove()


def test_offload_order_names_every_model(pipe):
    names = pipe.model_cpu_offload_seq.split("->")
    models = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert models <= set(names)


def test_vae_tiling_and_slicing(pipe, reference_image):
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    assert call(pipe, reference_image).isfinite().all()


def test_textual_inversion_word_as_target(tiny_pipeline, reference_image, tmp_path):
    width = tiny_pipeline.text_encoder.config.hidden_size
    save_file({"<rex>": torch.randn(2, width)}, tmp_path / "rex.safetensors")
    tiny_pipeline.load_textual_inversion(tmp_path / "rex.safetensors", token="<rex>")
    out = tiny_pipeline("a <rex> on the beach", {"<rex>": reference_image}, num_inference_steps=1)
    assert list(out.masks) == ["<rex>"]


def test_from_single_file(tiny_pipeline, reference_image, tmp_path):
    """A checkpoint in the original Stable Diffusion layout gives the same images as the folder it was made from."""
    components = {name: part for name, part in tiny_pipeline.components.items() if name not in (*OWN, "controlnet")}
    base = StableDiffusionPipeline(**components, requires_safety_checker=False)
    config, checkpoint = original_layout(base, tmp_path)
    loaded = RealCustomPipeline.from_single_file(
        str(checkpoint),
        config=str(config),
        local_files_only=True,
        adapter=tiny_pipeline.adapter,
        reference_encoder=tiny_pipeline.reference_encoder,
    )
    assert isinstance(loaded, RealCustomPipeline)
    torch.testing.assert_close(call(loaded, reference_image), call(tiny_pipeline, reference_image), rtol=0, atol=1e-5)


def test_model_index_names_our_classes(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == type(pipe).__name__
    assert index["adapter"] == ["realcustom.models.adapter", "RealCustomAdapter"]


def test_how_to_fetch_holds_for_base_and_adapter(tiny_pipeline, reference_image, hub, tmp_path):
    expected = call(tiny_pipeline, reference_image)
    tiny_pipeline.save_pretrained(tmp_path / "base")
    tiny_pipeline.adapter.save_pretrained(tmp_path / "mine" / "adapter")
    hub.repos |= {"me/base": tmp_path / "base", "me/mine": tmp_path / "mine"}
    hub.private = {"me/base", "me/mine"}
    names = {"adapter": "me/mine", "cache_dir": tmp_path / "elsewhere"}
    with pytest.raises(ValueError, match="it is private"):
        RealCustomPipeline.from_pretrained("me/base", **names)
    loaded = RealCustomPipeline.from_pretrained("me/base", **names, token=hub.token)
    torch.testing.assert_close(call(loaded, reference_image), expected, rtol=0, atol=1e-5)
    assert not (tmp_path / "hub").exists()
    weights = [path for path in hub.fetched() if path.endswith(".safetensors")]
    hub.log.clear()
    loaded = RealCustomPipeline.from_pretrained("me/base", **names, local_files_only=True)
    torch.testing.assert_close(call(loaded, reference_image), expected, rtol=0, atol=1e-5)
    assert hub.log == []
    RealCustomPipeline.from_pretrained("me/base", **names, token=hub.token, force_download=True)
    assert set(weights) <= set(hub.fetched())
    with pytest.raises(ValueError, match="local_files_only=True forbids"):
        RealCustomPipeline.from_pretrained("me/base", adapter="me/mine", local_files_only=True)
    with pytest.raises(ValueError, match="HTTPS_PROXY"):
        RealCustomPipeline.from_pretrained("me/base", proxies={"https": "http://127.0.0.1:1"})
