"""What the reference encoders learn first: the targets, and that the loss falls on a fixed batch."""

import numpy as np
import pytest
import torch
from conftest import build_components

from realcustom.training.appearance import APPEARANCE, SUBJECT_WEIGHT, appearance_heads, appearance_loss, appearance_of


def test_appearance_is_the_mean_colour_and_the_shares_of_colours():
    pixels = np.array([[255, 0, 0]] * 3 + [[0, 0, 0]], dtype=np.uint8)
    told = appearance_of(pixels)
    assert told.shape == (APPEARANCE,)
    assert told[:3] == pytest.approx([0.75, 0, 0])
    assert sorted(told[3:][told[3:] > 0] ** 2) == pytest.approx([0.25, 0.75])
    assert told[3 + 3 * 16] ** 2 == pytest.approx(0.75)


def test_tokens_learn_to_tell_colours(tokenizer):
    parts = build_components(tokenizer)
    modules = {name: parts[name].train() for name in ("adapter", "reference_encoder")}
    torch.manual_seed(0)
    modules["heads"] = appearance_heads(parts["adapter"])
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (4, 3), dtype=np.uint8)
    batch = {
        "references": torch.from_numpy(colours)[:, :, None, None].expand(-1, -1, 64, 64).contiguous(),
        "appearance": torch.from_numpy(np.stack([appearance_of(colour[None]) for colour in colours])),
    }
    weights = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    losses = []
    for _ in range(30):
        loss, told = appearance_loss(modules, batch, torch.Generator())
        assert float(loss.detach()) == pytest.approx(float(told["patch"] + SUBJECT_WEIGHT * told["subject"]), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
