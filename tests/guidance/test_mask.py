"""Invariants of the guidance mask for any maps and any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realcustom.guidance.attention_maps import SelfMaps, WordMaps, check_levels, word_maps
from realcustom.guidance.mask import (
    NORMALISATIONS,
    RULES,
    AveragedMask,
    BinaryMask,
    MaskSettings,
    Updates,
    fresh,
    guidance_mask,
    largest_share,
)

maps = st.builds(
    lambda seed, batch, subjects, height, width: torch.rand(
        batch, subjects, height, width, generator=torch.Generator().manual_seed(seed)
    ),
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 12),
    st.integers(2, 12),
)
mask_settings = st.builds(
    MaskSettings,
    scope=st.floats(0.01, 1.0),
    normalisation=st.sampled_from(list(NORMALISATIONS.values())),
    rule=st.sampled_from(list(RULES.values())),
)


@settings(max_examples=60, deadline=None)
@given(maps, mask_settings)
def test_range_scope_and_no_shared_position(scores, chosen):
    mask = guidance_mask(scores, chosen)
    assert mask.shape == scores.shape
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert ((mask > 0).sum(dim=1) <= 1).all()
    if chosen.rule.keep is largest_share:
        cells = scores.shape[-1] * scores.shape[-2]
        assert ((mask > 0).sum(dim=(-2, -1)) <= max(1, int(cells * chosen.scope))).all()
    if isinstance(chosen.rule, BinaryMask):
        assert ((mask == 0) | (mask == 1)).all()


@settings(max_examples=30, deadline=None)
@given(maps, mask_settings)
def test_each_sample_is_alone(scores, chosen):
    together = guidance_mask(scores, chosen)
    alone = torch.cat([guidance_mask(row[None], chosen) for row in scores])
    assert torch.equal(together, alone)


@settings(max_examples=30, deadline=None)
@given(maps, st.floats(0.05, 0.9))
def test_larger_scope_contains_the_smaller(scores, scope):
    small = guidance_mask(scores[:, :1], MaskSettings(scope=scope)) > 0
    large = guidance_mask(scores[:, :1], MaskSettings(scope=min(1.0, scope + 0.1))) > 0
    assert (large | ~small).all()


@settings(max_examples=30, deadline=None)
@given(maps)
def test_nothing_outside_the_region(scores):
    regions = (torch.rand(1, *scores.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5).float()
    mask = guidance_mask(scores, MaskSettings(scope=0.8, rule=RULES["top-share-binary"]), regions=regions)
    assert (mask * (1 - regions) == 0).all()


@pytest.mark.parametrize("scope", [0.1, 0.25, 0.5])
def test_single_subject_keeps_exactly_the_scope(scope):
    scores = torch.rand(2, 1, 10, 12, generator=torch.Generator().manual_seed(1)) + 0.01
    mask = guidance_mask(scores, MaskSettings(scope=scope, normalisation=NORMALISATIONS["max"]))
    assert ((mask > 0).sum(dim=(-2, -1)) == int(120 * scope)).all()


def test_word_maps_are_the_softmax_columns():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, count, 8, generator=generator) for count in (30, 7))
    weights = torch.zeros(2, 2, 7)
    weights[:, 0, [1, 2]] = 1
    weights[:, 1, 5] = 1
    probabilities = (query @ key.transpose(-1, -2) * 8**-0.5).softmax(-1).mean(1)
    expected = torch.stack([probabilities[..., 1] + probabilities[..., 2], probabilities[..., 5]], dim=1)
    torch.testing.assert_close(word_maps(query, key, weights, 8**-0.5), expected)


def test_spread_applies_the_self_attention_matrix_without_forming_it():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 24, 16, generator=generator) for _ in range(2))
    maps = torch.rand(2, 2, 4, 6, generator=generator)
    recorder = SelfMaps(levels=(0,))
    recorder.add(query, key, 0.25, (4, 6), level=0)
    recorder.add(query[:, :, :6], key[:, :, :6], 0.25, (2, 3), level=1)
    matrix = (query @ key.transpose(-1, -2) * 0.25).softmax(-1).mean(1)
    flat = maps.flatten(2).transpose(1, 2)
    for power in (1, 2):
        flat = matrix @ flat
        torch.testing.assert_close(recorder.spread(maps, power), flat.transpose(1, 2).unflatten(2, (4, 6)))


def test_recorder_memory_does_not_grow_with_layers():
    recorder = WordMaps(torch.ones(1, 1, 77), (8, 8))
    for _ in range(50):
        recorder.add(torch.randn(1, 2, 64, 8), torch.randn(1, 2, 77, 8), 0.35, (8, 8), level=0)
    held = [value for value in vars(recorder).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) <= 77 + 64 + 1
    torch.testing.assert_close(recorder.mean(), torch.ones(1, 1, 8, 8))


def test_missing_levels_are_refused():
    with pytest.raises(ValueError, match="levels"):
        check_levels((9,), (0, 1), "cross")
    with pytest.raises(ValueError, match="levels"):
        SelfMaps(levels=(9,)).spread(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": 0},
        {"scope": 1.5},
        {"scope": float("nan")},
        {"normalisation": "maximum"},
        {"rule": "best"},
        {"updates": 3},
        {"spread": -1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"[Mm]ask"):
        MaskSettings(**wrong)


def test_schedule():
    assert [step for step in range(9) if Updates(until=5, interval=2)(step)] == [0, 2, 4]
    for wrong in ({"interval": 0}, {"until": 0}):
        with pytest.raises(ValueError, match="mask"):
            Updates(**wrong)


def test_the_smallest_scope_keeps_one_position():
    scores = torch.rand(2, 1, 4, 4)
    mask = guidance_mask(scores, MaskSettings(scope=0.001))
    assert ((mask > 0).sum(dim=(-2, -1)) == 1).all()


def test_an_averaged_mask_remembers_earlier_steps_and_forgets_earlier_images():
    first, second = torch.rand(2, 1, 1, 6, 6)
    rule = AveragedMask(decay=0.75)
    start = guidance_mask(first, MaskSettings(rule=rule, scope=1.0))
    assert torch.equal(start, guidance_mask(first, MaskSettings(scope=1.0)))
    later = guidance_mask(second, MaskSettings(rule=rule, scope=1.0))
    expected = 0.75 * start + 0.25 * guidance_mask(second, MaskSettings(scope=1.0))
    torch.testing.assert_close(later, expected)
    assert torch.equal(guidance_mask(first, MaskSettings(rule=fresh(rule), scope=1.0)), start)
