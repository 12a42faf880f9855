"""What was made is found again, marked, put into the trash and taken out of it, and downloaded together."""

from __future__ import annotations

import base64
import io
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from realcustom.serving import gallery
from realcustom.serving.records import DONE
from realcustom.serving.upkeep import TRASH, sweep

from .conftest import png, wait

ASK = {"steps": 2, "seed": 3}


@pytest.fixture
def made(client) -> list[str]:
    """Ids of three generations: a dog in snow, a dog and another dog, a cat without a reference."""
    picture = client.post("/v1/images", content=png()).json()["id"]
    client.post("/v1/characters", json={"name": "rex", "word": "dog", "images": [picture]})
    asks = [
        {"prompt": "a Dog in the snow", "subjects": {"Dog": picture}, "num_images": 2},
        {"prompt": "@rex and another dog"},
        {"prompt": "a cat on the stra\u00dfe"},
    ]
    ids = [client.post("/v1/generations", json={**ASK, **ask}).json()["id"] for ask in asks]
    assert all(wait(client, name)["state"] == "done" for name in ids)
    return ids


def found(client, **wanted) -> list[str]:
    return [job["id"] for job in client.get("/v1/gallery", params=wanted).json()["generations"]]


@pytest.mark.parametrize(
    ("wanted", "which"),
    [
        ({}, [2, 1, 0]),
        ({"text": "dog"}, [1, 0]),
        ({"text": "SNOW dog"}, [0]),
        ({"text": "STRASSE"}, [2]),
        ({"text": "@rex"}, [1]),
        ({"text": "%"}, []),
        ({"word": "dog"}, [1, 0]),  # the second as dog#1
        ({"word": "cat"}, []),  # drawn, but no subject
        ({"character": "@Rex"}, [1]),
        ({"character": "re"}, []),
        ({"word": "dog", "text": "snow"}, [0]),
        ({"favourites": True}, []),
    ],
)
def test_search(client, made, wanted, which):
    assert found(client, **wanted) == [made[index] for index in which]


def test_pages_end_where_there_is_nothing_older(client, made, monkeypatch):
    first = client.get("/v1/gallery", params={"limit": 2}).json()
    second = client.get("/v1/gallery", params={"limit": 2, "before": first["before"]}).json()
    assert [job["id"] for page in (first, second) for job in page["generations"]] == made[::-1]
    assert second["before"] is None
    # One call looks at two; what it does not find there is further on.
    monkeypatch.setattr(gallery, "CHUNK", 1)
    monkeypatch.setattr(gallery, "SEARCHED", 2)
    page = client.get("/v1/gallery", params={"text": "snow"}).json()
    assert (page["generations"], page["before"] is None) == ([], False)
    page = client.get("/v1/gallery", params={"text": "snow", "before": page["before"]}).json()
    assert [job["id"] for job in page["generations"]] == [made[0]]


def test_favourites(client, made):
    place = f"/v1/generations/{made[0]}/images"
    for index in (1, 0, 1):
        assert client.put(f"{place}/{index}/favourite").status_code == 204
    assert client.get(f"/v1/generations/{made[0]}").json()["favourites"] == [0, 1]
    assert found(client, favourites=True) == [made[0]]
    for _ in range(2):
        assert client.delete(f"{place}/0/favourite").status_code == 204
    assert client.get(f"/v1/generations/{made[0]}").json()["favourites"] == [1]
    assert client.put(f"{place}/2/favourite").status_code == 404
    assert client.put("/v1/generations/none/images/0/favourite").status_code == 404


