"""Where a model's safety checker makes pictures black, every way of this door says so."""

from __future__ import annotations

import json
import sqlite3

import pytest
from fastapi.testclient import TestClient

from realcustom import Engine
from realcustom.serving.app import create_app
from realcustom.serving.records import Jobs, Wishes
from realcustom.serving.service import Service
from realcustom.serving.store import DATABASE, Store

ASK = {"prompt": "a dog", "steps": 1, "seed": 2}
WHY = "is black: the model's safety checker refused it. Another seed, or another prompt, may pass."


@pytest.fixture(scope="module")
def engine(black_model):
    return Engine.load(str(black_model), device="cpu")


def test_it_is_told_of_each_image_in_its_file_and_when_that_is_restored(client):
    made = client.post("/v1/generations", json={**ASK, "num_images": 2}).json()
    *_, end = client.get(f"/v1/generations/{made['id']}/events").text.strip().split("data: ")
    assert json.loads(end)["flagged"] == [True, True]
    assert client.get(f"/v1/generations/{made['id']}").json()["flagged"] == [True, True]
    image = client.get(f"/v1/generations/{made['id']}/images/0")
    assert client.get(f"/v1/generations/{made['id']}/images/0/metadata").json()["flagged"] is True
    assert f"The picture {WHY}" in client.post("/v1/restore", content=image.content).json()["notes"]


def test_openais_interface_refuses_where_nothing_is_left(client):
    answer = client.post("/v1/images/generations", json={"prompt": "a dog", "num_inference_steps": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    assert answer.json()["detail"] == f"Every image {WHY}"


def test_openais_interface_marks_those_of_several(tiny_model, tmp_path, monkeypatch):
    engine, verdicts = Engine.load(str(tiny_model), device="cpu"), [False, True]

    def checked(image, device, dtype):
        return image, [verdicts.pop(0)]

    monkeypatch.setattr(engine.pipeline, "run_safety_checker", checked)
    engine.knowledge = {"words": ["cat"]}
    app = create_app(Service(engine, tmp_path / "data", name="some"), studio=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        made = client.post("/v1/images/generations", json={"prompt": "a dog", "n": 2, "num_inference_steps": 1})
        assert [entry.get("flagged") for entry in made.json()["data"]] == [None, True]
        assert made.json()["warnings"] == list(engine.warnings("a dog"))
        assert "does not know" in made.json()["warnings"][0]


def test_the_page_says_it_and_draws_a_seed(service):
    from realcustom.serving.studio.form import SETTINGS
    from realcustom.serving.studio.results import generate
    from realcustom.types import MAX_SUBJECTS

    service.start()
    settings = {"seed": -1, "steps": 1}
    rows = ["", [], 1.0] * MAX_SUBJECTS
    *_, last = generate(service, False, ["a dog", False, *(settings.get(name) for name in SETTINGS), *rows])
    assert f"Image 1 {WHY}".replace("'", "&#x27;") in last["status"]
    assert f"seed {last['done'].request['seed']}" in last["status"]
    assert last["done"].request["seed"] >= 0


def test_a_data_folder_of_an_earlier_version_is_taken_over(tmp_path):
    store = Store(tmp_path / "data")
    job = Jobs(store).add({"prompt": "a dog"}, {"prompt": "a dog"}, Wishes())
    Jobs(store).begin([job.id])
    Jobs(store).finish(job.id, ["0" * 64], [True], None)
    store.close()
    with sqlite3.connect(tmp_path / "data" / DATABASE) as database:
        database.execute("ALTER TABLE jobs DROP COLUMN flagged")
    store = Store(tmp_path / "data")
    assert Jobs(store).get(job.id).flagged == (False,)
    store.close()
