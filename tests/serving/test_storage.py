"""A disk that is full, a database that is locked, files that are lost: the server says so, lives on and goes on."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.pictures.content import pixels_sha256
from realcustom.serving import runner as runner_module
from realcustom.serving import upkeep
from realcustom.serving.blobs import Blobs
from realcustom.serving.records import forget_unused
from realcustom.serving.store import DATABASE
from realcustom.serving.trouble import StorageTrouble, storage_trouble

from .conftest import png, until, wait

ASK = {"prompt": "a dog on the beach", "steps": 1, "seed": 3}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(runner_module, "PAUSES", (0.05,))
    monkeypatch.setattr(upkeep, "LOOK", 0.1)
    monkeypatch.setattr(upkeep, "LOOK_AGAIN", 0.1)


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while its list is not empty, no file can be written."""
    full, put = [], Blobs.put

    def refusing(self, data):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, data)

    monkeypatch.setattr(Blobs, "put", refusing)
    return full


def test_a_full_disk_is_told_waited_for_and_survived(client, service, full_disk, monkeypatch):
    probe = service.store.probe
    monkeypatch.setattr(service.store, "probe", lambda: None if full_disk else probe())
    assert client.get("/v1/ready").status_code == 200
    full_disk.append(True)
    made = client.post("/v1/generations", json=ASK).json()["id"]
    until(lambda: client.get("/v1/ready").status_code == 503)
    health = client.get("/v1/health")
    assert (health.status_code, health.json()["status"]) == (200, "troubled")
    assert health.json()["problems"] == ["There is no room left on the disk of this server."]
    assert client.post("/v1/images", content=png(picture(5))).status_code == 507
    refused = client.post("/v1/generations", json=ASK)
    assert (refused.status_code, refused.json()["detail"]) == (507, "There is no room left on the disk of this server.")
    assert client.get(f"/v1/generations/{made}").json()["state"] == "running"
    full_disk.clear()
    assert wait(client, made, 20)["state"] == "done", "what was made is kept, not made again"
    assert client.get("/v1/ready").json() == {**client.get("/v1/health").json(), "status": "ok", "problems": []}
    assert wait(client, client.post("/v1/generations", json={**ASK, "seed": 4}).json()["id"], 20)["state"] == "done"


