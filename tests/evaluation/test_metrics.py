"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from realcustom.evaluation.metrics import (
    bootstrap,
    clip_t,
    image_similarity,
    kid,
    kid_estimate,
    mask_iou,
    mean_lab,
    nearest,
    paired_difference,
    subject_similarities,
    top_one,
    top_share,
)


def test_similarities_are_cosines():
    images = np.array([[2.0, 0], [1, 1]])
    assert clip_t(images, np.array([[1.0, 0], [0, 3]])) == pytest.approx([1, 0.5**0.5])
    references = np.array([[1.0, 0], [0, 1]])
    assert image_similarity(images, references) == pytest.approx([0.5, 0.5**0.5])


def test_several_subjects_mean_max_and_min():
    images = np.array([[1.0, 0]])
    both = subject_similarities(images, [np.array([[1.0, 0]]), np.array([[0.0, 1], [1, 0]])])
    assert both["mean"] == pytest.approx([0.75])
    assert both["max"] == pytest.approx([1.0])
    assert both["min"] == pytest.approx([0.5])


def test_bootstrap_covers_the_mean_and_respects_groups():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate = bootstrap(rng.normal(0.3, 1, 60), rounds=400)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99
    values, groups = np.repeat([0.0, 1, 0, 1], 25), np.repeat(range(4), 25)
    alone, grouped = bootstrap(values), bootstrap(values, groups)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_bootstrap_of_nothing_and_of_one_value():
    assert bootstrap([]).to_dict() == {"mean": None, "low": None, "high": None, "count": 0}
    assert str(bootstrap([0.25])) == "0.250"
    assert bootstrap([1.0, float("nan"), 1.0]).count == 2


def test_paired_difference_sees_what_two_intervals_hide():
    rng = np.random.default_rng(1)
    first = rng.normal(0, 1, 80)
    second = first + 0.1 + rng.normal(0, 0.05, 80)
    assert paired_difference(second, first).low > 0
    assert bootstrap(second).low < bootstrap(first).high


def test_masks():
    first = np.zeros((4, 4), bool)
    first[:2] = True
    assert mask_iou(first, first) == 1
    assert mask_iou(first, ~first) == 0
    second = np.zeros((4, 4), bool)
    second[1:3] = True
    assert mask_iou(first, second) == pytest.approx(1 / 3)
    assert top_share(np.arange(16.0).reshape(4, 4), 0.25).sum() == 4
    assert top_share(np.arange(16.0).reshape(4, 4), 0.25)[3].all()


def test_kid_is_zero_for_one_distribution_and_grows_with_distance():
    rng = np.random.default_rng(2)
    first, second, far = rng.normal(size=(200, 8)), rng.normal(size=(200, 8)), rng.normal(1.0, 1, size=(200, 8))
    assert abs(kid(first, second)) < 0.1
    assert kid(first, far) > 1
    estimate = kid_estimate(first, far)
    assert estimate.low < estimate.mean < estimate.high
    with pytest.raises(ValueError, match="at least two"):
        kid(first[:1], second)


def test_kid_against_the_definition():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * across)


def test_nearest_and_retrieval():
    assert nearest(np.array([1.0, 2, 3]))
    assert not nearest(np.array([1.0, 1, 3]))
    assert not nearest(np.array([np.nan, 2, 3]))
    assert top_one(np.eye(3), np.eye(3)).all()
    assert top_one(np.eye(3), np.eye(3)[[1, 0, 2]]).tolist() == [False, False, True]


def test_mean_lab_of_white_and_of_nothing():
    picture = np.full((4, 4, 3), 255, np.uint8)
    assert mean_lab(picture, np.ones((4, 4), bool)) == pytest.approx([100, 0, 0], abs=0.02)
    assert np.isnan(mean_lab(picture, np.zeros((4, 4), bool))).all()
