"""The adaptive scoring module against its equations, written out once more."""

import pytest
import torch

from realcustom.models.scoring import (
    AdaptiveScoringModule,
    keep_highest,
    noise_level_weights,
    plain_average,
    text_only,
    visual_only,
)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randn(2, 10, 6, generator=generator),
        "text": torch.randn(2, 7, 5, generator=generator),
        "latents": torch.randn(2, 4, 8, 6, generator=generator),
        "alpha_bar": torch.tensor([0.81, 0.04]),
    }


@pytest.fixture
def module():
    torch.manual_seed(1)
    return AdaptiveScoringModule(feature_dim=6, text_dim=5, latent_channels=4, hidden_dim=8)


def by_hand(module, tokens, text, latents, alpha_bar):
    """Eq. 5-9, sample by sample."""
    out = []
    for f, c, z, abar in zip(tokens, text, latents, alpha_bar, strict=True):
        z = z.flatten(1).T
        text_context = torch.softmax(module.text_pool.weight(c)[:, 0], 0) @ c
        visual_context = torch.softmax(module.visual_pool.weight(z)[:, 0], 0) @ z
        s_text = module.text_scorer(torch.cat([f, text_context.expand(len(f), -1)], 1))[:, 0]
        s_vis = module.visual_scorer(torch.cat([f, visual_context.expand(len(f), -1)], 1))[:, 0]
        out.append(torch.softmax((1 - abar.sqrt()) * s_text + abar.sqrt() * s_vis, 0))
    return torch.stack(out)


def test_scores_are_the_equations(module, inputs):
    tokens, scores = module(**inputs, mask=None, keep=1.0)
    assert torch.allclose(scores, by_hand(module, **inputs), atol=1e-6)
    assert torch.allclose(scores.sum(1), torch.ones(2))
    assert torch.allclose(tokens, inputs["tokens"] * (1 + scores[..., None]))


@pytest.mark.parametrize(("keep", "count"), [(0.8, 8), (0.3, 3), (0.01, 1), (1.0, 10)])
def test_the_best_tokens_stay_in_order(module, inputs, keep, count):
    tokens, scores = module(**inputs, mask=None, keep=keep)
    assert tokens.shape == (2, count, 6)
    for row in range(2):
        best = sorted(scores[row].argsort(descending=True)[:count].tolist())
        expected = inputs["tokens"][row, best] * (1 + scores[row, best, None])
        assert torch.equal(tokens[row], expected)


def test_order_and_values_of_keep_highest():
    tokens = torch.arange(5.0)[None, :, None]
    assert keep_highest(tokens, torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.3]]), 0.6)[0, :, 0].tolist() == [1.0, 3.0, 4.0]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1])
def test_share_out_of_range(module, inputs, keep):
    with pytest.raises(ValueError, match="must be in"):
        module(**inputs, mask=None, keep=keep)


def test_noise_level_weights_follow_the_noise(module, inputs):
    noisy, clean = torch.zeros(2), torch.ones(2)
    at = {"tokens": inputs["tokens"], "text": inputs["text"], "latents": inputs["latents"], "mask": None}
    full = {level: module.scores(**at, alpha_bar=level) for level in (noisy, clean)}
    module.weights = text_only
    assert torch.allclose(full[noisy], module.scores(**at, alpha_bar=noisy))
    module.weights = visual_only
    assert torch.allclose(full[clean], module.scores(**at, alpha_bar=clean))
    module.weights = plain_average
    assert torch.equal(module.scores(**at, alpha_bar=noisy), module.scores(**at, alpha_bar=clean))
    assert [w.item() for w in noise_level_weights(torch.tensor(0.25))] == [0.5, 0.5]


def test_the_mask_is_resized_and_multiplies_the_latents(module, inputs):
    mask = torch.zeros(2, 1, 4, 3)
    mask[:, :, :2] = 1
    full = torch.zeros(2, 1, 8, 6)
    full[:, :, :4] = 1
    full[:, :, 3:5] = torch.tensor([0.75, 0.25])[:, None]
    masked = dict(inputs, latents=inputs["latents"] * full)
    assert torch.allclose(module.scores(**inputs, mask=mask), module.scores(**masked, mask=None), atol=1e-6)
    assert not torch.allclose(module.scores(**inputs, mask=mask), module.scores(**inputs, mask=None), atol=1e-6)


def test_every_weight_learns(module, inputs):
    tokens, _ = module(**inputs, mask=None, keep=0.5)
    tokens.square().sum().backward()
    # A bias in front of a softmax moves all positions alike: those gradients are zero up to rounding.
    shifts = {"text_pool.weight.bias", "visual_pool.weight.bias", "text_scorer.2.bias", "visual_scorer.2.bias"}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert name in shifts or parameter.grad.abs().max() > 1e-7, name
