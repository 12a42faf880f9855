"""Which files of a model are needed, from their names alone."""

import pytest

from realcustom.hub.layout import component_files, components, preferred, weight_variant
from realcustom.hub.places import HubPlace

SDXL = [
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "text_encoder/config.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/openvino_model.bin",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
]


@pytest.mark.parametrize(
    ("component", "variant", "local", "expected"),
    [
        ("text_encoder", None, False, {"config.json", "model.fp16.safetensors"}),
        ("text_encoder", None, True, {"config.json", "model.safetensors"}),
        ("text_encoder", "full", False, {"config.json", "model.safetensors"}),
        ("text_encoder", "fp16", True, {"config.json", "model.fp16.safetensors"}),
        (
            "unet",
            None,
            False,
            {
                "config.json",
                "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            },
        ),
        ("vae", None, False, {"config.json", "diffusion_pytorch_model.safetensors"}),
        ("tokenizer", None, False, {"merges.txt", "vocab.json"}),
    ],
)
def test_configuration_and_one_kind_of_weights(component, variant, local, expected):
    needed = component_files(SDXL, component, preferred(variant, local))
    assert set(needed) == {f"{component}/{name}" for name in expected}


def test_pickles_only_where_there_is_nothing_else():
    assert weight_variant(["vae/diffusion_pytorch_model.bin"], "vae", (None,)) == (None, "bin")
    assert weight_variant(["vae/diffusion_pytorch_model.bf16.safetensors"], "vae", (None, "fp16")) is None


def test_components_of_an_index():
    index = {
        "_class_name": "X",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "image_encoder": [None, None],
        "a": True,
    }
    assert components(index) == ["unet"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("me/toys", HubPlace("me/toys")),
        ("me/toys@v1.0", HubPlace("me/toys", "", "v1.0")),
        ("me/toys/a/b-c@refs/pr/3", HubPlace("me/toys", "a/b-c", "refs/pr/3")),
        ("toys", None),
        ("me/../secret", None),
        ("me/toys/../../etc", None),
        ("https://hub/me/toys", None),
        ("me/toys@", None),
    ],
)
def test_places_on_the_hub(text, place):
    assert HubPlace.read(text) == place
