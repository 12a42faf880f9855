"""Several requests in one batch: each gets what it would get alone."""

import numpy as np
import pytest
from conftest import picture

from realcustom import Engine, Request, Subject
from realcustom.engine.grouping import batches
from realcustom.types import Cancelled


@pytest.fixture(scope="module", params=["tiny_model", "tiny_xl_model"])
def engine(request) -> Engine:
    return Engine.load(str(request.getfixturevalue(request.param)), device="cpu", batch_size=4)


REQUESTS = (
    Request(prompt="a dog on the beach", subjects={"dog": picture(0)}, steps=3, seed=1),
    Request(prompt="a red cat", subjects={"cat": [picture(1), picture(2)]}, steps=3, seed=2, num_images=2),
    Request(
        prompt="a robot in the snow",
        subjects={"robot": Subject(picture(3), strength=0.5, region=(0, 0, 0.5, 1))},
        negative_prompt="a toy",
        steps=3,
    ),
    Request(prompt="a toy", steps=3),
    Request(prompt="a dog", subjects={"dog": picture(0)}, steps=2, seed=9),
)


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_requests_made_together_equal_those_made_alone(engine):
    together = engine.run_many(REQUESTS)
    one_by_one = Engine(engine.pipeline, engine.source, batch_size=1)
    for request, result in zip(REQUESTS, together, strict=True):
        alone = one_by_one.run(request)
        assert len(result.images) == request.num_images
        for first, second in zip(alone.images, result.images, strict=True):
            assert abs(pixels(first) - pixels(second)).max() <= 1, "batches differ by rounding only"
        assert set(result.masks) == set(alone.masks)
        for word, masks in alone.masks.items():
            # One position may change sides at the scope's threshold; all others agree to rounding.
            assert np.mean(np.abs(masks - result.masks[word]) > 1e-4) < 0.05
        assert result.metadata == alone.metadata


def test_without_batches_requests_are_identical(engine):
    one_by_one = Engine(engine.pipeline, engine.source, batch_size=1)
    for request, result in zip(REQUESTS[:2], one_by_one.run_many(REQUESTS[:2]), strict=True):
        for first, second in zip(one_by_one.run(request).images, result.images, strict=True):
            assert np.array_equal(pixels(first), pixels(second))


def test_progress_and_cancelling_are_each_requests_own(engine):
    seen = []

    def told(index, now):
        seen.append((index, now.step, now.steps, now.latents.shape[0], set(now.masks)))

    results = engine.run_many(REQUESTS[:2], progress=told, cancelled=lambda index: index == 1 and len(seen) >= 4)
    assert [entry for entry in seen if entry[0] == 0] == [(0, step, 3, 1, {"dog"}) for step in (1, 2, 3)]
    assert [entry for entry in seen if entry[0] == 1] == [(1, step, 6, 2, {"cat"}) for step in (2, 4)]
    assert len(results[0].images) == 1
    assert isinstance(results[1], Cancelled)


def test_batches_keep_the_order_and_never_mix_what_differs():
    cut = list(batches(REQUESTS, 2, lambda request: (request.steps, len(request.subjects))))
    assert cut == [[(0, 1), (1, 2)], [(1, 3), (2, 0)], [(3, 0)], [(4, 9)]]


def test_the_weights_of_a_subjects_images(engine):
    def run(subject):
        return pixels(engine.run(Request(prompt="a dog", subjects={"dog": subject}, steps=2)).images[0])

    both = (picture(0), picture(1))
    equal, first = run(Subject(both)), run(Subject(picture(0)))
    assert np.array_equal(run(Subject(both, weights=(1, 1))), equal)
    assert abs(run(Subject(both, weights=(1, 0))) - first).max() <= 1, "an image of weight 0 is as good as absent"
    assert abs(run(Subject(both, weights=(1, 0.3))) - equal).max() > 0


@pytest.mark.parametrize("weights", [(1,), (0, 0), (1, 2), (1, float("nan")), "ab", (True, 1)])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match="weight"):
        Subject((picture(0), picture(1)), weights=weights)
