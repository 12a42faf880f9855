"""The loop: exact resume, kills at any moment, signals, broken losses, several processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from realcustom.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from realcustom.training.logs import read_log
from realcustom.training.loop import train
from realcustom.training.recipes import configure, load_recipe, parse_options

RECIPE = Path(__file__).parent / "tiny_recipe.py"
SOURCE = Path(__file__).parents[2] / "src"


def config(out, **options):
    return configure(load_recipe(RECIPE), {"out": str(out), **{name: str(value) for name, value in options.items()}})


def outcome(out):
    """Everything a run leaves: tensors and state of the last checkpoint, and its log without the clock."""
    tensors, state = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])
    clocks = ("time", "samples_per_second", "waiting_share")
    log = [{name: value for name, value in line.items() if name not in clocks} for line in read_log(out / "log.jsonl")]
    state.pop("config")
    return tensors, state, log


def assert_same(first, second):
    for stem, named in first[0].items():
        assert named.keys() == second[0][stem].keys()
        assert all(torch.equal(tensor, second[0][stem][name]) for name, tensor in named.items()), stem
    assert first[1:] == second[1:]


def command(*words):
    return [sys.executable, "-m", "realcustom.training", str(RECIPE), *map(str, words)]


def environment():
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(config(out))
    return outcome(out)


def test_learns_and_logs(tmp_path):
    train(config(tmp_path, steps=60, batch_size=16))
    log = read_log(tmp_path / "log.jsonl")
    assert len(log) == 20
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[-1]["samples"] == 60 * 16


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resumed_equals_uninterrupted(uninterrupted, tmp_path, stop, monkeypatch):
    first = config(tmp_path)
    monkeypatch.setattr("realcustom.training.loop.stop_requests", lambda: _stop_after(stop))
    train(first)
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == f"step-{stop:08d}"
    monkeypatch.undo()
    train(first, resume=True)
    assert_same(uninterrupted, outcome(tmp_path))


def test_muon_learns_and_resumes(tmp_path, monkeypatch):
    whole, halved = config(tmp_path / "whole", matrices=True), config(tmp_path / "halved", matrices=True)
    train(whole)
    monkeypatch.setattr("realcustom.training.loop.stop_requests", lambda: _stop_after(7))
    train(halved)
    monkeypatch.undo()
    train(halved, resume=True)
    assert_same(outcome(whole.out), outcome(halved.out))
    train(config(tmp_path / "long", matrices=True, steps=60, batch_size=16))
    log = read_log(tmp_path / "long" / "log.jsonl")
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]


class _stop_after:
    """A stop request that comes after a number of steps, between log lines and checkpoints."""

    def __init__(self, steps):
        self.left = steps

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    @property
    def requested(self):
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("number", [1, 2])
def test_killed_in_mid_save(uninterrupted, tmp_path, number):
    killed = subprocess.run(command(f"out={tmp_path}", f"die_in_save_number={number}"), env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    assert len(list_checkpoints(folder)) == number - 1
    assert any(path.name.startswith(".unfinished") for path in folder.iterdir())
    train(config(tmp_path), resume=True)
    assert_same(uninterrupted, outcome(tmp_path))
    assert not any(path.name.startswith(".") for path in folder.iterdir())


def test_killed_while_discarding_keeps_a_whole_checkpoint(tmp_path, monkeypatch):
    tensors = {"net": {"a": torch.ones(2)}}
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors, {"step": step}, keep=2)
    monkeypatch.setattr("realcustom.training.checkpoints.shutil.rmtree", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path, 3, tensors, {"step": 3}, keep=2)
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    save_checkpoint(tmp_path, 4, tensors, {"step": 4}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_interrupt_saves_exports_and_resumes(tmp_path):
    words = (f"out={tmp_path}", "every_steps=1000000", "workers=1")
    process = subprocess.Popen(command(*words, "steps=1000000"), env=environment())
    while not read_log(tmp_path / "log.jsonl"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert load_checkpoint(saved)[1]["step"] > 0
    assert (tmp_path / "export" / "net.pt").is_file()


def test_nan_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="step-00000005"):
        train(config(tmp_path, break_at=8))
    (good,) = list_checkpoints(tmp_path / "checkpoints")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(good / "trained.net.safetensors").values())


def test_refuses_to_overwrite_a_run(tmp_path, uninterrupted):
    train(config(tmp_path, steps=2))
    with pytest.raises(ValueError, match="resume it"):
        train(config(tmp_path, steps=2))


def test_keeps_the_last_checkpoints_and_samples(tmp_path):
    train(config(tmp_path, every_steps=2, keep=3))
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000008", "step-00000010", "step-00000012"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000006.png", "00000012.png"]


def test_accumulated_passes_equal_one_large_batch(tmp_path):
    train(config(tmp_path / "large", noise=0.0, batch_size=8))
    train(config(tmp_path / "small", noise=0.0, batch_size=4, accumulate=2))
    large, small = (outcome(tmp_path / name)[0]["trained.net"] for name in ("large", "small"))
    assert max(float((large[name] - small[name]).abs().max()) for name in large) < 1e-6


def test_workers_change_nothing(uninterrupted, tmp_path):
    train(config(tmp_path, workers=2))
    assert_same(uninterrupted, outcome(tmp_path))


def test_damaged_checkpoint_is_named(tmp_path):
    train(config(tmp_path, steps=2))
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    (saved / "optimizer.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged"):
        train(config(tmp_path), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, shard):
    train(config(tmp_path / "one", noise=0.0, batch_size=8))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    words = (f"out={tmp_path / 'two'}", "noise=0.0", "batch_size=4", f"shard={shard}", "abort=true")
    module = ["-m", *command(*words)[2:]]
    port = str(29500 + os.getpid() % 1000 + shard)
    for steps in ("12", "12"):
        subprocess.run(
            [*launcher, port, *module, "--resume", "--max-steps", steps], env=environment(), check=True, timeout=500
        )
    one, two = (outcome(tmp_path / name) for name in ("one", "two"))
    for stem in ("trained.net", "average"):
        differences = [float((tensor - two[0][stem][name]).abs().max()) for name, tensor in one[0][stem].items()]
        assert max(differences) < (1e-3 if stem == "average" else 2e-2)
    exported = torch.load(tmp_path / "two" / "export" / "net.pt")
    assert torch.equal(exported["0.weight"], two[0]["average"]["net.0.weight"])


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(tmp_path):
    plain, compiled = (config(tmp_path / (name or "plain"), noise=0, compile=name) for name in ("", "net"))
    train(plain)
    train(compiled)
    first, second = (load_checkpoint(list_checkpoints(one.out / "checkpoints")[-1])[0] for one in (plain, compiled))
    assert first["trained.net"].keys() == second["trained.net"].keys()
    for name, tensor in first["trained.net"].items():
        torch.testing.assert_close(second["trained.net"][name], tensor, rtol=1e-4, atol=1e-5)


def test_a_refused_run_leaves_the_next_one_its_precision(tmp_path):
    with pytest.raises(ValueError, match='no network "nut" to compile'):
        train(config(tmp_path / "nut", compile="nut"))
    train(config(tmp_path / "next", precision="bf16"))


def test_options_are_read_and_refused():
    assert parse_options(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ValueError, match="name=value"):
        parse_options(["a"])
    with pytest.raises(ValueError, match='no option "stepz"'):
        config("x", stepz=3)
    with pytest.raises(ValueError, match="no int"):
        config("x", steps="many")
    with pytest.raises(ValueError, match="no recipe"):
        load_recipe("missing")


def test_a_time_budget_ends_the_run_with_its_learning_rate_decayed(tmp_path):
    long = config(tmp_path, steps=1_000_000, every_steps=1_000_000).replace(minutes=2 / 60, sample_every=None)
    began = time.monotonic()
    last = train(long)
    assert 1.5 < time.monotonic() - began < 60
    _, state = load_checkpoint(last)
    assert state["step"] < 1_000_000
    assert 2 <= state["seconds_used"] < 10
    log = read_log(tmp_path / "log.jsonl")
    assert log[0]["learning_rate"] > 100 * log[-1]["learning_rate"]
    assert all(0 <= line["waiting_share"] <= 1 for line in log)
    assert (tmp_path / "export" / "net.pt").is_file()
    assert train(long, resume=True) == last  # nothing is left of the budget


def test_a_budget_without_time_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be above 0"):
        config(tmp_path).replace(minutes=0.0)
