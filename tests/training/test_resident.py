"""Resident data: every row comes, batches depend on seed and number alone, a training can start anywhere."""

import itertools

import numpy as np
import pytest
import torch

from realcustom.training import resident as training_resident
from realcustom.training.config import Feed
from realcustom.training.resident import draw_batches, draw_growing, mirrored_half, resident


def batches(start, count, seed=3, rank=0):
    rows = resident({"x": np.arange(10), "y": np.arange(10)[:, None] * 2.0}, "cpu")
    feed = Feed(start=start, batch_size=4, seed=seed, rank=rank)
    return list(itertools.islice(draw_batches(feed, rows), count))


def test_batches_depend_on_seed_number_and_process_alone():
    whole, rest = batches(0, 6), batches(4, 2)
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0]["x"], whole[1]["x"])
    assert not torch.equal(whole[0]["x"], batches(0, 1, seed=4)[0]["x"])
    assert not torch.equal(whole[0]["x"], batches(0, 1, rank=1)[0]["x"])


def test_rows_stay_together_and_all_come():
    drawn = batches(0, 50)
    assert all(torch.equal(batch["y"][:, 0], 2.0 * batch["x"]) for batch in drawn)
    assert set(torch.cat([batch["x"] for batch in drawn]).tolist()) == set(range(10))


def test_unequal_or_empty_rows_are_refused():
    with pytest.raises(ValueError, match="as many rows"):
        resident({"x": np.zeros(3), "y": np.zeros(4)})
    with pytest.raises(ValueError, match="at least one"):
        resident({"x": np.zeros(0)})


def test_every_second_picture_is_mirrored():
    images = torch.arange(2 * 1 * 4 * 3).view(2, 1, 4, 3)
    made = mirrored_half({"images": images})["pixels"]
    assert made.shape == (2, 3, 1, 4)
    assert torch.equal(made[0], images[0].permute(2, 0, 1).flip(-1))
    assert torch.equal(made[1], images[1].permute(2, 0, 1))


def test_a_cache_that_grows_is_read_as_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(training_resident, "LOOK_EVERY", 1)

    def chunk(number):
        (tmp_path / f"chunk-{number:05d}").mkdir()
        np.save(tmp_path / f"chunk-{number:05d}" / "images.npy", np.full((4, 1), number, np.uint8))

    chunk(0)
    drawn = draw_growing(Feed(start=0, batch_size=3, seed=0), tmp_path, "images")
    assert {int(value) for _ in range(5) for value in next(drawn)["images"]} == {0}
    chunk(1)
    assert {int(value) for _ in range(20) for value in next(drawn)["images"]} == {0, 1}
