"""Release checkpoints: converted, or refused with every offending key. Uses the small checkpoint of the reference."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from realcustom.convert.release import (
    SDXL_UNET,
    check_keys,
    convert_backbones,
    convert_release_checkpoint,
    read_state,
    split_release_checkpoint,
)
from realcustom.encoders.image import ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.projector import build_projector
from realcustom.models.unet import UNetBackbone, cross_attention_names

REFERENCE = Path(__file__).parents[1] / "reference"
PROJECTOR = "encoder_hidden_states_vision_projection."


@pytest.fixture(scope="module")
def state():
    return load_file(REFERENCE / "unet_small.weights.safetensors")


@pytest.fixture(scope="module")
def config():
    return json.loads((REFERENCE / "unet_small.json").read_text())["config"]


@pytest.fixture(scope="module")
def stock(config):
    """Shapes of the stock U-Net's tensors and its cross-attention names."""
    plain = {name: value for name, value in config.items() if name != "image_prompt_settings"}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(plain)
    return {name: t.shape for name, t in unet.state_dict().items()}, cross_attention_names(unet)


def test_every_tensor_goes_somewhere(state, stock):
    split = split_release_checkpoint(state, *stock)
    assert len(split.unet) + len(split.adapter) == len(state)
    assert split.unet.keys() == stock[0].keys()
    assert len(split.adapter) == 17 + 2 * 17
    assert split.adapter_config["token_dim"] == 64
    assert split.adapter_config["projector_config"] == {
        "kind": "deep",
        "vision_dim": 128,
        "out_dim": 64,
        "dim_head": 64,
        "hidden_dim": 512,
    }


def test_layers_are_in_running_order(state, stock):
    """Down, mid, up: 10 layers down, 2 in the middle of this small U-Net."""
    adapter = split_release_checkpoint(state, *stock).adapter
    names = [name for name in state if name.endswith("to_k_vision.weight")]
    down = sorted(name for name in names if name.startswith("down"))
    middle = sorted(name for name in names if name.startswith("mid"))
    up = sorted(name for name in names if name.startswith("up"))
    for index, name in enumerate([*down, *middle, *up]):
        assert adapter[f"to_k.{index}.weight"] is state[name]
        assert adapter[f"to_v.{index}.weight"] is state[name.replace("to_k", "to_v")]


@pytest.mark.parametrize("form", ["safetensors", "pickle", "base then adapter"])
def test_converted_folders_load(state, config, tmp_path, form):
    def added(name):
        return "_vision." in name or name.startswith(PROJECTOR)

    if form == "safetensors":
        files = [REFERENCE / "unet_small.weights.safetensors"]
    elif form == "pickle":
        files = [tmp_path / "all.pth"]
        torch.save(state, files[0])
    else:
        files = [tmp_path / "base.bin", tmp_path / "realcustom.pth"]
        torch.save({name: t for name, t in state.items() if not added(name)}, files[0])
        torch.save({name: t for name, t in state.items() if added(name)}, files[1])
    convert_release_checkpoint(files, tmp_path / "out", config)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    adapter = RealCustomAdapter.from_pretrained(tmp_path / "out" / "adapter")
    assert all(torch.equal(t, state[name]) for name, t in unet.state_dict().items())
    adapter.check(UNetBackbone(unet))
    for name, tensor in adapter.projector.state_dict().items():
        assert torch.equal(tensor, state[PROJECTOR + name])
    for index, name in enumerate(cross_attention_names(unet)):
        assert torch.equal(adapter.to_v[index].weight, state[f"{name}.to_v_vision.weight"])


def test_an_adapter_alone(state, config, tmp_path):
    alone = {name: t for name, t in state.items() if "_vision." in name or name.startswith(PROJECTOR)}
    save_file(alone, tmp_path / "a.safetensors")
    split = convert_release_checkpoint([tmp_path / "a.safetensors"], tmp_path / "out", config)
    assert split.unet == {}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter"]


def test_later_files_count(state, config, tmp_path):
    changed = {"conv_in.bias": state["conv_in.bias"] + 1}
    save_file(changed, tmp_path / "later.safetensors")
    files = [REFERENCE / "unet_small.weights.safetensors", tmp_path / "later.safetensors"]
    split = convert_release_checkpoint(files, tmp_path / "out", config)
    assert torch.equal(split.unet["conv_in.bias"], changed["conv_in.bias"])


@pytest.mark.parametrize(("kind", "more"), [("shallow", {}), ("deep", {"adaptive_scale": True})])
def test_other_projectors_are_recognised(state, stock, kind, more):
    projector = build_projector({"kind": kind, "vision_dim": 128, "out_dim": 64, **more})
    other = {name: t for name, t in state.items() if not name.startswith(PROJECTOR)}
    other |= {PROJECTOR + name: t for name, t in projector.state_dict().items()}
    split = split_release_checkpoint(other, *stock)
    adapter = RealCustomAdapter(**split.adapter_config)
    adapter.load_state_dict(split.adapter, strict=True)
    assert type(adapter.projector) is type(projector)


