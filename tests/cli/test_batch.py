"""`realcustom batch`: the same images as `generate`, resumable after kill -9, nothing started on bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom.pictures.png import read_metadata

COMMAND = (sys.executable, "-c", "from realcustom.cli import main; main()")
DOG = {"prompt": "a dog on the beach", "subjects": {"dog": "rex.png"}, "steps": 2}


@pytest.fixture
def write(folder):
    def write(*lines: dict | str) -> Path:
        text = "\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines)
        (folder / "jobs.jsonl").write_text(text)
        return folder / "jobs.jsonl"

    return write


def job(name: str, **fields) -> dict:
    return {"id": name, **DOG, **fields}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def stamps(out: Path) -> dict[str, int]:
    """Every file of the finished jobs with its time of writing."""
    names = [name for path in out.glob("*.json") for name in (path.name, *json.loads(path.read_text())["images"])]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def test_images_are_those_of_generate(realcustom, folder, write, tiny_model):
    write(
        job("rex", seed=3),
        job("two", seed=5, num_images=2, subjects={"dog": {"images": ["rex.png", "tom.png"], "strength": 0.7}}),
        job("plain", subjects={}),
        job("next", subjects={"dog": "@two#1"}, width=96),
    )
    done = realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model, "--save-masks")
    assert (done.code, done.lines) == (0, []), done.error
    assert "Images: 5 (" in done.error
    names = ["rex", "two-0", "two-1", "plain", "next"]
    masks = [f"{name}.mask.dog" for name in names if name != "plain"]
    records = ["rex", "two", "plain", "next"]
    assert sorted(os.listdir("out")) == sorted(
        [*(f"{name}.png" for name in names + masks), *(f"{name}.json" for name in records)]
    )
    options = ("--model", tiny_model, "--steps", 2)
    realcustom("generate", DOG["prompt"], "--subject", "dog=rex.png", "--seed", 3, *options)
    assert np.array_equal(pixels("out.png"), pixels("out/rex.png"))
    assert read_metadata("out.png") == read_metadata("out/rex.png")
    realcustom("generate", DOG["prompt"], "--subject", "dog=out/two-1.png", "--size", "96x64", "--overwrite", *options)
    assert np.array_equal(pixels("out.png"), pixels("out/next.png"))
    record = json.loads(Path("out/two.json").read_text())
    assert record["settings"] == [read_metadata(f"out/{name}") for name in record["images"]]
    assert record["masks"] == {"dog": ["two-0.mask.dog.png", "two-1.mask.dog.png"]}
    before = stamps(Path("out"))
    assert (
        "All 4 jobs are done already." in realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model).error
    )
    assert stamps(Path("out")) == before


def test_bad_lines_stop_everything_or_are_skipped(realcustom, folder, write, tiny_model):
    write(
        job("good"),
        job("odd", width=60),  # only the model knows its grid
        job("missing", subjects={"dog": "none.png"}),
        job("hangs", subjects={"dog": "@missing"}),
        job("hangs-too", subjects={"dog": "@odd"}),
        "{",
    )
    command = ("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
    done = realcustom(*command)
    assert done.code == 2
    assert "jobs.jsonl, line 3: There is no file" in done.error
    assert 'jobs.jsonl, line 4: It needs "missing" (line 3), which cannot be made.' in done.error
    assert "jobs.jsonl, line 6: The line is not JSON" in done.error
    assert "3 lines cannot be run, so nothing was started" in done.error
    assert not (folder / "out").exists()
    done = realcustom(*command, "--skip-bad")
    assert done.code == 0
    assert "line 2: The width must be a multiple of 8 for this model" in done.error
    assert 'line 5: It needs "odd" (line 2)' in done.error
    assert sorted(os.listdir("out")) == ["good.json", "good.png"]


def test_what_only_the_model_knows_is_said_before_any_work(realcustom, folder, write, tiny_model):
    write(job("good"), job("long", prompt="a dog " * 60), job("large", height=4096))
    done = realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
    assert done.code == 2
    assert "line 2: " in done.error
    assert "shorten it by" in done.error
    assert "line 3: " in done.error
    assert os.listdir("out") == []


def test_a_changed_line_is_made_again_only_if_asked(realcustom, folder, write, tiny_model):
    command = ("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
    write(job("a"), job("b"))
    realcustom(*command)
    before = stamps(Path("out"))
    write(job("a"), job("b", seed=1), job("c"))
    done = realcustom(*command)
    assert done.code == 2
    assert '"b" (line 2) was made from another line' in done.error
    assert stamps(Path("out")) == before
    assert realcustom(*command, "--redo").code == 0
    after = stamps(Path("out"))
    assert {name for name in before if before[name] == after[name]} == {"a.json", "a.png"}
    assert read_metadata("out/b.png")["request"]["seed"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--workers", "2"), "--workers is for --engine ray"),
        (("--engine", "cloud"), "cloud"),
        (("--out", "rex.png"), "is a file"),
        (("--out", "nonsense://x"), "cannot be reached"),
        (("--model", "none"), 'There is no model "none"'),
    ],
)
def test_wrong_options(realcustom, folder, write, options, sentence):
    write(job("a"))
    done = realcustom("batch", "jobs.jsonl", "--out", "out", *options)
    assert done.code == 2
    assert sentence in done.error


def test_an_interrupt_says_what_is_made(realcustom, folder, write, tiny_model, monkeypatch):
    from realcustom.engine.engine import Engine

    run, made = Engine.run, []

    def interrupt(self, request, **options):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(request)
        return run(self, request, **options)

    monkeypatch.setattr(Engine, "run", interrupt)
    write(job("a"), job("b", num_images=8))
    done = realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
    assert done.code == 130
    assert "Interrupted: 1 of 2 jobs are made, and every image made so far is written" in done.error
    assert sorted(os.listdir("out")) == ["a.json", "a.png", "b-0.png", "b-1.png"]


def test_pictures_of_others_stay_unless_redone(realcustom, folder, write, tiny_model):
    write(job("rex2"))
    (folder / "out").mkdir()
    (folder / "out/rex2.png").write_bytes((folder / "rex.png").read_bytes())
    command = ("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model, "--no-metadata")
    done = realcustom(*command)
    assert (done.code, "not known to be its own" in done.error) == (2, True)
    assert (folder / "out/rex2.png").read_bytes() == (folder / "rex.png").read_bytes()
    assert realcustom(*command, "--redo").code == 0
    assert set(Image.open("out/rex2.png").info) == {"srgb", "gamma"}


def test_kill_loses_nothing_finished_and_makes_nothing_twice(realcustom, folder, write, tiny_model):
    lines = [job(f"j{number}", seed=number, steps=10) for number in range(8)]
    lines += [job(f"k{number}", subjects={"dog": f"@j{number}"}, steps=10) for number in range(2)]
    write(*lines)
    arguments = ("batch", "jobs.jsonl", "--model", str(tiny_model), "--out")
    process = subprocess.Popen([*COMMAND, *arguments, "out"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while len(list(Path("out").glob("*.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stamps(Path("out"))
    assert 3 <= len(list(Path("out").glob("*.json"))) < len(lines), "killed half-way"
    assert realcustom(*arguments, "out").code == 0
    after = stamps(Path("out"))
    assert {name: after[name] for name in before} == before
    assert realcustom(*arguments, "whole").code == 0
    for line in lines:
        assert np.array_equal(pixels(f"out/{line['id']}.png"), pixels(f"whole/{line['id']}.png"))


def test_two_batches_do_not_work_in_one_folder(realcustom, folder, write, tiny_model):
    from realcustom.batch.places import alone_in

    write(job("a"))
    (folder / "out").mkdir()
    with alone_in("out"):
        refused = realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
        assert refused.code == 2
        assert "Another batch works in" in refused.error
        assert realcustom("batch", "jobs.jsonl", "--out", "other", "--model", tiny_model).code == 0
    assert os.listdir("out") == []
    assert realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model).code == 0
    assert sorted(os.listdir("out")) == ["a.json", "a.png"]
