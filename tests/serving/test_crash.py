"""kill -9 at any moment: nothing finished is lost, nothing is made twice, what waited is made."""

from __future__ import annotations

import hashlib
import time

import httpx
import pytest
from conftest import picture

from .conftest import png
from .servers import Server

JOBS = 20


def submit_all(url: str) -> list[str]:
    with httpx.Client(base_url=url, timeout=60) as client:
        dog = client.post("/v1/images", content=png(picture(0))).json()["id"]
        ask = {"prompt": "a dog on the beach", "steps": 4, "subjects": {"dog": dog}}
        return [client.post("/v1/generations", json={**ask, "seed": seed}).json()["id"] for seed in range(JOBS)]


def states(url: str) -> dict[str, dict]:
    with httpx.Client(base_url=url, timeout=60) as client:
        return {job["id"]: job for job in client.get("/v1/generations", params={"limit": 100}).json()["generations"]}


def finished(url: str) -> dict[str, dict]:
    return {name: job for name, job in states(url).items() if job["state"] == "done"}


def await_finished(url: str, count: int, seconds: float = 200.0) -> dict[str, dict]:
    end = time.monotonic() + seconds
    while len(finished(url)) < count:
        assert time.monotonic() < end, states(url)
        time.sleep(0.1)
    return finished(url)


def hashes(url: str, jobs: dict[str, dict]) -> dict[int, str]:
    """Seed -> hash of the image's file."""
    with httpx.Client(base_url=url, timeout=60) as client:
        return {
            job["request"]["seed"]: hashlib.sha256(client.get(job["images"][0]).content).hexdigest()
            for job in jobs.values()
        }


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_killed(tiny_model, tmp_path):
    data = tmp_path / "data"
    server = Server(str(tiny_model), data)
    names = submit_all(server.url)
    kept: dict[str, dict] = {}
    for done in (3, 9):
        before = await_finished(server.url, done)
        before_hashes = hashes(server.url, before)
        server.kill()
        server = Server(str(tiny_model), data)
        after = finished(server.url)
        assert set(before) <= set(after), "what was finished stays finished"
        kept |= before
        assert {name: after[name]["finished"] for name in kept} == {name: kept[name]["finished"] for name in kept}, (
            "and is not made again"
        )
        assert before_hashes.items() <= hashes(server.url, after).items()
    jobs = await_finished(server.url, JOBS)
    assert set(jobs) == set(names)
    assert {job["attempts"] for job in jobs.values()} <= {1, 2, 3}
    assert sum(job["attempts"] for job in jobs.values()) <= JOBS + 2, "at most the one under way ran again"
    interrupted = hashes(server.url, jobs)
    server.kill()
    calm = Server(str(tiny_model), tmp_path / "calm")
    submit_all(calm.url)
    assert hashes(calm.url, await_finished(calm.url, JOBS)) == interrupted, "as without any interruption"
    calm.stop()
    leftovers = list(data.rglob("*.part"))
    assert leftovers == []
