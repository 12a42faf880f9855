"""The mask figure: exact on maps whose truth is known, and running on real pipelines."""

import numpy as np
import pytest
import torch

from realcustom.evaluation.masks import (
    fitted,
    held_out_records,
    mask_report,
    mask_scores,
    overlap,
    plain_and_spread,
    sweep,
    table,
)
from realcustom.evaluation.models import open_pipeline
from realcustom.guidance.mask import MaskSettings


def test_overlap_is_one_for_the_truth_itself():
    truth = np.zeros((64, 64), bool)
    truth[16:48, 16:48] = True
    scores = np.zeros((16, 16))
    scores[4:12, 4:12] = 1
    assert overlap(scores, truth)[0] == 1
    assert overlap(scores, truth)[1] > 0.95
    assert overlap(1 - scores, truth) == (0, pytest.approx(0, abs=0.05))


def test_overlap_of_a_subject_thinner_than_a_cell():
    truth = np.zeros((64, 64), bool)
    truth[:, 30] = True
    grid, _ = overlap(np.ones((16, 16)), truth)
    assert 0 <= grid <= 1


def test_the_report_on_a_pipeline(sticker_model, world):
    pipe = open_pipeline(str(sticker_model))
    records = fitted(pipe, held_out_records(world, 3))
    assert records[0].image.shape == (64, 64, 3)
    assert records[0].masks.shape == (1, 64, 64)
    rows = mask_report(pipe, records, plain_and_spread(MaskSettings()), times=(200, 900), batch_size=2)
    assert [row.settings.spread for row in rows] == [0, 1]
    assert all(0 <= row.grid[time].mean <= 1 for row in rows for time in (200, 900))
    assert len(table(rows, (200, 900))[0]) == 5


def test_scores_do_not_depend_on_the_batch(sticker_model, world):
    pipe = open_pipeline(str(sticker_model))
    records = fitted(pipe, held_out_records(world, 3))
    together = mask_scores(pipe, records, 600, MaskSettings())
    alone = torch.cat([mask_scores(pipe, [record], 600, MaskSettings()) for record in records])
    assert (together - alone).abs().max() < 1e-4
    assert together.shape == (3, 8, 8)


def test_the_sweep_covers_levels_and_spreads(tiny_pipeline):
    variants = sweep(tiny_pipeline.backbone(), MaskSettings())
    assert {settings.spread for settings in variants.values()} >= {0, 1, 2}
    assert len({str(settings) for settings in variants.values()}) == len(variants)


def test_sdxl_is_measured_too(tiny_xl_model, world):
    pipe = open_pipeline(str(tiny_xl_model))
    records = fitted(pipe, held_out_records(world, 1))
    assert mask_scores(pipe, records, 600, MaskSettings()).shape[0] == 1


def test_a_base_model_still_in_training_opens(tmp_path, tiny_pipeline):
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        getattr(tiny_pipeline, name).save_pretrained(tmp_path / name)
    pipe = open_pipeline(str(tmp_path))
    assert pipe.adapter is None
    assert pipe.unet.config.sample_size == 8
