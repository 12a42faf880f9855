"""Conversion from timm's layout, checked against a plain ViT written on timm's own names."""

import pytest
import torch
from einops import rearrange
from release_files import timm_weights
from torch.nn import functional as F

from realcustom.convert.timm import (
    dino_config_from_timm,
    dino_from_timm,
    resample_positions,
    siglip_config_from_timm,
    siglip_from_timm,
    vision_trunk,
)
from realcustom.encoders.image import ReferenceEncoder


def timm_forward(state, pixels, heads, last):
    """Output of block `last` without final norm: class and register tokens in front, positions on patches only."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    grid = tokens.shape[-1]
    table = rearrange(state["pos_embed"], "1 (h w) c -> 1 c h w", h=round(state["pos_embed"].shape[1] ** 0.5))
    if table.shape[-1] != grid:
        table = F.interpolate(table, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
    x = rearrange(tokens + table, "b c h w -> b (h w) c")
    if "cls_token" in state:
        prefix = [state[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token")]
        x = torch.cat([*prefix, x], dim=1)
    for index in range(last + 1):
        w = {n.removeprefix(f"blocks.{index}."): t for n, t in state.items() if n.startswith(f"blocks.{index}.")}
        y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], 1e-6)
        qkv = F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"])
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        y = rearrange((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v, "b h n d -> b n (h d)")
        x = x + w.get("ls1.gamma", 1.0) * F.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
        y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        x = x + w.get("ls2.gamma", 1.0) * F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return x


SIGLIP = {"width": 16, "mlp": 27, "depth": 3, "grid": 4, "patch": 8}
DINO = {"width": 24, "mlp": 96, "depth": 3, "grid": 6, "patch": 8, "registers": 4}


@torch.no_grad()
def test_features_equal_the_timm_layout():
    """34 pixels at patch 8: a 4 x 4 grid, 2 pixels unused; DINOv2's 6 x 6 table is resampled."""
    siglip, dino = timm_weights(**SIGLIP), timm_weights(**DINO)
    encoder = ReferenceEncoder(siglip_config_from_timm(siglip, 2), dino_config_from_timm(dino, 3), (1,), (2,), 34)
    encoder.siglip.load_state_dict(siglip_from_timm(siglip, 34), strict=True)
    encoder.dino.load_state_dict(dino_from_timm(dino, 34), strict=True)
    view = torch.rand(2, 3, 34, 34)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = [
        timm_forward(siglip, (view - 0.5) / 0.5, 2, 1),
        timm_forward(dino, (view - mean[:, None, None]) / std[:, None, None], 3, 2)[:, 5:],
    ]
    (actual,) = encoder.levels(view)
    assert (actual - torch.cat(expected, dim=-1)).abs().max() < 5e-5


def test_dinov2s_own_layout():
    """Class position as the table's first row, registers under another name: the same model."""
    timm = timm_weights(**DINO)
    first = torch.randn(1, 1, 24)
    own = {name: tensor for name, tensor in timm.items() if name != "reg_token"}
    own |= {"register_tokens": timm["reg_token"], "pos_embed": torch.cat([first, timm["pos_embed"]], dim=1)}
    own["cls_token"] = timm["cls_token"] - first
    assert dino_config_from_timm(own, 3) == dino_config_from_timm(timm, 3)
    expected, actual = dino_from_timm(timm, 32), dino_from_timm(own, 32)
    assert expected.keys() == actual.keys()
    name = "embeddings.position_embeddings"
    assert torch.equal(actual[name][:, 1:], expected[name][:, 1:])
    class_token = actual["embeddings.cls_token"] + actual[name][:, :1]
    assert torch.allclose(class_token, expected["embeddings.cls_token"], atol=1e-6)


def test_open_clip_files_hold_the_vit_as_a_trunk():
    siglip = timm_weights(**SIGLIP)
    wrapped = {f"visual.trunk.{name}": tensor for name, tensor in siglip.items()}
    assert vision_trunk({**wrapped, "text.x": torch.zeros(1), "logit_scale": torch.zeros(1)}).keys() == siglip.keys()
    assert vision_trunk(siglip).keys() == siglip.keys()


def test_configurations():
    assert siglip_config_from_timm(timm_weights(**SIGLIP), 2) == {
        "hidden_size": 16,
        "intermediate_size": 27,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    dino = dino_config_from_timm(timm_weights(**DINO), 3)
    assert (dino["mlp_ratio"], dino["num_register_tokens"], dino["hidden_size"]) == (4, 4, 24)


def test_resampling_37_to_27():
    table = torch.randn(1, 1 + 37 * 37, 5)
    small = resample_positions(table, 27, prefix=1)
    assert small.shape == (1, 1 + 27 * 27, 5)
    assert torch.equal(small[:, 0], table[:, 0])
    image = table[:, 1:].reshape(37, 37, 5).permute(2, 0, 1)[None]
    image = F.interpolate(image, (27, 27), mode="bicubic", antialias=True)
    assert torch.equal(small[0, 1:], image[0].flatten(1).T)
    assert torch.allclose(resample_positions(torch.ones(1, 37 * 37, 2), 27), torch.ones(1, 27 * 27, 2))
    assert resample_positions(table, 37, prefix=1) is table
    assert resample_positions(table.bfloat16(), 27, prefix=1).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="not a square grid"):
        resample_positions(torch.zeros(1, 10, 2), 3)


def test_refusals():
    siglip, dino = timm_weights(**SIGLIP), timm_weights(**DINO)
    with pytest.raises(ValueError, match=r"SigLIP weights have unknown entries: blocks.0.ls1.gamma.*cls_token"):
        siglip_from_timm(dino)
    with pytest.raises(ValueError, match="cls_token is missing"):
        dino_from_timm(siglip)
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is missing"):
        siglip_config_from_timm({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="5 heads do not divide"):
        siglip_config_from_timm(siglip, 5)
    with pytest.raises(ValueError, match="lack some of their blocks"):
        dino_config_from_timm({n: t for n, t in dino.items() if not n.startswith("blocks.1.")}, 3)
    with pytest.raises(ValueError, match="unknown entries: extra"):
        siglip_from_timm({**siglip, "extra": torch.zeros(1)})