def test_a_locked_database_is_told_waited_for_and_survived(client, service):
    service.store._database.execute("PRAGMA busy_timeout = 50")
    slow = client.post("/v1/generations", json={**ASK, "steps": 200}).json()["id"]
    until(lambda: client.get(f"/v1/generations/{slow}").json()["step"] > 0)
    other = sqlite3.connect(service.store.folder / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    until(lambda: client.get("/v1/ready").status_code == 503)
    assert client.get("/v1/ready").json()["problems"] == ["Another process keeps the database of this server locked."]
    assert client.post("/v1/generations", json=ASK).status_code == 503
    time.sleep(0.5)
    other.execute("ROLLBACK")
    other.close()
    assert wait(client, slow, 60)["state"] == "done"
    until(lambda: client.get("/v1/ready").status_code == 200)


def test_the_disk_is_looked_at_while_nothing_is_made(client, service, monkeypatch):
    def refusing(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", refusing)
    until(lambda: client.get("/v1/ready").status_code == 503)
    assert client.post("/v1/generations", json=ASK).status_code == 507
    monkeypatch.undo()
    monkeypatch.setattr(upkeep, "LOOK_AGAIN", 0.1)
    until(lambda: client.get("/v1/ready").status_code == 200)


def test_room_made_by_removing_something_is_seen_soon(client, service, monkeypatch):
    """What a request has met is looked after at once, not at the next look at a disk that was well."""
    monkeypatch.setattr(upkeep, "LOOK", 600.0)
    time.sleep(0.5)  # until it rests for as long
    service.store.note(StorageTrouble("There is no room left on the disk of this server.", 507))
    until(lambda: client.get("/v1/ready").status_code == 200, seconds=5)


def test_a_picture_can_be_removed_from_a_full_disk(client, service, monkeypatch):
    """Its file goes before the record of that is written, for which there was no room."""
    name = client.post("/v1/images", content=png()).json()["id"]
    path, transaction = service.store.pictures.path(name), service.store.transaction

    @contextmanager
    def crowded():
        with transaction() as database:
            yield database
            if path.exists():
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

    monkeypatch.setattr(service.store, "transaction", crowded)
    assert client.delete(f"/v1/images/{name}").status_code == 204
    assert client.get(f"/v1/images/{name}").status_code == 404


def test_companions_of_a_failed_batch_do_not_stay_running(client, service, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("a fault of the program")

    monkeypatch.setattr(service.engine, "batch_size", 4)
    monkeypatch.setattr(service.runner, "_results", broken)
    names = [client.post("/v1/generations", json={**ASK, "seed": seed}).json()["id"] for seed in range(4)]
    jobs = [wait(client, name, 20) for name in names]
    assert {job["state"] for job in jobs} == {"failed"}
    assert "unexpectedly" in jobs[0]["error"]
    monkeypatch.undo()
    assert wait(client, client.post("/v1/generations", json=ASK).json()["id"], 20)["state"] == "done"


def test_a_server_whose_workers_ended_is_not_ready(client, service, monkeypatch):
    assert client.get("/v1/ready").status_code == 200
    monkeypatch.setattr(service.runner, "_threads", [])
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.json()["problems"]) == (503, ["Nothing works on the queue of this server."])


def test_graceful_stops_are_no_crashes(engine, tmp_path):
    from realcustom.serving.service import Service

    name = None
    for _ in range(4):
        service = Service(engine, tmp_path / "data")
        name = name or service.submit({**ASK, "steps": 1000}).id
        service.start()
        until(lambda service=service, name=name: service.runner.live(name).step > 0)
        service.stop()
    service = Service(engine, tmp_path / "data")
    assert (service.jobs.get(name).state, service.jobs.get(name).attempts) == ("queued", 0)
    service.stop()


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_picture_is_healed_by_uploading_it_again(client, service, damage):
    made = client.post("/v1/images", content=png()).json()["id"]
    path = service.store.pictures.path(made)
    if damage == "lost":
        path.unlink()
    else:
        os.truncate(path, 100)
    again = client.post("/v1/images", content=png())
    assert (again.status_code, again.json()["id"]) == (201, made)
    assert client.get(f"/v1/images/{made}").status_code == 200
    assert service.store.pictures.intact(made)


def test_pictures_are_removed_unless_they_are_used(client, service):
    unused = client.post("/v1/images", content=png(picture(7))).json()["id"]
    used = client.post("/v1/images", content=png(picture(8))).json()["id"]
    service.save_character({"name": "rex", "word": "dog", "images": [used]})
    assert client.delete(f"/v1/images/{unused}").status_code == 204
    assert client.get(f"/v1/images/{unused}").status_code == client.delete(f"/v1/images/{unused}").status_code == 404
    assert client.delete(f"/v1/images/{used}").status_code == 409
    assert client.get(f"/v1/images/{used}").status_code == 200


def test_the_data_folder_has_a_bound(client, service):
    object.__setattr__(service.limits, "data_bytes", service.store.used + 2000)
    assert client.post("/v1/images", content=png(picture(5))).status_code == 507
    object.__setattr__(service.limits, "data_bytes", service.store.used + 20_000)
    made = client.post("/v1/images", content=png(picture(5)))
    assert made.status_code == 201
    object.__setattr__(service.limits, "data_bytes", 1)
    refused = client.post("/v1/generations", json=ASK)
    assert refused.status_code == 507
    assert "This server keeps at most" in refused.json()["detail"]
    assert client.get("/v1/ready").status_code == 200, "it is no fault of the disk"
    assert client.delete(f"/v1/images/{made.json()['id']}").status_code == 204


def test_what_is_old_goes_while_the_server_runs(client, service):
    job = wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    page = service.store.folder / "studio" / "ab"
    page.mkdir(parents=True)
    (page / "rex.png").write_bytes(b"1")
    (page / ".x.part").write_bytes(b"1")
    upkeep.sweep(service.store, service.jobs, service.limits)
    assert client.get(f"/v1/generations/{job['id']}").status_code == 200
    assert (page / "rex.png").exists()
    object.__setattr__(service.limits, "keep_days", 0.0)
    object.__setattr__(service.limits, "days", 0.0)
    upkeep.sweep(service.store, service.jobs, service.limits)
    assert client.get(f"/v1/generations/{job['id']}").status_code == 404
    assert client.get(f"/v1/images/{job['image_ids'][0]}").status_code == 404
    assert upkeep.sweep_files(service.store.folder / "studio", 0.0) == 2
    assert not page.exists()


def test_the_data_folder_is_its_owners_alone(client, service):
    wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    client.post("/v1/images", content=png())
    assert stat.S_IMODE(service.store.folder.stat().st_mode) == 0o700
    for path in service.store.folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_only_what_passes_is_tried_again():
    assert storage_trouble(OSError(errno.ENOSPC, "")).status == 507
    assert storage_trouble(OSError(errno.EIO, "")).status == 503
    assert storage_trouble(OSError(errno.ENOENT, "")) is None
    assert storage_trouble(sqlite3.OperationalError("no such table")) is None
    assert storage_trouble(KeyError()) is None


@pytest.mark.parametrize("damage", ["cut", "lost"])
@pytest.mark.parametrize("kind", ["pictures", "masks"])
def test_a_damaged_result_is_told_and_no_fault_of_the_server(client, service, kind, damage):
    subjects = {"dog": client.post("/v1/images", content=png()).json()["id"]}
    made = client.post("/v1/generations", json={**ASK, "subjects": subjects}).json()
    job = wait(client, made["id"])
    name = job["image_ids"][0] if kind == "pictures" else service.jobs.get(job["id"]).masks
    path = getattr(service.store, kind).path(name)
    path.unlink() if damage == "lost" else path.write_bytes(path.read_bytes()[:100])
    image = job["images"][0]
    for place in (f"{image}/masks/dog", f"{image}/metadata", image, f"/v1/images/{job['image_ids'][0]}/face"):
        answer = client.get(place)
        wrong = kind == "pictures" or place.endswith("dog")
        assert answer.status_code == (404 if wrong else 200), place
        assert not wrong or str(service.store.folder) not in answer.text


def test_what_a_picture_shows_as_a_mask_is_forgotten_with_it(service):
    mask = np.zeros((8, 8, 3), dtype=np.uint8)
    mask[:4, :, 0] = 255
    shown = np.repeat(mask[..., :1], 3, axis=2)
    name = service.store.add_upload(png(Image.fromarray(mask)), service.limits)["id"]
    key = pixels_sha256(Image.fromarray(shown))
    assert service.store.picture_showing(key, as_mask=True) == name
    assert service.store.picture_showing(key) is None, "as an image it is red"
    assert forget_unused(service.store, days=0.0) == 1
    assert service.store.picture_showing(key, as_mask=True) is None
    assert service.store.rows("SELECT * FROM read_as_masks") == []
