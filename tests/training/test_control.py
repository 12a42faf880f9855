"""The ControlNet's training: outlines, samples, and that the loss falls through the ControlNet alone."""

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel

from realcustom.data.outlines import outline
from realcustom.data.world import WorldSettings
from realcustom.miniature.builders import (
    build_controlnet,
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
)
from realcustom.miniature.tokenizer import train_tokenizer
from realcustom.models.control import same_family
from realcustom.training.control import ControlGrid, ControlLoss, OutlinedStickers, export_controlnet


def test_an_outline_runs_within_each_figure_along_its_border():
    covers = np.zeros((2, 20, 30), bool)
    covers[0, 4:14, 3:12] = True
    covers[1, 8:18, 15:28] = True
    lines = outline(covers) > 0
    assert not lines[~covers.any(axis=0)].any()
    for cover in covers:
        inner = np.zeros_like(cover)
        inner[1:-1, 1:-1] = cover[1:-1, 1:-1] & cover[:-2, 1:-1] & cover[2:, 1:-1] & cover[1:-1, :-2] & cover[1:-1, 2:]
        border = cover & ~inner
        assert lines[border].all()
        assert not lines[inner].any()
    assert not outline(np.zeros((0, 8, 8), bool)).any()


def test_a_controlnet_starts_from_the_unet_and_learns_beside_it(cutouts, tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog on the beach", "a cat in the forest"])
    unet: UNet2DConditionModel = build_unet()
    text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
    controlnet = build_controlnet(unet)
    assert same_family(controlnet, unet)
    assert torch.equal(controlnet.conv_in.weight, unet.conv_in.weight)
    modules = {"unet": unet, "vae": build_vae(), "text_encoder": text_encoder, "controlnet": controlnet}
    for name in ("unet", "vae", "text_encoder"):
        modules[name].requires_grad_(False)
    settings = WorldSettings(words=("dog", "cat"), scenes=("beach",), plates=1)
    source, later = (OutlinedStickers(cutouts, settings, tokenizer, first=first) for first in (0, 3))
    batch = source.batch(np.arange(4))
    assert {name: tuple(tensor.shape[1:]) for name, tensor in batch.items()} == {
        "pixels": (3, 128, 128),
        "controls": (3, 128, 128),
        "tokens": (tokenizer.model_max_length,),
        "figures": (16, 16),
    }
    assert torch.equal(later.batch(np.arange(1))["controls"][0], batch["controls"][3])
    empty = torch.zeros(tokenizer.model_max_length, dtype=torch.long)
    loss = ControlLoss(scheduler=build_scheduler(), empty_tokens=empty, outside=0.3)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        value, metrics = loss(modules, batch, torch.Generator().manual_seed(1))
        losses.append(float(value.detach()))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.97 * losses[0]
    assert metrics["mse"].isfinite()
    assert all(weight.grad is None for weight in unet.parameters())
    grid = ControlGrid(scheduler=build_scheduler(), records=batch, empty_tokens=empty, steps=1)(modules, 0)
    assert grid.shape == (128, 8 * 128, 3)
    export_controlnet(modules, tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.conv_in.weight.float(), controlnet.conv_in.weight.detach(), rtol=1e-3, atol=1e-3)
    assert controlnet.dtype == torch.float32
