"""Batch on Ray: the local engine's images bit for bit, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import picture
from PIL import Image

from realcustom.batch import outputs, places
from realcustom.batch.jobs import read_jobs
from realcustom.batch.run import run_local
from realcustom.cli import main
from realcustom.distributed.cluster import Share, share
from realcustom.distributed.ray_batch import RayBatch
from realcustom.engine.engine import Engine

LOADING = {"adapter": None, "device": "cpu", "dtype": None}
DOG = {"prompt": "a dog on the beach", "subjects": {"dog": "rex.png"}, "steps": 2}


@pytest.fixture
def tasks(tmp_path, tiny_model):
    """Tasks of these lines for a folder or URL, as the command makes them."""
    picture(0).save(tmp_path / "rex.png")

    def tasks(lines: list[dict], out: str, save_masks: bool = False) -> tuple[outputs.Task, ...]:
        source = tmp_path / "jobs.jsonl"
        source.write_text("\n".join(json.dumps(line) for line in lines))
        jobs, problems = read_jobs(str(source))
        jobs, more, hashes = outputs.check_files(jobs, str(source), out, save_masks)
        assert problems + more == []
        places.make_folder(out)
        return outputs.plan(jobs, hashes, {"model": str(tiny_model), "adapter": None}, out, save_masks).tasks

    return tasks


@pytest.fixture
def loading(tiny_model) -> dict:
    return {"model": str(tiny_model), **LOADING}


def job(name: str, **fields) -> dict:
    return {"id": name, **DOG, **fields}


def same_pictures(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.glob("*.png"))
    assert names == sorted(path.name for path in second.glob("*.png"))
    return all(np.array_equal(np.asarray(Image.open(first / n)), np.asarray(Image.open(second / n))) for n in names)


def local(tasks, lines: list[dict], out: Path, loading: dict, save_masks: bool = False) -> None:
    outcomes = list(run_local(Engine.load(**loading), tasks(lines, str(out), save_masks)))
    assert [outcome.error for outcome in outcomes] == [None] * len(lines)


def test_the_same_images_as_the_local_engine_in_two_rounds(cluster, tasks, tmp_path, loading):
    lines = [job(f"j{seed}", seed=seed) for seed in range(3)]
    lines += [job("two", num_images=2), job("next", subjects={"dog": ["@two#1", "@j0"]}), job("plain", subjects={})]
    local(tasks, lines, tmp_path / "local", loading, save_masks=True)
    # local:// is the file system seen through fsspec, as a store would be.
    out = f"local://{tmp_path}/ray"
    with RayBatch(loading, workers=2) as ray_batch:
        work = tasks(lines, out, True)
        assert ray_batch.refused(work) == {}
        outcomes = list(ray_batch.run(work))
        assert sorted((outcome.id, outcome.images) for outcome in outcomes) == sorted(
            (line["id"], line.get("num_images", 1)) for line in lines
        )
    assert same_pictures(tmp_path / "local", tmp_path / "ray")
    records = [json.loads((tmp_path / kind / "two.json").read_text()) for kind in ("local", "ray")]
    assert records[0] == records[1]
    assert tasks(lines, out, True) == ()


def test_a_killed_worker_loses_nothing_and_makes_nothing_twice(cluster, tasks, tmp_path, loading):
    lines = [job(f"j{seed}", seed=seed, steps=8) for seed in range(12)]
    local(tasks, lines, tmp_path / "local", loading)
    out = tmp_path / "ray"
    before, killed, outcomes = {}, [], []
    with RayBatch(loading, workers=2) as ray_batch:
        for outcome in ray_batch.run(tasks(lines, str(out))):
            outcomes.append(outcome)
            if len(outcomes) == 2:
                before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
                killed = [process for process in _workers() if process.is_running()][:1]
                os.kill(killed[0].pid, signal.SIGKILL)
    assert len(killed) == 1
    assert len(before) < len(lines), "killed half-way"
    assert sorted(outcome.id for outcome in outcomes) == sorted(line["id"] for line in lines)
    assert [outcome.error for outcome in outcomes] == [None] * len(lines)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert same_pictures(tmp_path / "local", out)


def test_refusals_come_back_and_take_along_what_needs_them(cluster, tasks, tmp_path, loading):
    lines = [job("odd", width=60), job("next", subjects={"dog": "@odd"}), job("good")]
    work = tasks(lines, str(tmp_path / "ray"))
    with RayBatch(loading, workers=1) as ray_batch:
        assert "multiple of 8" in ray_batch.refused(work)[1]
        outcomes = {outcome.id: outcome for outcome in ray_batch.run(work)}
    assert "multiple of 8" in outcomes["odd"].error
    assert outcomes["next"].error == 'It needs "odd", which could not be made.'
    assert outcomes["good"].images == 1


def test_a_model_that_no_worker_finds(cluster, tasks, tmp_path, loading):
    work = tasks([job("a")], str(tmp_path / "ray"))
    with (
        RayBatch({**loading, "model": "none"}, workers=1) as ray_batch,
        pytest.raises(ValueError, match='There is no model "none"'),
    ):
        ray_batch.refused(work)


def test_what_an_engine_reserves(cluster):
    assert share(None) == (1, Share(cpus=1.0, gpus=0.0))
    assert share(2) == (2, Share(cpus=0.5, gpus=0.0))
    assert share(200) == (200, Share(cpus=0.01, gpus=0.0))


def test_the_command(cluster, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(0).save("rex.png")
    Path("jobs.jsonl").write_text(f"{json.dumps(job('a', num_images=2))}\n{json.dumps(job('odd', width=60))}")
    command = ["batch", "jobs.jsonl", "--out", "out", "--model", str(tiny_model), "--engine", "ray", "--workers", "1"]
    codes, said = [], []
    for extra in ([], ["--skip-bad"]):
        with pytest.raises(SystemExit) as leaving:
            main([*command, *extra])
        codes.append(leaving.value.code)
        said.append(capsys.readouterr().err)
    assert codes == [2, 0]
    assert "jobs.jsonl, line 2: The width must be a multiple of 8" in said[0]
    assert "Images: 2 (" in said[1]
    assert sorted(os.listdir("out")) == ["a-0.png", "a-1.png", "a.json"]


def test_a_cluster_that_is_not_there():
    # In a process of its own: this one has joined a cluster already.
    program = (
        "from realcustom.distributed.cluster import connect\n"
        "try:\n    connect('127.0.0.1:1')\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == 'There is no Ray cluster at "127.0.0.1:1".\n'


def _workers() -> list[psutil.Process]:
    """The processes of the actors that hold engines."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "_Worker" in " ".join(process.cmdline()[:1])]