def test_what_was_deleted_can_be_taken_back_for_a_day(client, service, made, monkeypatch):
    image = client.get(f"/v1/generations/{made[0]}").json()["image_ids"][0]
    assert client.put(f"/v1/generations/{made[0]}/trash").status_code == 204
    listed = [job["id"] for job in client.get("/v1/generations").json()["generations"]]
    assert listed == found(client) == [made[2], made[1]]
    assert found(client, trashed=True) == [made[0]]
    assert client.get(f"/v1/generations/{made[0]}/images/0").status_code == 200
    sweep(service.store, service.jobs, service.limits)
    assert client.delete(f"/v1/generations/{made[0]}/trash").status_code == 204
    assert found(client) == made[::-1]
    client.put(f"/v1/generations/{made[0]}/trash")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + TRASH + 60)
    # A second time does not begin the day anew.
    client.put(f"/v1/generations/{made[0]}/trash")
    sweep(service.store, service.jobs, service.limits)
    assert client.get(f"/v1/generations/{made[0]}").status_code == 404
    assert client.get(f"/v1/images/{image}").status_code == 404
    assert found(client) == made[:0:-1]


def test_what_waits_is_not_deleted(idle_client):
    name = idle_client.post("/v1/generations", json={"prompt": "a dog", **ASK}).json()["id"]
    assert idle_client.put(f"/v1/generations/{name}/trash").status_code == 409
    assert idle_client.get(f"/v1/generations/{name}").json()["trashed"] is None


def test_many_pictures_are_one_zip_file(client, made):
    places = [f"{made[0]}/0", f"{made[0]}/1", f"{made[2]}/0"]
    answer = client.get("/v1/gallery/zip", params={"picture": [*places, places[0]]})
    assert answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == f"a-dog-in-the-snow-{made[0][:12]}-0.png"
        for name, place in zip(names, places, strict=True):
            generation, index = place.split("/")
            picture = client.get(f"/v1/generations/{generation}/images/{index}").content
            assert archive.read(name) == picture, "with its settings"
    for wrong, status in ((f"{made[0]}/2", 404), (f"{'0' * 32}/0", 404), ("../../etc/passwd", 422)):
        assert client.get("/v1/gallery/zip", params={"picture": [places[0], wrong]}).status_code == status, wrong
    assert client.get("/v1/gallery/zip", params={"picture": places[:1] * 201}).status_code == 422


def test_a_zip_file_is_made_piece_by_piece():
    held = []

    def files():
        for index in range(50):
            held.append(index)
            yield f"{index}.png", 0.0, bytes([index]) * 10_000

    chunks, largest = [], 0
    for chunk in gallery.zip_chunks(files()):
        chunks.append(chunk)
        largest = max(largest, len(chunk))
        assert len(held) - len(chunks) <= 1
    assert largest < 11_000, "never two files at a time"
    assert zipfile.ZipFile(io.BytesIO(b"".join(chunks))).read("49.png") == b"1" * 10_000


def test_the_mask_of_every_step(client, service, made):
    answer = client.get(f"/v1/generations/{made[0]}/images/1/masks/Dog/steps").json()
    (job,) = [job for job in service.jobs.list((DONE,)) if job.id == made[0]]
    stored = service.store.read_masks(job.masks)["Dog"][:, 1]
    assert (len(stored), answer["word"]) == (ASK["steps"], "Dog")
    assert (answer["height"], answer["width"]) == stored.shape[1:]
    for url, mask in zip(answer["masks"], stored, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert np.array_equal(np.asarray(shown), np.rint(mask * 255))
    for wrong in (f"{made[0]}/images/2/masks/Dog", f"{made[0]}/images/0/masks/cat", f"{made[2]}/images/0/masks/cat"):
        assert client.get(f"/v1/generations/{wrong}/steps").status_code == 404


def test_a_folder_without_marks_and_trash_is_taken_over(engine, tmp_path):
    """One of an earlier version, by the same statements without the columns that came since."""
    import sqlite3

    from realcustom.serving.service import Service
    from realcustom.serving.store import DATABASE

    service = Service(engine, tmp_path, name="tiny")
    name = service.submit({"prompt": "a dog", **ASK}).id
    service.stop()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        for column in ("favourites", "trashed"):
            database.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
    database.close()
    service = Service(engine, tmp_path, name="tiny")
    try:
        (job,) = service.jobs.list()
        assert (job.id, job.favourites, job.trashed) == (name, (), None)
    finally:
        service.stop()
