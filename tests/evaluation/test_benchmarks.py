"""Task lists, resumable generation, and a whole run on tiny models."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture

from realcustom.evaluation.benchmark import fingerprint
from realcustom.evaluation.datasets import dreambench, dreambench_pairs, folder, msbench
from realcustom.evaluation.extractors import load_extractors
from realcustom.evaluation.generation import Setup, generate
from realcustom.evaluation.measure import figures, measure
from realcustom.evaluation.models import open_pipeline
from realcustom.evaluation.run import run_benchmark

QUICK = Setup(steps=2)


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A DreamBench of two subjects, and lists of pairs."""
    root = tmp_path_factory.mktemp("dreambench")
    subjects = []
    for name, word, kind in (("rex", "dog", "live"), ("tom", "cat", "live"), ("bot", "robot", "object")):
        files = []
        for number in range(2):
            path = root / "images" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number + len(subjects) * 7, 40).save(path)
            files.append({"file": f"images/{name}/{number:02d}.png"})
        subjects.append({"subject": name, "class_word": word, "kind": kind, "images": files})
    (root / "subjects.json").write_text(json.dumps({"subjects": subjects}))
    prompts = {"live": ["a {} in the snow", "a red {}"], "object": ["a {} on the beach"]}
    (root / "prompts.json").write_text(json.dumps(prompts))
    lists = {
        "reference_image": {"rex": "images/rex/01.png"},
        "pairs": [
            {"subjects": ["rex", "bot"], "prompts": ["a dog and a robot in the snow", "a red dog and a red robot"]},
            {"subjects": ["rex", "rex"], "prompts": ["a dog and a dog in the snow"]},
            {"subjects": ["rex", "absent"], "prompts": ["a dog and a toy"]},
        ],
    }
    (root / "pairs.json").write_text(json.dumps(lists))
    return root


def test_dreambench_is_prompts_times_images(bench):
    made = dreambench(bench, images_per_prompt=4)
    assert len(made.tasks) == (2 + 2 + 1) * 4
    first = made.tasks[0]
    assert (first.prompt, first.group, first.seed) == ("a dog in the snow", "rex", 0)
    assert [path.name for path in first.subjects[0].images] == ["00.png"]
    assert len(first.subjects[0].references) == 2
    assert [task.seed for task in made.tasks[:4]] == [0, 1, 2, 3]
    listed = dreambench(bench, references=bench / "pairs.json")
    assert listed.tasks[0].subjects[0].images[0].name == "01.png"


def test_a_limit_still_shows_every_subject(bench):
    few = dreambench(bench).limited(3)
    assert {task.group for task in few.tasks} == {"rex", "tom", "bot"}
    assert few.protocol["limit"] == 3
    assert len(dreambench(bench).limited(None).tasks) == 20


def test_unknown_subjects_and_folders_are_sentences(bench, tmp_path):
    with pytest.raises(ValueError, match="no subject rocky"):
        dreambench(bench, subjects=["rocky"])
    with pytest.raises(ValueError, match=r"no subjects\.json"):
        dreambench(tmp_path)


def test_pairs_leave_out_what_shares_a_word(bench):
    made = dreambench_pairs(bench, bench / "pairs.json")
    assert [task.prompt for task in made.tasks] == ["a dog and a robot in the snow", "a red dog and a red robot"]
    assert made.protocol["left_out_same_word"] == 1