LAYER = "mid_block.attentions.0.transformer_blocks.1.attn2"


@pytest.mark.parametrize(
    ("remove", "add", "words"),
    [
        ((), {"extra.weight": (2,)}, ["unknown: extra.weight"]),
        (("conv_in.bias",), {}, ["missing: conv_in.bias"]),
        ((f"{LAYER}.to_v_vision.weight",), {}, [f"missing: {LAYER}.to_v_vision.weight"]),
        ((f"{PROJECTOR}projector.4.bias",), {}, [f"missing: {PROJECTOR}projector.4.bias"]),
        ((), {f"{LAYER}.to_k_vision.weight": (64, 32)}, [f"{LAYER}.to_k_vision.weight [64, 32] instead of [64, 64]"]),
        (("conv_in.bias",), {"a": (1,), "time_embedding.linear_1.bias": (3,)}, ["a", "conv_in.bias", "[3] instead of"]),
        ((f"{PROJECTOR}projector_base.weight",), {}, [f"lacks {PROJECTOR}projector_base.weight"]),
        ((), {f"{PROJECTOR}scale.value": ()}, [f"unknown: {PROJECTOR}scale.value"]),
        ((), {"module.conv_in.bias": (32,)}, ["unknown: module.conv_in.bias"]),
    ],
)
def test_wrong_keys_are_listed_and_refused(state, stock, remove, add, words):
    changed = {name: t for name, t in state.items() if name not in remove}
    changed |= {name: torch.zeros(shape) for name, shape in add.items()}
    with pytest.raises(ValueError, match="checkpoint") as caught:
        split_release_checkpoint(changed, *stock)
    for part in words:
        assert part in str(caught.value)


def test_nothing_is_written_when_refused(state, config, tmp_path):
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="unknown: extra"):
        convert_release_checkpoint([tmp_path / "a.pth"], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"missing: k00, .*, k19 and 5 more\.$"):
        check_keys({}, {f"k{index:02}": (1,) for index in range(25)})


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_unreadable_files(tmp_path, capsys):
    files = {
        "text.pth": b"no checkpoint at all",
        "empty.bin": b"",
        "text.safetensors": b"no checkpoint at all",
        "harmful.pth": pickle.dumps({"a": Harmful()}, protocol=2),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"a": torch.zeros(1), "step": 3}, tmp_path / "number.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"a": Harmful()}, tmp_path / "harmful_zip.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    names = [*files, "number.pth", "list.pth", "harmful_zip.pth", "cut.pth", "absent.pth"]
    for name in names:
        with pytest.raises(ValueError, match=name):
            read_state(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_old_style_pickles_are_read(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert read_state(tmp_path / "old.bin")["a"].tolist() == [0, 1, 2]


def test_configuration_from_a_file_or_refused(state, config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = REFERENCE / "unet_small.weights.safetensors"
    convert_release_checkpoint([weights], tmp_path / "out", tmp_path / "config.json")
    assert (tmp_path / "out" / "unet" / "config.json").exists()
    with pytest.raises(ValueError, match="no readable JSON"):
        convert_release_checkpoint([weights], tmp_path / "out", tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="misshapen"):
        convert_release_checkpoint([weights], tmp_path / "out2", SDXL_UNET)
    with pytest.raises(ValueError, match="nothing to convert"):
        convert_release_checkpoint([], tmp_path / "out3", config)


def test_backbones(tmp_path):
    vision = load_file(REFERENCE / "vision.safetensors")
    meta = json.loads((REFERENCE / "vision.json").read_text())
    for name in ("siglip", "dino"):
        prefix = f"weights/{name}/"
        weights = {key.removeprefix(prefix): t for key, t in vision.items() if key.startswith(prefix)}
        torch.save(weights, tmp_path / f"{name}.bin")
    heads = {f"{name}_heads": model["overrides"]["num_heads"] for name, model in meta["models"].items()}
    layers = meta["feature_index"]["shallow"]
    sizes = {"siglip_layers": layers, "dino_layers": layers, "image_size": meta["image_size"]}
    convert_backbones(tmp_path / "siglip.bin", tmp_path / "dino.bin", tmp_path, **heads, **sizes)
    encoder = ReferenceEncoder.from_pretrained(tmp_path / "reference_encoder")
    with torch.no_grad():
        difference = encoder(vision["in/image"]).deep - vision[f"out_shallow/f{len(layers) - 1}"]
    assert difference.abs().max() <= meta["suggested_tolerance_max_abs"]["out"]
    with pytest.raises(ValueError, match="unknown entries"):
        convert_backbones(tmp_path / "dino.bin", tmp_path / "dino.bin", tmp_path, **heads, **sizes)
