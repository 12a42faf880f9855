"""Release checkpoints: converted, or refused with every offending key. Uses the small checkpoint of the reference."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from realcustom.convert.folder import convert
from realcustom.convert.release import SDXL_UNET, split_release_checkpoint, write_encoder
from realcustom.convert.states import check_keys, read_state
from realcustom.encoders.image import ReferenceEncoder
from realcustom.guidance.mask import NORMALISATIONS, MaskSettings, Updates
from realcustom.guidance.records import mask_settings
from realcustom.hub.settings import AdapterSettings
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
    convert(files, tmp_path / "out", unet_config=config)
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
    done = convert([tmp_path / "a.safetensors"], tmp_path / "out", unet_config=config)
    assert done.parts == ("adapter",)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "pipeline.json"]
    assert any("no U-Net" in note for note in done.notes)


def test_where_both_hold_a_key_the_weights_of_realcustom_count(state, config, tmp_path):
    base = {name: t + 1 for name, t in state.items() if "_vision." not in name and not name.startswith(PROJECTOR)}
    save_file(base, tmp_path / "base.safetensors")
    convert([tmp_path / "base.safetensors", REFERENCE / "unet_small.weights.safetensors"], tmp_path / "out",
            unet_config=config)  # fmt: skip
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert torch.equal(unet.state_dict()["conv_in.bias"], state["conv_in.bias"])


def test_the_shallow_projector_is_recognised(state, stock):
    projector = build_projector({"kind": "shallow", "vision_dim": 128, "out_dim": 64})
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
        ((), {"down_blocks.9.resnets.0.conv1.bias": (32,)}, ["unknown: down_blocks.9.resnets.0.conv1.bias"]),
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
        convert([tmp_path / "a.pth"], tmp_path / "out", unet_config=config)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"], "nothing half-written stays"


def test_a_folder_that_is_there_is_not_touched(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        convert([REFERENCE / "unet_small.weights.safetensors"], tmp_path / "out", unet_config=config)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_what_cannot_change_a_picture_is_left_out_and_told(state, config, tmp_path):
    stray = {
        f"{PROJECTOR}scale_value.value": torch.tensor(3.0),
        "global_step": torch.tensor(7),
        "optimizer.state.0": torch.zeros(2),
    }
    torch.save(state | stray, tmp_path / "a.pth")
    done = convert([tmp_path / "a.pth"], tmp_path / "out", unet_config=config)
    assert all(any(name in note for note in done.notes) for name in stray)
    plain = convert([REFERENCE / "unet_small.weights.safetensors"], tmp_path / "plain", unet_config=config)
    assert plain.notes != done.notes
    for part in ("adapter", "unet"):
        files = [tmp_path / name / part / "diffusion_pytorch_model.safetensors" for name in ("out", "plain")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_wrappers_are_unwrapped(state, tmp_path):
    few = dict(list(state.items())[:3])
    wrapped = {
        "wrapped.pth": {"state_dict": few, "epoch": 3, "optimizer": {"lr": 0.1}},
        "module.pth": {f"module.{name}": t for name, t in few.items()},
        "both.pth": {"module": {f"module.{name}": t for name, t in few.items()}},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / name)
        read = read_state(tmp_path / name)
        assert read.keys() == few.keys()
        assert all(torch.equal(read[key], few[key]) for key in few)


def test_weights_are_written_in_another_dtype(state, config, tmp_path):
    convert([REFERENCE / "unet_small.weights.safetensors"], tmp_path / "out", unet_config=config, dtype=torch.bfloat16)
    unet = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in unet.values()} == {torch.bfloat16}
    assert all(torch.equal(t, state[name].bfloat16()) for name, t in unet.items())


def test_the_settings_of_the_release_travel(config, tmp_path):
    convert([REFERENCE / "unet_small.weights.safetensors"], tmp_path / "out", unet_config=config)
    settings = AdapterSettings.load(tmp_path / "out")
    assert (settings.scheduler, settings.released_conditioning) == ("released", True)
    defaults = settings.defaults
    side = config["sample_size"] * 8
    assert (defaults.steps, defaults.guidance_scale, defaults.height, defaults.width) == (25, 3.5, side, side)
    released = {"normalisation": NORMALISATIONS["min-max-per-layer"], "spread": 0, "updates": Updates(until=12)}
    assert mask_settings(defaults.mask) == MaskSettings(scope=0.2, **released)
    assert "low quality" in defaults.negative_prompt


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


def test_configuration_from_a_file_or_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = REFERENCE / "unet_small.weights.safetensors"
    convert([weights], tmp_path / "out", unet_config=tmp_path / "config.json")
    assert (tmp_path / "out" / "unet" / "config.json").exists()
    with pytest.raises(ValueError, match="no readable JSON"):
        convert([weights], tmp_path / "out2", unet_config=tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="misshapen"):
        convert([weights], tmp_path / "out2", unet_config=SDXL_UNET)
    with pytest.raises(ValueError, match="nothing to convert"):
        convert([], tmp_path / "out3", unet_config=config)
    assert not (tmp_path / "out2").exists()


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
    siglip, dino = (read_state(tmp_path / f"{name}.bin") for name in ("siglip", "dino"))
    write_encoder(siglip, dino, tmp_path, **heads, **sizes)
    encoder = ReferenceEncoder.from_pretrained(tmp_path / "reference_encoder")
    with torch.no_grad():
        difference = encoder(vision["in/image"]).deep - vision[f"out_shallow/f{len(layers) - 1}"]
    assert difference.abs().max() <= meta["suggested_tolerance_max_abs"]["out"]
    with pytest.raises(ValueError, match="unknown entries"):
        write_encoder(dino, dino, tmp_path / "wrong", **heads, **sizes)
