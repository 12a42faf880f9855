"""Paradox and ablations on tiny models: every point made, what is missing skipped with a sentence, Eq. 13 included."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.evaluation.ablations import DEFAULT, ablations, mixing
from realcustom.evaluation.arms import Pipelines, compare, comparison_results, comparison_table, difference_table, shown
from realcustom.evaluation.generation import Setup
from realcustom.evaluation.metrics import Estimate
from realcustom.evaluation.models import open_pipeline
from realcustom.evaluation.paradox import FAMILIES, paradox_variants, plot, run_paradox, verdict
from realcustom.evaluation.sticker_figures import difference
from realcustom.evaluation.stickers import samples
from realcustom.evaluation.textual_inversion import (
    TOKEN,
    InversionSettings,
    learn,
    placeholder,
    with_placeholder,
    word_embedding,
)
from realcustom.guidance.mask import BinaryMask, MaskSettings

SETUP = Setup(steps=2)


@pytest.fixture(scope="module")
def made(world):
    return samples(world, 2)


@pytest.fixture(scope="module")
def pipelines(sticker_model):
    return Pipelines(str(sticker_model), None, None)


def test_the_points_of_the_paradox():
    points = paradox_variants(SETUP, MaskSettings())
    assert {point.family for point in points} == set(FAMILIES) - {"Textual Inversion"}
    assert len({point.name for point in points}) == len(points)
    unmasked = next(point for point in points if point.family == "unmasked injection")
    assert unmasked.setup.mask.scope == 1
    assert unmasked.setup.mask.rule == BinaryMask()
    assert next(p for p in points if "Eq. 13" in p.name).setup.image_guidance_scale == 12.5


def test_the_ablations_cover_the_papers():
    points = ablations(Setup(), MaskSettings())
    assert points[0].name == DEFAULT
    assert len({point.name for point in points}) == len(points)
    families = {point.family for point in points}
    papers = {"scope", "spread", "early stop", "interval", "steps", "scoring", "gamma_num", "training"}
    assert papers | {"preset"} <= families


def test_compared_and_skipped(pipelines, judge, made, tmp_path):
    points = [
        point
        for point in ablations(SETUP, MaskSettings())
        if point.family in ("default", "interval", "training", "preset")
    ]
    found = compare(points, pipelines, judge, made, tmp_path)
    presets = ["preset fast", "preset turbo"]
    assert [arm.name for arm in found.arms] == [DEFAULT, "mask every 2 steps", "mask every 4 steps", *presets]
    assert len(found.skipped) == 4
    assert all("skipped" in line for line in found.skipped)
    assert len(comparison_table(found)) == 6
    differences = difference_table(found, made, DEFAULT)
    assert len(differences) == 5
    # With two steps the mask of the first step serves both in either case.
    assert differences[1][1:] == differences[2][1:]
    assert {line[1] for line in differences[1:]} == {DEFAULT}
    renamed = replace(found, variants=tuple(replace(point, against="mask every 2 steps") for point in found.variants))
    assert [line[0] for line in difference_table(renamed, made, DEFAULT)[1:]] == [
        DEFAULT, "mask every 4 steps", *presets
    ]  # fmt: skip
    json.dumps(comparison_results(found, made, {}))


def test_only_differences_beyond_the_interval_are_shown():
    assert shown(Estimate(0.1, 0.05, 0.2, 9)).startswith("+0.100")
    assert shown(Estimate(0.1, -0.05, 0.2, 9)) == "within noise"
    assert shown(Estimate(0.1, float("nan"), float("nan"), 1)) == "within noise"


def test_textual_inversion_learns_and_gives_back(sticker_model, world):
    pipe = open_pipeline(str(sticker_model))
    before = len(pipe.tokenizer)
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    picture = Image.fromarray(world.record(0).references[0])
    settings = InversionSettings(steps=3, batch_size=2)
    vector = learn(pipe, picture, "dog", settings)
    assert vector.shape == word_embedding(pipe, "dog").shape
    assert (vector - word_embedding(pipe, "dog")).abs().max() > 1e-3
    assert torch.equal(vector, learn(pipe, picture, "dog", settings))
    held = learn(pipe, picture, "dog", InversionSettings(steps=3, batch_size=2, regularisation=1e6))
    assert (held - word_embedding(pipe, "dog")).norm() < (vector - word_embedding(pipe, "dog")).norm()
    assert len(pipe.tokenizer) == before
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, table)


def test_the_placeholder_replaces_whole_words(sticker_model):
    assert with_placeholder("a dog on a dogged beach", "dog") == f"a {TOKEN} on a dogged beach"
    pipe = open_pipeline(str(sticker_model))
    vector = word_embedding(pipe, "dog")
    with placeholder(pipe, vector):
        ours = pipe.encode_prompt(f"a {TOKEN} in space", "cpu", 1, False)[0]
    theirs = pipe.encode_prompt("a dog in space", "cpu", 1, False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_whole_paradox(pipelines, judge, made, tmp_path, monkeypatch):
    import realcustom.evaluation.paradox as module

    monkeypatch.setattr(module, "STRENGTHS", (0.5, 1.0))
    monkeypatch.setattr(module, "SCOPES", (0.25,))
    monkeypatch.setattr(module, "REGULARISATIONS", (0.0,))
    inversion = InversionSettings(steps=1, batch_size=1)
    found = run_paradox(pipelines, judge, made, SETUP, tmp_path, inversion=inversion)
    assert {variant.family for variant in found.variants} == set(FAMILIES) - {"RealCustom"}
    assert len(found.skipped) == 2
    groups = [sample.task.group for sample in made]
    assert verdict(found, lambda one, other, name: difference(one.values, other.values, name, groups))
    picture = np.asarray(plot(found))
    assert picture.shape == (640, 960, 3)
    assert (picture == FAMILIES["RealCustom++"]).all(axis=2).sum() > 20


def test_mixing_is_given_back():
    class Pipe:
        class adapter:
            class scoring:
                weights = "before"

    restore = mixing(1.0, 0.0)(Pipe)
    text, visual = Pipe.adapter.scoring.weights(torch.tensor([0.3]))
    assert (float(text), float(visual)) == (1, 0)
    restore()
    assert Pipe.adapter.scoring.weights == "before"
