"""What the reference encoders learn first: the targets, and that the loss falls on a fixed batch."""

import numpy as np
import pytest
import torch
from conftest import build_components

from realcustom.training.appearance import (
    LEVELS,
    SHARES,
    VIEW,
    WEIGHTS,
    appearance_heads,
    appearance_loss,
    appearance_of,
    global_features,
)


def picture_of(pixels):
    """A picture of one row, all of it the subject."""
    image = np.array([pixels], dtype=np.uint8)
    return image, np.ones(image.shape[:2], bool)


def test_appearance_is_the_mean_colour_and_the_shares_of_colours():
    told = appearance_of(*picture_of([[255, 0, 0]] * 3 + [[0, 0, 0]]))
    assert told["colour"] == pytest.approx([0.75, 0, 0])
    assert told["shares"].shape == (SHARES,)
    assert sorted(told["shares"][told["shares"] > 0] ** 2) == pytest.approx([0.25, 0.75])
    assert told["shares"][3 * LEVELS**2] ** 2 == pytest.approx(0.75)


def test_the_view_shows_the_subject_wherever_it_stands():
    """Left half red, right half blue; what lies outside the mask has no part in it."""
    views = []
    for top, left, side in ((0, 0, 2 * VIEW), (5, 20, 4 * VIEW)):
        image, mask = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), bool)
        mask[top : top + side, left : left + side] = True
        image[top : top + side, left : left + side // 2] = (255, 0, 0)
        image[top : top + side, left + side // 2 : left + side] = (0, 0, 255)
        views.append(appearance_of(image, mask)["view"])
    np.testing.assert_array_equal(views[0], views[1])
    assert views[0].shape == (4, VIEW, VIEW)
    assert views[0][:, :, : VIEW // 2].mean(axis=(1, 2)) == pytest.approx([1, 0, 0, 1])
    assert views[0][:, :, VIEW // 2 :].mean(axis=(1, 2)) == pytest.approx([0, 0, 1, 1])


def test_a_subject_that_is_hidden_is_the_whole_picture():
    image, mask = picture_of([[10, 20, 30]] * 4)
    np.testing.assert_array_equal(appearance_of(image, ~mask)["view"], appearance_of(image, mask)["view"])


def test_tokens_learn_to_tell_colours(tokenizer):
    parts = build_components(tokenizer)
    modules = {name: parts[name].train() for name in ("adapter", "reference_encoder")}
    torch.manual_seed(0)
    modules["heads"] = appearance_heads(parts["adapter"])
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (4, 3), dtype=np.uint8)
    told = [appearance_of(*picture_of([colour] * 4)) for colour in colours]
    batch = {
        "references": torch.from_numpy(colours)[:, :, None, None].expand(-1, -1, 64, 64).contiguous(),
        **{name: torch.from_numpy(np.stack([one[name] for one in told])) for name in told[0]},
    }
    weights = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    losses = []
    for _ in range(30):
        loss, errors = appearance_loss(modules, batch, torch.Generator())
        weighted = sum(WEIGHTS[name] * float(error) for name, error in errors.items())
        assert float(loss.detach()) == pytest.approx(weighted, rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_the_global_view_stands_for_the_local_ones(tokenizer):
    """Where neighbouring pixels are alike, all five views are."""
    encoder = build_components(tokenizer)["reference_encoder"].eval()
    coarse = torch.rand(1, 3, 1, 1).expand(1, 3, encoder.pixel_size, encoder.pixel_size)
    with torch.no_grad():
        short, whole = global_features(encoder, coarse), encoder(coarse)
    torch.testing.assert_close(short.deep, whole.deep)
    torch.testing.assert_close(short.local.sort(dim=1).values, whole.local.sort(dim=1).values)
    for one, other in zip(short.shallow, whole.shallow, strict=True):
        torch.testing.assert_close(one, other)
