"""UNO's training: lists, stages, a few steps with exact resume, export in both layouts."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from safetensors.torch import load_file

from realcustom.convert.uno import load_lora
from realcustom.data.uno_rows import UnoRows, read_rows
from realcustom.training.config import Feed
from realcustom.training.dry import NoiseRows, dry_flux
from realcustom.training.logs import read_log
from realcustom.training.loop import train
from realcustom.training.recipes import configure, load_recipe
from realcustom.training.uno import staged_batches

RECIPE = Path(__file__).parents[2] / "recipes" / "flux_uno.py"


def dry(out):
    return configure(load_recipe(RECIPE), {"dry": "true", "out": str(out), "precision": "no"})


def test_two_stages_with_exact_resume_and_both_exports(tmp_path):
    whole = dry(tmp_path / "whole")
    train(whole)
    losses = [entry["loss"] for entry in read_log(whole.out / "log.jsonl")]
    assert len(losses) == whole.steps
    torch.manual_seed(7)
    cut = dry(tmp_path / "cut")
    train(cut.replace(steps=3))
    train(cut, resume=True)
    names = ("dit_lora.safetensors", "pytorch_lora_weights.safetensors")
    first, again = (load_file(config.out / "export" / names[0]) for config in (whole, cut))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if ".up." in name), "the ups have left zero"

    networks = dry_flux()
    load_lora(networks["transformer"], whole.out / "export" / names[0])
    stored = load_file(whole.out / "export" / names[1])
    held = {name: p for name, p in networks["transformer"].named_parameters() if "lora_" in name}
    assert len(held) == len(stored)
    for name, parameter in held.items():
        assert torch.equal(parameter, stored[f"transformer.{name.replace('.uno', '')}"])


def test_checkpoints_hold_the_lora_alone(tmp_path):
    config = dry(tmp_path)
    last = train(config.replace(steps=1))
    assert {file.name for file in last.glob("*.safetensors")} == {"trained.lora.safetensors", "optimizer.safetensors"}
    assert all(".down." in name or ".up." in name for name in load_file(last / "trained.lora.safetensors"))


def test_stages_follow_each_other_from_any_place():
    stages = [(NoiseRows(1, 4, 5), 3), (NoiseRows(2, 4, 5), None)]

    def read(start, count):
        batches = staged_batches(Feed(start=start, batch_size=2, seed=0), stages=stages)
        return [next(batches) for _ in range(count)]

    whole = read(0, 5)
    assert ["reference_1" in batch for batch in whole] == [False] * 3 + [True] * 2
    for start in (2, 3, 4):
        for expected, found in zip(whole[start:], read(start, 5 - start), strict=True):
            assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture
def rows(tmp_path):
    for index in range(3):
        picture(index, 40).resize((60, 40)).save(tmp_path / f"{index}.png")
    records = [
        {"prompt": "a dog", "image_paths": ["0.png", "1.png"], "image_tgt_path": "2.png"},
        {"prompt": "a cat", "image_paths": ["1.png", "2.png"], "image_tgt_path": "0.png"},
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(records))
    return file, records


def test_rows_of_the_releases_format(rows):
    file, records = rows
    tokenizers = {"tokens": lambda prompts: np.array([[len(prompt)] for prompt in prompts])}
    source = UnoRows(file, tokenizers, 64)
    batch = source.batch(np.array([1, 0]))
    assert source.size == 2
    assert batch["images"].shape == batch["reference_0"].shape == batch["reference_1"].shape == (2, 3, 48, 80)
    assert batch["tokens"].tolist() == [[5], [5]]
    assert torch.equal(batch["reference_0"][0], batch["reference_1"][1])
    assert batch["images"].min() >= -1
    assert batch["images"].max() <= 1
    single = [{"prompt": "a dog", "image_path": "0.png", "image_tgt_path": "1.png"}]
    file.write_text(json.dumps(single))
    assert [len(row.references) for row in read_rows(file)] == [1]
    for broken, sentence in (
        (records + single, "a file for each number"),
        ([{"prompt": "a dog", "image_paths": ["0.png"]}], "has no image_tgt_path"),
        ([{"image_paths": ["0.png"], "image_tgt_path": "1.png"}], "has no prompt"),
        ([{"prompt": "a dog", "image_tgt_path": "1.png"}], "has no image_paths"),
        ({}, "is no JSON list"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=sentence):
            read_rows(file)
    with pytest.raises(ValueError, match="no readable JSON"):
        read_rows(file.with_name("none.json"))


def test_text_dropout_and_gradients_of_the_lora_only():
    config = dry(Path("unused"))
    parts = config.build()
    batch = next(parts.data(Feed(start=0, batch_size=4, seed=0)))
    modules = {**parts.frozen, **parts.trained}
    for module in parts.frozen.values():
        module.requires_grad_(False).eval()
    changed = {**batch, "tokens_2": batch["tokens_2"].flip(1)}
    full, none = (
        partial(type(parts.loss)(table=parts.loss.table, empty=parts.loss.empty, text_dropout=share), modules)
        for share in (1.0, 0.0)
    )

    def loss(function, which):
        return function(which, torch.Generator().manual_seed(0))[0]

    assert loss(full, batch) == loss(full, changed), "dropped prompts are not read"
    assert loss(none, batch) != loss(none, changed)
    loss(none, batch).backward()
    ups = [p.grad for name, p in parts.trained["lora"].named_parameters() if ".up." in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in ups)
    parts.close()
    assert not parts.frozen["transformer"].transformer_blocks[0].attn.to_q._forward_hooks
