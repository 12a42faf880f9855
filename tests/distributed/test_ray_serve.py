"""The engine on Ray Serve: the same answers as the local one, also when a replica dies."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from conftest import picture

from realcustom import Engine, Request, Subject
from realcustom.distributed.ray_serve import deploy
from realcustom.serving.records import DONE, UNFINISHED
from realcustom.serving.service import Service
from realcustom.types import Cancelled

DOG = Request(prompt="a dog on the beach", subjects={"dog": picture(0)}, steps=3, seed=1)
REQUESTS = (
    DOG,
    Request(prompt="a red cat", subjects={"cat": [picture(1), picture(2)]}, steps=3, seed=2, num_images=2),
    Request(prompt="a toy", steps=3, negative_prompt="a dog"),
    Request(prompt="a robot", subjects={"robot": Subject(picture(3), region=picture(4))}, steps=2),
)


@pytest.fixture(scope="module")
def local(tiny_model) -> Engine:
    return Engine.load(str(tiny_model), device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def remote(cluster, tiny_model):
    loading = {"model": str(tiny_model), "device": "cpu", "batch_size": 2}
    engine = deploy(loading, replicas=1, max_replicas=2)
    yield engine
    engine.close()


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def same(first, second) -> bool:
    return (
        all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(first.images, second.images, strict=True))
        and first.metadata == second.metadata
        and all(np.array_equal(first.masks[word], second.masks[word]) for word in first.masks)
    )


def test_nothing_of_it_listens_to_other_machines(remote):
    """Whoever reaches a port of Ray can run programs here."""
    heard = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            sockets = [one for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
            heard |= {(process.name(), one.laddr.ip.removeprefix("::ffff:")) for one in sockets}
    assert any("Replica" in name for name, _ in heard), heard
    assert {ip for _, ip in heard} == {"127.0.0.1"}, heard


def test_it_looks_like_the_local_engine(local, remote):
    assert remote.describe() == local.describe()
    assert (remote.batch_size, remote.grid, remote.source, remote.workers) == (2, local.grid, local.source, 2)
    resolved = remote.resolve(DOG)
    assert resolved == local.resolve(DOG)
    assert remote.together(resolved) == local.together(resolved)


def test_the_same_results_and_progress(local, remote):
    told, heard = [], []
    expected = local.run_many(REQUESTS, progress=lambda index, now: told.append((index, now.step, now.steps)))
    found = remote.run_many(REQUESTS, progress=lambda index, now: heard.append((index, now.step, now.steps)))
    assert heard == told
    assert all(same(first, second) for first, second in zip(expected, found, strict=True))


def test_requests_that_arrive_together_share_a_batch_and_stay_themselves(local, remote):
    requests = [Request(prompt="a dog", subjects={"dog": picture(seed)}, steps=3, seed=seed) for seed in range(4)]
    results = {}
    threads = [
        threading.Thread(target=lambda request=request: results.update({request.seed: remote.run(request)}))
        for request in requests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request in requests:
        alone = local.run(request)
        assert abs(pixels(alone.images[0]) - pixels(results[request.seed].images[0])).max() <= 1
        assert results[request.seed].metadata == alone.metadata


@pytest.mark.parametrize(
    "wrong",
    [{"width": 60}, {"prompt": "a dog " * 60}, {"prompt": "a cat"}, {"subjects": {"dog": "missing.png"}}],
)
def test_the_same_sentences(local, remote, wrong):
    request = Request(**{"prompt": DOG.prompt, "subjects": dict(DOG.subjects), **wrong})
    said = []
    for call in (local.run, remote.run, remote.resolve, lambda request: remote.run_many([request])):
        with pytest.raises(ValueError, match=r"\.$|;") as error:
            call(request)
        said.append(str(error.value))
    assert len(set(said)) == 1


def test_a_cancelled_run_ends_and_the_others_of_its_batch_do_not(local, remote):
    long = Request(prompt="a toy", steps=1000)
    with pytest.raises(Cancelled):
        remote.run(long, cancelled=lambda: True)
    results = remote.run_many([DOG, REQUESTS[2]], cancelled=lambda index: index == 1)
    assert isinstance(results[1], Cancelled)
    assert abs(pixels(results[0].images[0]) - pixels(local.run(DOG).images[0])).max() <= 1


def test_a_dead_replica_costs_time_only(local, remote):
    killed = []

    def kill(_: int, now) -> None:
        if not killed and now.step == 2:
            killed.extend(_replicas())
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)

    (result,) = remote.run_many([DOG], progress=kill)
    assert killed
    assert same(result, local.run(DOG))


def test_the_service_works_on_it(remote, tmp_path):
    service = Service(remote, tmp_path)
    service.start()
    jobs = [service.submit({"prompt": "a toy", "steps": 3, "seed": seed}) for seed in range(4)]
    deadline = time.monotonic() + 120
    while any(service.jobs.get(job.id).state in UNFINISHED for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    finished = [service.jobs.get(job.id) for job in jobs]
    service.stop()
    assert [(job.state, len(job.images), job.error) for job in finished] == [(DONE, 1, None)] * 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loading": {"model": "none"}}, 'There is no model "none"'),
        ({"replicas": 0}, "number of replicas"),
        ({"replicas": 3, "max_replicas": 2}, "most replicas"),
    ],
)
def test_deployments_that_cannot_be(cluster, tiny_model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        deploy(**{"loading": {"model": str(tiny_model)}, **options})


def _replicas() -> list[psutil.Process]:
    """The processes that hold engines."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ServeReplica" in " ".join(process.cmdline()[:1])]
