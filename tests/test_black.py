"""Every door says why a picture is black: a tiny safety checker that refuses everything."""

import json

import numpy as np
import pytest
from conftest import picture

from realcustom import Engine, Request
from realcustom.pictures.png import read_metadata

ASK = {"prompt": "a dog", "steps": 1, "seed": 2}
WHY = "is black: the model's safety checker refused it. Another seed, or another prompt, may pass."


@pytest.fixture(scope="module")
def engine(black_model):
    return Engine.load(str(black_model), device="cpu")


def call(capsys, *arguments) -> tuple[int, str, str]:
    from realcustom.cli import main

    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code, *capsys.readouterr()


@pytest.mark.parametrize("subjects", [{}, {"dog": picture(0)}], ids=["plain", "with a subject"])
def test_the_result_and_the_settings_of_its_images(engine, subjects):
    result = engine.run(Request(**ASK, subjects=subjects, num_images=2))
    assert result.flagged == (True, True)
    assert [entry["flagged"] for entry in result.metadata] == [True, True]
    assert np.asarray(result.images[1]).max() == 0


def test_a_model_without_a_checker_flags_nothing(tiny_model):
    result = Engine.load(str(tiny_model), device="cpu").run(Request(**ASK))
    assert result.flagged == (False,)
    assert "flagged" not in result.metadata[0]


def test_the_command_line(black_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--model", black_model, "--steps", 1)
    code, printed, told = call(capsys, "generate", "a dog", "--num-images", 2, "--out", "a.png", *options)
    assert (code, printed.split()) == (0, ["a-0.png", "a-1.png"])
    assert told.splitlines() == [f"a-0.png {WHY}", f"a-1.png {WHY}"]
    assert read_metadata("a-0.png")["flagged"] is True
    _, _, told = call(capsys, "repeat", "a-0.png", "--out", "b.png")
    assert f"b.png {WHY}" in told


def test_a_batch_its_record_and_its_resumption(black_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"id": "line", **ASK, "num_images": 2}))
    run = ("batch", "jobs.jsonl", "--out", "out", "--model", black_model)
    code, _, told = call(capsys, *run)
    assert code == 0
    assert f"line (line 1): image 0 {WHY}\nline (line 1): image 1 {WHY}" in told
    record = json.loads((tmp_path / "out" / "line.json").read_text())
    assert [entry["flagged"] for entry in record["settings"]] == [True, True]
    (tmp_path / "out" / "line.json").unlink()
    _, _, told = call(capsys, *run)
    assert "Images: 0 " in told
    assert json.loads((tmp_path / "out" / "line.json").read_text()) == record
