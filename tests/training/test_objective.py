"""Noise, targets, weights, dropout of conditions, schedules, curriculum and batch order as numbers."""

import math
from collections import Counter
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler

from realcustom.miniature.builders import build_scheduler
from realcustom.training.autoencoder import moment_penalty, picture_distance
from realcustom.training.average import WeightAverage
from realcustom.training.config import Feed, TrainConfig, cosine, hold_and_decay
from realcustom.training.curriculum import Chooser, Curriculum, Stage, reconstruction_only
from realcustom.training.feeding import feed_batches
from realcustom.training.objective import (
    add_noise,
    drop_conditions,
    error_areas,
    logit_normal_timesteps,
    min_snr_weights,
    noisier_timesteps,
    pooled_error,
    subject_offset,
    weighted_error,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_the_schedulers(kind):
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    latents = torch.randn(6, 4, 5, 7, generator=generator(1))
    noised = add_noise(latents, scheduler, generator())
    alpha, beta = (value.view(-1, 1, 1, 1) ** 0.5 for value in (noised.alpha_bar, 1 - noised.alpha_bar))
    noise = (noised.latents - alpha * latents) / beta
    torch.testing.assert_close(noised.latents, scheduler.add_noise(latents, noise, noised.timesteps), atol=1e-4, rtol=0)
    expected = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, noised.timesteps)
    torch.testing.assert_close(noised.target, expected, atol=2e-3, rtol=0)


def test_min_snr_weighs_the_clean_samples_error():
    alpha_bar = torch.tensor([0.01, 0.5, 0.99])
    snr = alpha_bar / (1 - alpha_bar)
    # The error of epsilon and of v, expressed as the error of the clean sample.
    clean = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(3)}
    for kind, factor in clean.items():
        weights = min_snr_weights(alpha_bar, kind, 5.0)
        torch.testing.assert_close(weights * factor, snr.clamp(max=5.0))
    assert torch.equal(min_snr_weights(alpha_bar, "epsilon", None), torch.ones(3))


def test_unknown_prediction_is_refused():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="flow"):
        add_noise(torch.zeros(1, 4, 2, 2), scheduler, generator())


def test_noisier_timesteps_follow_their_power():
    drawn = noisier_timesteps(20_000, 1000, generator(), power=2.0)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) == 999
    # P(t >= 500) = P(u^2 <= 1/2)
    assert float((drawn >= 500).float().mean()) == pytest.approx(0.5**0.5, abs=0.02)
    assert float(noisier_timesteps(20_000, 1000, generator(), power=1.0).float().mean()) == pytest.approx(500, abs=10)


def test_logit_normal_timesteps_prefer_the_middle():
    drawn = logit_normal_timesteps(20_000, 1000, generator(), mean=0.3).double()
    assert float(drawn.median()) == pytest.approx(1000 / (1 + math.exp(-0.3)), abs=6)
    # A standard normal lies within one deviation in 68.3 % of cases.
    low, high = (1000 / (1 + math.exp(-0.3 + side)) for side in (1, -1))
    assert float(((drawn > low) & (drawn < high)).double().mean()) == pytest.approx(0.683, abs=0.01)
    extreme = logit_normal_timesteps(100, 1000, generator(), mean=100.0)
    assert set(extreme.tolist()) == {999}


def test_conditions_drop_in_the_given_shares():
    text, reference = drop_conditions(200_000, text=0.05, reference=0.1, both=0.02, generator=generator())
    shares = [(text & ~reference), (reference & ~text), (text & reference)]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.05, 0.1, 0.02], abs=2e-3)


def test_schedules():
    assert [cosine(step, 110, warmup=10) for step in (0, 9, 10, 60, 110)] == pytest.approx([1 / 11, 10 / 11, 1, 0.5, 0])
    decay = partial(hold_and_decay, warmup=4, decay=0.5, floor=0.2)
    assert [decay(step, 100) for step in (0, 10, 50, 75, 100)] == pytest.approx([0.2, 1, 1, 0.6, 0.2])


