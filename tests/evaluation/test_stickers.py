"""The sticker benchmark: true samples, figures that know right from wrong, and a whole run."""

import json

import numpy as np
import pytest
from PIL import Image

from realcustom.evaluation.generation import Setup
from realcustom.evaluation.models import open_pipeline
from realcustom.evaluation.sticker_figures import References, agreement, measure_stickers, summary
from realcustom.evaluation.sticker_run import run_stickers
from realcustom.evaluation.stickers import ORDER, OTHERS, samples


@pytest.fixture(scope="module")
def made(world):
    return samples(world, 16)


class Oracle:
    """A judge that is told the truth of every picture it may be shown."""

    def __init__(self, made):
        self.truth = {}
        for sample in made:
            self.truth[sample.record.image.tobytes()] = sample

    class network:
        class config:
            identity_dim = 3

    def vocabulary(self, kind):
        return ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"]

    def look(self, pictures):
        return [OracleSight(self, np.asarray(picture)) for picture in pictures]

    def identify(self, crops):
        colours = np.zeros((len(crops), 11))
        for row, (sample, _) in enumerate(crops):
            named = sample and sample.task.facts["colours"][0]
            colours[row, self.vocabulary("colours").index(named) if named else 0] = 1
        return np.stack([mean / np.linalg.norm(mean) for _, mean in crops]), colours

    def features(self, pictures):
        return np.stack([np.asarray(picture, float).mean(axis=(0, 1)) / 255 for picture in pictures])


class OracleSight:
    def __init__(self, judge, picture):
        self.judge, self.picture = judge, picture
        self.sample = judge.truth.get(picture.tobytes())
        facts = self.sample.task.facts if self.sample else {"scene": None, "style": None, "accessory": None}
        self.scene, self.style, self._worn = (facts[name] for name in ("scene", "style", "accessory"))
        words = {} if self.sample is None else dict.fromkeys(self.sample.record.words, 0.3)
        if self.sample is not None and self.sample.task.facts["companion"]:
            words[self.sample.task.facts["companion"]] = 0.1
        self.words = words

    def accessory(self, word):
        return self._worn

    def mask(self, word, others=()):
        if self.sample is None:
            # A reference: everything that is not its corner's colour.
            difference = np.abs(self.picture.astype(int) - self.picture[0, 0].astype(int)).sum(axis=2)
            return difference > 60
        return self.sample.record.masks[list(self.sample.record.words).index(word)]

    def crop(self, word, others=()):
        return self.sample, self.picture[self.mask(word)].mean(axis=0)


def test_samples_are_true_and_repeatable(world, made):
    again = samples(world, 16)
    assert [sample.task.describe() for sample in made] == [sample.task.describe() for sample in again]
    assert [sample.kind for sample in made[: len(ORDER)]] == list(ORDER)
    assert len({sample.task.key for sample in made}) == 16
    for sample in made:
        facts, words = sample.task.facts, [subject.word for subject in sample.task.subjects]
        assert all(word in sample.task.prompt for word in words)
        assert sample.others.shape[0] == OTHERS
        assert (facts["accessory"] is not None) == (sample.kind == "accessory")
        assert (facts["style"] is not None) == (sample.kind == "style")
        assert (facts["companion"] is not None) == (sample.kind == "companion")
        assert (len(words) == 2) == (sample.kind == "pair")
        for identity in facts["identities"]:
            _, colour, pattern, _ = identity.rsplit(":", 3)
            assert not (colour == "natural" and pattern == "plain")  # the unchanged drawing is always trained on


def test_a_colour_edit_asks_for_another_colour(made):
    edits = [sample for sample in made if sample.kind == "colour"]
    assert edits
    for sample in edits:
        asked = sample.task.facts["colours"][0]
        assert asked in sample.task.prompt
        assert f":{asked}:" not in sample.task.facts["identities"][0]


def test_composites_score_full_marks_for_text(made):
    judge = Oracle(made)
    rows = measure_stickers(judge, made, [Image.fromarray(s.record.image) for s in made], References(judge, made))
    estimates = summary(rows, [sample.task.group for sample in made])
    for name in ("scene", "accessory", "style", "companion", "both_subjects", "word", "text", "colour"):
        assert estimates[name].mean == 1, name
    assert estimates["identity_colour"].mean > 0.3  # chance is 0.1
    assert sum(np.isfinite(row["accessory"]) for row in rows) == sum(s.kind == "accessory" for s in made)


def test_the_reference_itself_is_a_copy(made):
    judge = Oracle(made)
    single = [sample for sample in made if sample.kind == "scene"]
    images = [sample.task.subjects[0].images[0] for sample in single]
    rows = measure_stickers(judge, single, images, References(judge, single))
    assert all(row["copied"] == 1 for row in rows)
    assert all(row["identity_colour"] == row["identity_judge"] == 1 for row in rows)
    assert all(row["scene"] == 0 for row in rows)


def test_mask_agreement():
    subject = np.zeros((32, 32), bool)
    subject[:16, :16] = True
    mask = np.zeros((8, 8), np.float32)
    mask[:4, :4] = 0.7
    assert agreement([mask], [subject]) > 0.9
    assert np.isnan(agreement([mask], [None]))


def test_a_whole_run(sticker_model, judge, world, tmp_path):
    pipe = open_pipeline(str(sticker_model))
    made = samples(world, 8)
    tables = run_stickers(pipe, judge, made, Setup(steps=2), tmp_path, about={"model": "tiny"})
    assert tables["stickers"][0] == ["figure", "model", "text only", "real composites", "n"]
    assert any("KID" in line[0] for line in tables["stickers"])
    first = (tmp_path / "results.json").read_bytes()
    found = json.loads(first)
    assert set(found["figures"]) == {"model", "text only", "real composites"}
    assert len(found["images"]) == 8
    assert "data:image/jpeg" in (tmp_path / "index.html").read_text()
    (tmp_path / "images" / "00003-colour.json").unlink()
    run_stickers(pipe, judge, made, Setup(steps=2), tmp_path, about={"model": "tiny"})
    assert (tmp_path / "results.json").read_bytes() == first
