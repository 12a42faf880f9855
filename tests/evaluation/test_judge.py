"""The judge: truth in its training batches, learning on a small world, answers on pictures."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.data.world import WorldSettings
from realcustom.evaluation.judge import Judge
from realcustom.evaluation.judge_network import StickerJudge
from realcustom.evaluation.judge_report import validate_judge
from realcustom.evaluation.judge_training import (
    IGNORED,
    VOCABULARY,
    JudgeLoss,
    JudgeRecords,
    export_judge,
    own_crops,
    word_map,
)
from realcustom.evaluation.views import coarse, largest_parts, subject_crop, surroundings, view

SETTINGS = WorldSettings(words=("dog", "cat", "robot"), scenes=("beach", "space"), plates=1, accessory=0.6, style=0.3)


def test_a_view_shows_the_identity_where_its_mask_is(world):
    rng = random.Random(0)
    identity = world.identity(rng, "dog")
    picture, mask, _ = view(world, identity, rng)
    assert picture.shape == (128, 128, 3)
    assert 0.05 < mask.mean() < 0.6
    inside, outside = picture[mask].mean(axis=0), picture[~mask].mean(axis=0)
    assert np.abs(inside - outside).max() > 10


def test_a_crop_holds_the_subject_alone():
    picture = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 5:35] = True
    picture[mask] = (255, 0, 0)
    crop = subject_crop(picture, mask)
    assert crop.shape == (64, 64, 4)
    assert tuple(crop[32, 32]) == (255, 0, 0, 255)
    assert not crop[:8].any()
    share = (crop[..., 3] > 127).mean()
    assert share == pytest.approx(300 / 33.6**2, abs=0.05)


def test_a_crop_at_the_border_is_padded_with_nothing():
    mask = np.zeros((32, 32), bool)
    mask[:8, :2] = True
    crop = subject_crop(np.full((32, 32, 3), 90, np.uint8), mask)
    assert crop[..., 3].max() == 255
    assert not crop[:, -10:].any()


def test_word_map_names_the_word_that_fills_a_cell():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = True
    masks[1, 4:, 4:] = True
    assert word_map(("cat", "dog"), ("dog", "cat"), masks).tolist() == [[2, 0], [0, 1]]
    assert coarse(masks[0]).tolist() == [[1, 0], [0, 0]]


def test_largest_parts_drops_specks():
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    mask[9, 9] = True
    assert largest_parts(mask).sum() == 25


def test_batches_are_true_and_repeatable(cutouts):
    source = JudgeRecords(cutouts, SETTINGS)
    batch = source.batch(np.arange(6))
    again = JudgeRecords(cutouts, SETTINGS).batch(np.arange(6))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["pictures"].shape == (6, 3, 128, 128)
    assert batch["crops"].shape == batch["others"].shape == batch["worn"].shape == (6, 4, 64, 64)
    assert batch["words"].shape == (6, 32, 32)
    assert batch["words"].flatten(1).amax(dim=1).gt(0).all()
    named = {"scene", "style", "accessory", "colour"}
    for name in named:
        labels = batch[name]
        assert ((labels >= 0) & (labels < len(VOCABULARY[name])) | (labels == IGNORED)).all()


def test_crops_are_cut_along_the_judges_own_outline(cutouts):
    batch = JudgeRecords(cutouts, SETTINGS).batch(np.arange(8))
    own = batch["own"] > 0
    assert 0 < own.sum() < 8
    words = torch.full((8, 61, 32, 32), -9.0)
    words[:, 0] = -1.0
    rows = torch.arange(8)
    words[rows, batch["own"], 8:24, 4:20] = 0.0
    batch["words"][:] = 0
    batch["words"][:, 8:24, 4:20] = batch["own"][:, None, None]
    kept = own_crops(batch, words, torch.ones(8, dtype=torch.bool))
    assert torch.equal(kept[0], batch["crops"])
    assert torch.equal(kept[1], batch["worn"])
    crops, worn = own_crops(batch, words, torch.zeros(8, dtype=torch.bool))
    elsewhere = {**batch, "words": batch["words"].roll(20, 1)}
    assert torch.equal(own_crops(elsewhere, words, torch.zeros(8, dtype=torch.bool))[0], batch["crops"])
    mask = np.zeros((128, 128), bool)
    mask[32:96, 16:80] = True
    for row in rows.tolist():
        picture = batch["pictures"][row].permute(1, 2, 0).numpy()
        for made, before, cut in ((crops, "crops", subject_crop), (worn, "worn", surroundings)):
            expected = torch.from_numpy(cut(picture, mask).copy()).permute(2, 0, 1) if own[row] else batch[before][row]
            assert (made[row].float() - expected.float()).abs().mean() < 12


def test_it_learns_the_small_world(cutouts):
    torch.manual_seed(0)
    network = StickerJudge(
        widths=(8, 16, 16, 16), name_widths=(8, 16, 16, 16), crop_widths=(8, 16, 16), identity_dim=16
    )
    source, loss = JudgeRecords(cutouts, SETTINGS), JudgeLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    batch = source.batch(np.arange(12))
    first = None
    for _ in range(25):
        value, parts = loss({"judge": network}, batch, None)
        first = first or {name: float(part) for name, part in parts.items()}
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert all(torch.isfinite(part) for part in parts.values())
    for name in ("words", "identity", "scene"):
        assert float(parts[name]) < 0.8 * first[name], name


def test_saved_in_half_precision_and_loaded(judge, world, tmp_path):
    export_judge({"judge": judge.network}, tmp_path)
    loaded = Judge.load(tmp_path)
    assert loaded.network.dtype == torch.float32
    picture = Image.fromarray(world.record(0).image)
    ours, theirs = judge.look([picture])[0], loaded.look([picture])[0]
    assert np.abs(ours.scores["scene"] - theirs.scores["scene"]).max() < 0.02


def test_missing_weights_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no sticker judge"):
        Judge.load(tmp_path)


def test_answers_do_not_depend_on_the_batch(judge, world):
    pictures = [Image.fromarray(world.record(index).image) for index in range(5)]
    small = Judge(judge.network, batch_size=2)
    for one, other in zip(judge.look(pictures), small.look(pictures), strict=True):
        assert np.abs(one.scores["words"] - other.scores["words"]).max() < 1e-5
        assert one.scene == other.scene


def test_a_blank_word_map_means_not_seen(judge):
    sight = judge.look([Image.new("RGB", (128, 128), "white")])[0]
    sight.scores["words"] = np.zeros_like(sight.scores["words"])
    sight.scores["words"][0] = 1
    assert sight.mask("dog") is None
    assert sight.crop("dog") is None
    assert sight.words == {}
    sight.scores["words"][:, 8:20, 8:20] = 0
    sight.scores["words"][5, 8:20, 8:20] = 1  # another word: still where the subject is
    assert sight.mask("dog").mean() == pytest.approx((12 / 32) ** 2, abs=0.03)


def test_validation_reports_every_kind(judge, world):
    report = validate_judge(judge, world, count=12, gallery=6)
    assert {"scene", "style", "accessory", "colour", "companion"} <= set(report)
    assert all(0 <= value.mean <= 1 for value in report.values() if value.count)
