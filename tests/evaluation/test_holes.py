"""Identities in holes: cases with a true place, and a whole run."""

import json

import numpy as np
import pytest

from realcustom.evaluation.generation import Setup
from realcustom.evaluation.holes import FIGURES, MARGIN, free, hole_around, hole_samples, run_holes
from realcustom.evaluation.models import open_pipeline
from realcustom.pictures.holes import hole_mask


def test_a_hole_holds_the_whole_subject_and_some_room():
    mask = np.zeros((100, 50), bool)
    mask[30:60, 20:40] = True
    assert hole_around(mask) == pytest.approx((0.4 - MARGIN, 0.3 - MARGIN, 0.8 + MARGIN, 0.6 + MARGIN))
    assert hole_around(np.ones((4, 4), bool)) == (0.0, 0.0, 1.0, 1.0)


def test_cases_are_repeatable_and_their_pictures_show_the_scene_alone(world):
    made, again = hole_samples(world, 6), hole_samples(world, 6)
    for sample, other in zip(made, again, strict=True):
        assert sample.task.describe() == other.task.describe()
        assert sample.kind == "scene"
        inside = hole_mask(sample.task.hole, (128, 128))
        assert inside[sample.record.masks[0]].all()
        assert not np.array_equal(np.asarray(sample.task.picture), sample.record.image)
    assert len({sample.task.group for sample in made}) > 1
    for sample in free(made):
        assert "picture" not in sample.task.describe()


def test_a_whole_run(world, judge, sticker_model, tmp_path):
    pipe = open_pipeline(str(sticker_model), None, "cpu")
    made = hole_samples(world, 3)
    lines = run_holes(pipe, judge, made, Setup(steps=2), tmp_path, about={"model": "tiny"})
    assert lines[-1][:2] == ["pixels outside the hole as they were", "1.0000"]
    assert len(lines) == len(FIGURES) + 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["unchanged_outside"] == 1.0
    assert set(results["figures"]) == {"hole", "free"}
    before = (tmp_path / "results.json").read_bytes()
    told = []
    run_holes(pipe, judge, made, Setup(steps=2), tmp_path, about={"model": "tiny"}, done=told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "results.json").read_bytes() == before
