"""The small reference U-Net as a stock U-Net and our adapter, both loaded strictly from the released layout."""

import inspect
import json

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone, cross_attention_names

PROJECTION = "encoder_hidden_states_vision_projection."
PROJECTORS = {"ProjectorHighResMinAttn": "deep", "ProjectorHighResShallowMinAttnV1": "shallow"}


def load_released(folder):
    """(stock U-Net, adapter) from a folder of reference data."""
    meta = json.loads((folder / "unet_small.json").read_text())
    state = load_file(folder / "unet_small.weights.safetensors")
    config = dict(meta["config"])
    vision = config.pop("image_prompt_settings")["vision_projection_config"]
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    unet = UNet2DConditionModel(**{key: value for key, value in config.items() if key in known})
    params = dict(vision["params"])
    kind = PROJECTORS[vision["target"].split(".")[-1]]
    adapter = RealCustomAdapter.for_backbone(UNetBackbone(unet), projector={"kind": kind, **params})
    names = cross_attention_names(unet)
    ours = {"projector." + key.removeprefix(PROJECTION): state.pop(key) for key in list(state) if PROJECTION in key}
    for index, name in enumerate(names):
        ours[f"to_k.{index}.weight"] = state.pop(f"{name}.to_k_vision.weight")
        ours[f"to_v.{index}.weight"] = state.pop(f"{name}.to_v_vision.weight")
    unet.load_state_dict(state, strict=True)
    adapter.load_state_dict(ours, strict=True)
    return unet.eval(), adapter.eval()


def released_resize(masks, size):
    """The release's mask resize: one scale factor, from the heights, for both axes and for the sampling points."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, scale_factor=size[0] / masks.shape[-2], mode="bilinear", align_corners=False)
