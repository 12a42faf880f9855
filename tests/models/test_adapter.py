"""The adapter: saved and reloaded bit by bit, strict, on a U-Net with a LoRA, refused by another family."""

import pytest
import torch
from conftest import build_adapter, build_reference_encoder, build_unet, build_xl_unet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from realcustom import RealCustomAdapter, RealCustomXLPipeline
from realcustom.models.attention import VisualKeysValues
from realcustom.models.backbone import Branch, Text
from realcustom.models.unet import UNetBackbone, cross_attention_names


def call(pipe, image):
    generator = torch.Generator().manual_seed(0)
    return pipe("a dog", {"dog": image}, num_inference_steps=2, generator=generator, output_type="pt").images


def test_on_an_sdxl_with_a_lora_saved_and_reloaded_bit_equal(tiny_xl_pipeline, reference_image, tmp_path):
    pipe = tiny_xl_pipeline
    plain = call(pipe, reference_image)
    lora = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_q", "to_v"])
    torch.manual_seed(1)
    pipe.unet.add_adapter(lora)
    with_lora = call(pipe, reference_image)
    assert not torch.equal(plain, with_lora)
    pipe.adapter.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    pipe.adapter = RealCustomAdapter.from_pretrained(tmp_path)
    assert torch.equal(call(pipe, reference_image), with_lora)
    pipe.unet.disable_adapters()
    assert torch.equal(call(pipe, reference_image), plain)


def test_lora_files_load_through_the_pipeline(tiny_xl_pipeline, reference_image, tmp_path):
    pipe = tiny_xl_pipeline
    torch.manual_seed(1)
    # A LoRA file without metadata is read with alpha = rank.
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_k", "to_q"]))
    expected = call(pipe, reference_image)
    RealCustomXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    pipe.unet.delete_adapters("default")
    assert not torch.equal(call(pipe, reference_image), expected)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(call(pipe, reference_image), expected, rtol=0, atol=1e-5)
    pipe.unload_lora_weights()


def test_keys_values_start_from_the_text(tokenizer):
    unet, encoder = build_unet(), build_reference_encoder()
    adapter = build_adapter(unet, encoder)
    module = unet.get_submodule(cross_attention_names(unet)[0])
    assert torch.equal(adapter.to_k[0].weight, module.to_k.weight)
    tokens = torch.randn(1, 5, unet.config.cross_attention_dim)
    assert [tuple(key.shape) for key, _ in adapter.keys_values(tokens)] == [
        (1, 5, width) for width in adapter.config.layers
    ]


def test_gradients_reach_projector_keys_and_values(tokenizer):
    unet, encoder = build_unet(), build_reference_encoder()
    adapter = build_adapter(unet, encoder)
    unet.requires_grad_(False)
    features = encoder.encode([Image.new("RGB", (20, 20), "red")])
    backbone = UNetBackbone(unet)
    references = VisualKeysValues([(key.unsqueeze(1), value.unsqueeze(1)) for key, value in adapter(features)])
    branch = Branch(text=Text(embeds=torch.randn(1, 77, 32)), references=references)
    with backbone.installed():
        (prediction,) = backbone.predict(torch.randn(1, 4, 8, 8), torch.tensor(10), [branch])
        prediction.square().mean().backward()
    without = [name for name, parameter in adapter.named_parameters() if parameter.grad is None]
    assert without == []


def test_wrong_family_and_wrong_weights_are_refused(tmp_path):
    unet, encoder = build_unet(), build_reference_encoder()
    adapter = build_adapter(unet, encoder)
    with pytest.raises(ValueError, match="cross-attention layers"):
        adapter.check(UNetBackbone(build_xl_unet()))
    adapter.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for change in ("missing", "unknown"):
        wrong = dict(state)
        if change == "missing":
            wrong.pop("to_k.0.weight")
        else:
            wrong["to_k.99.weight"] = torch.zeros(2, 2)
        save_file(wrong, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="to_k"):
            RealCustomAdapter.from_pretrained(tmp_path)