def test_average_warms_up_and_gives_back():
    weight = torch.nn.Parameter(torch.zeros(1))
    average = WeightAverage([weight], decay=0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(0)
    assert float(average.tensors[0]) == pytest.approx(0.9)
    with average.applied():
        assert weight.item() == pytest.approx(0.9)
    assert weight.item() == 1.0


def test_autoencoder_terms_vanish_where_they_should():
    pixels = torch.rand(2, 3, 16, 16, generator=generator())
    assert [float(term) for term in picture_distance(pixels, pixels, 3)] == [0, 0]
    distance, edges = picture_distance(pixels + 0.25, pixels, 3)
    assert (float(distance), float(edges)) == pytest.approx((0.25, 0), abs=1e-6)
    latents = torch.randn(4, 8, 32, 32, generator=generator())
    assert float(moment_penalty(latents)) < 1e-3
    assert float(moment_penalty(3 * latents + 1)) == pytest.approx(5, rel=0.05)


def test_the_error_outside_the_subject_counts_less():
    figures = torch.zeros(2, 6, 6)
    figures[0, 2, 2] = 1
    areas = error_areas({"figures": figures}, "figures", 0.25)
    assert float(areas.mean()) == pytest.approx(1)
    assert torch.equal(areas[0, 0] > 1, F.pad(torch.ones(3, 3, dtype=torch.bool), (1, 2, 1, 2)))
    assert float(areas[0, 0, 2, 2] / areas[1, 0, 0, 0]) == pytest.approx(4)
    errors = torch.zeros(2, 3, 6, 6)
    errors[:, :, 5, 5] = 1
    ones = torch.ones(2)
    outside = weighted_error(errors, torch.zeros_like(errors), ones, areas)
    assert float(outside) < 0.9 * float(weighted_error(errors, torch.zeros_like(errors), ones))
    twice = error_areas({"figures": 2 * figures}, "figures", 0.25)
    assert float(twice[0, 0, 2, 2] / twice[1, 0, 0, 0]) == pytest.approx(7)
    assert error_areas({}, "figures", 1.0) is None
    with pytest.raises(ValueError, match="do not tell where the subjects are"):
        error_areas({"figures": figures}, "subjects", 0.25)


def test_subject_offset_shifts_the_subjects_noise_and_the_target_still_tells_the_picture():
    subjects = torch.zeros(400, 5, 4)
    subjects[:, 1:4, 2:] = 255
    offset = subject_offset({"subjects": subjects}, 8, 0.3, generator())
    assert offset.shape == (400, 8, 5, 4)
    assert (offset[:, :, 0] == 0).all()
    assert (offset[..., :2] == 0).all()
    values = offset[:, :, 1, 2]
    assert torch.equal(offset[:, :, 1:4, 2:], values[..., None, None].expand(-1, -1, 3, 2))
    assert float(values.std()) == pytest.approx(0.3, rel=0.05)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.02)

    latents, scheduler = torch.randn(400, 8, 5, 4, generator=generator(1)), build_scheduler()
    plain, shifted = (add_noise(latents, scheduler, generator(2), offset=part) for part in (None, offset))
    signal, sigma = (part.view(-1, 1, 1, 1) for part in (plain.alpha_bar.sqrt(), (1 - plain.alpha_bar).sqrt()))
    torch.testing.assert_close(shifted.latents - plain.latents, sigma * offset)
    torch.testing.assert_close(signal * shifted.latents - sigma * shifted.target, latents)


def test_pooled_error_sees_a_subjects_colour_alone():
    subjects = torch.zeros(2, 6, 10)
    subjects[0, 1:5, 2:6] = 1
    subjects[1, :3, 8:] = 255
    batch, ones = {"subjects": subjects}, torch.ones(2)
    checkers = (torch.arange(6)[:, None] + torch.arange(10)) % 2 * 2.0 - 1
    target = torch.randn(2, 3, 6, 10, generator=generator())
    wrong = target + 0.5 + checkers + 100 * (subjects == 0)[:, None]

    def pooled(prediction, cells, weights=ones):
        return float(pooled_error(prediction, target, weights, batch, cells))

    assert pooled(wrong, 99) == pytest.approx(0.25, abs=1e-3)
    assert pooled(wrong, 2) == pytest.approx(0.25, abs=0.2)  # blocks with an odd number of the second subject's cells
    inside = (subjects > 0)[:, None].expand_as(target)
    plain = np.mean([float(((wrong - target) ** 2)[row][inside[row]].mean()) for row in (0, 1)])
    assert pooled(wrong, 1) == pytest.approx(plain, rel=1e-4)
    assert pooled(wrong, 99, torch.tensor([0.0, 2.0])) == pytest.approx(0.25, abs=1e-3)
    nothing = {"subjects": torch.zeros(2, 6, 10)}
    assert float(pooled_error(wrong, target, ones, nothing, 4)) == 0
    with pytest.raises(ValueError, match="do not tell where the subjects are"):
        pooled_error(wrong, target, ones, {}, 4)


def test_curriculum_grows():
    difficulty = np.random.default_rng(0).random(1000).astype(np.float32)
    choose = Chooser(Curriculum(), difficulty, samples=10_000, seed=1)
    stretches = [[choose(position) for position in range(*ends)] for ends in ((0, 900), (1100, 3900), (4100, 10_000))]
    shares = [np.mean([choice.reconstruct for choice in stretch]) for stretch in stretches]
    assert shares == pytest.approx([1.0, 0.3, 0.1], abs=0.03)
    hardest = [max(difficulty[c.index] for c in stretch if not c.reconstruct) for stretch in stretches[1:]]
    assert hardest[0] <= 0.5
    assert hardest[1] > 0.95
    assert choose(5000) == choose(5000)
    continued = Chooser(Curriculum(), difficulty, samples=10_000, seed=1, first=3000)
    assert [continued(position) for position in range(50)] == [choose(3000 + position) for position in range(50)]


def test_curriculum_refuses_gaps():
    with pytest.raises(ValueError, match="exactly 1"):
        Curriculum(stages=(Stage(until=0.5, reconstruction=1.0),))
    with pytest.raises(ValueError, match="No record"):
        Chooser(Curriculum(), np.ones(3, np.float32), samples=10)
    assert reconstruction_only().stage(0.99).reconstruction == 1.0


class Indices:
    size = 10

    def batch(self, indices):
        return {"index": torch.from_numpy(indices)}


def batches(count, **feed):
    stream = feed_batches(Feed(**{"start": 0, "batch_size": 2, "seed": 3, **feed}), Indices())
    return [next(stream)["index"].tolist() for _ in range(count)]


def test_batch_order_is_a_shuffle_that_can_start_anywhere():
    order = batches(10)
    assert Counter(chain(*order[:5])) == Counter(chain(*order[5:])) == Counter(range(10))
    assert order[:5] != order[5:]
    assert batches(4, start=6) == order[6:]
    ranks = [batches(5, rank=rank, world=2) for rank in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == order


def test_config_refuses_nonsense(tmp_path):
    with pytest.raises(ValueError, match="fp8"):
        TrainConfig(name="x", out=tmp_path, build=dict, steps=1, precision="fp8")
    with pytest.raises(ValueError, match="steps"):
        TrainConfig(name="x", out=tmp_path, build=dict, steps=0)