def test_msbench_from_templates(bench):
    lists = {
        "class_words": {"rex": "dog", "tom": "cat", "absent": "hat"},
        "combinations": {
            "living_living": {"boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]], "prompts": ["a {0} and a {1} in a room"]},
            "living_upwearing": {"boxes": [[0, 0, 1, 1], [0, 0, 1, 0.5]], "prompts": ["a {0} wearing a {1}"]},
        },
    }
    (bench / "msbench.json").write_text(json.dumps(lists))
    made = msbench(bench, bench / "msbench.json", layout=True)
    assert [task.prompt for task in made.tasks] == ["a dog and a cat in a room", "a cat and a dog in a room"]
    assert made.tasks[0].subjects[1].region == (0.5, 0, 1, 1)
    assert msbench(bench, bench / "msbench.json").tasks[0].subjects[0].region is None


def test_a_users_own_list(bench):
    path = bench / "own.jsonl"
    path.write_text('{"prompt": "a dog", "subjects": {"dog": "images/rex/00.png"}, "key": "my dog"}\n\n')
    made = folder(path)
    assert made.tasks[0].key == "my-dog"
    for line, message in (
        ("{", "Line 2"),
        ('{"prompt": "a dog"}', "needs a prompt, and subjects"),
        ('{"prompt": "a dog", "subjects": {"dog": "missing.png"}}', "no picture"),
    ):
        path.write_text('{"prompt": "a dog", "subjects": {"dog": "images/rex/00.png"}}\n' + line)
        with pytest.raises(ValueError, match=message):
            folder(path)


def test_generation_neither_repeats_nor_loses(bench, sticker_model, tmp_path, monkeypatch):
    import realcustom.evaluation.generation as module

    pipe, tasks = open_pipeline(str(sticker_model)), dreambench(bench).limited(4).tasks
    counted = []
    real = module.make
    monkeypatch.setattr(module, "make", lambda *args: counted.append(args[1].key) or real(*args))
    first = generate(pipe, tasks[:2], QUICK, tmp_path / "a")
    whole = generate(pipe, tasks, QUICK, tmp_path / "a")
    assert counted == [task.key for task in tasks]
    assert all(np.array_equal(one.masks[0], other.masks[0]) for one, other in zip(first, whole, strict=False))
    (tmp_path / "a" / f"{tasks[1].key}.json").unlink()
    again = generate(pipe, tasks, QUICK, tmp_path / "a")
    assert counted[-1] == tasks[1].key
    assert len(counted) == 5
    assert np.array_equal(np.asarray(again[1].image), np.asarray(whole[1].image))


def test_images_of_other_settings_are_refused(bench, sticker_model, tmp_path):
    pipe, tasks = open_pipeline(str(sticker_model)), dreambench(bench).limited(1).tasks
    generate(pipe, tasks, QUICK, tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        generate(pipe, tasks, replace(QUICK, guidance_scale=5.0), tmp_path)
    with pytest.raises(ValueError, match="same key"):
        generate(pipe, [*tasks, *tasks], QUICK, tmp_path)
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_run_writes_table_results_and_page(bench, sticker_model, tmp_path):
    pipe = open_pipeline(str(sticker_model))
    benchmark = dreambench(bench).limited(4)
    lines = run_benchmark(pipe, benchmark, QUICK, load_extractors("tests-tiny"), tmp_path, about={"model": "tiny"})
    assert [line[0] for line in lines[1:4]] == ["CLIP-T", "CLIP-I", "DINO-I"]
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["images"]) == 4
    assert set(found["figures"]) >= {"clip_t", "clip_i", "dino_i", "clip_i.segmented", "pickscore"}
    for name, figure in found["figures"].items():
        rows = [row["values"][name] for row in found["images"]]
        assert figure["mean"] == pytest.approx(np.mean(rows))
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/jpeg") >= 8
    assert "http" not in page.replace("https://", "http://") or 'src="http' not in page
    assert "RealCustom++ (SDXL)" in page
    assert "not measured by this program" in page


def test_two_subjects_are_measured_each(bench, sticker_model, tmp_path):
    pipe = open_pipeline(str(sticker_model))
    made = generate(pipe, dreambench_pairs(bench, bench / "pairs.json").tasks, QUICK, tmp_path)
    estimates = figures(made, measure(made, load_extractors("tests-tiny")))
    assert estimates["clip_i.min"].mean <= estimates["clip_i"].mean <= estimates["clip_i.max"].mean


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(bench, sticker_model, tmp_path):
    """kill -9 in the middle: the results are the same bytes as those of a run left alone."""

    def command(out):
        arguments = ["evaluate", "dreambench", "--data", str(bench), "--model", str(sticker_model), "--limit", "5"]
        arguments += ["--extractors", "tests-tiny", "--steps", "2", "--out", str(out)]
        return [sys.executable, "-c", "import sys; from realcustom.cli import main; main(sys.argv[1:])", *arguments]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(command(tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list((tmp_path / "killed").glob("images/*.json"))) < 2 and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, env=environment, capture_output=True)
    whole, killed = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
