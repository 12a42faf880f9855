"""The REST interface: create, poll, watch, fetch, cancel; characters; the queue's bound; tokens."""

import io
import json

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom import Request
from realcustom.engine.characters import Character
from realcustom.engine.requests import pixels_sha256
from realcustom.pictures.png import read_metadata
from realcustom.serving.records import forget_unused

from .conftest import data_url, png, wait
from .promises import hold_event

ASK = {"prompt": "a dog on the beach", "steps": 2, "seed": 3}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_generation_from_json_to_image_masks_and_metadata(client, engine, tmp_path):
    made = client.post("/v1/generations", json={**ASK, "num_images": 2, "subjects": {"dog": data_url(png())}})
    assert made.status_code == 202, made.text
    job = wait(client, made.json()["id"])
    assert (job["state"], job["error"], job["masks"]) == ("done", None, ["dog"])
    assert job["step"] == job["steps"] == 2 * ASK["steps"]
    images = [client.get(path).content for path in job["images"]]
    direct = engine.run(Request(**ASK, num_images=2, subjects={"dog": picture(0)}))
    for image, expected in zip(images, direct.images, strict=True):
        assert np.array_equal(pixels(image), np.asarray(expected)), "every door makes the same image"
    mask = client.get(f"{job['images'][1]}/masks/dog", params={"step": 0})
    assert mask.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(mask.content)).size == (64, 64)
    assert client.get(f"{job['images'][1]}/masks/dog", params={"over": True}).content != mask.content
    assert client.get(f"{job['images'][1]}/masks/dog", params={"step": 2}).status_code == 404
    record = client.get(f"{job['images'][1]}/metadata").json()
    assert (record["request"]["seed"], record["request"]["num_images"]) == (4, 1)
    path = tmp_path / "image.png"
    path.write_bytes(images[1])
    assert read_metadata(path) == record
    reference = record["request"]["subjects"]["dog"]["images"][0]
    assert reference["sha256"] == pixels_sha256(picture(0))
    assert "/" not in reference["path"], "a server's folders are nobody's business"


def test_multipart_and_a_result_as_the_next_reference(client):
    request = json.dumps({**ASK, "subjects": {"dog": {"images": ["rex"], "strength": 0.8}}})
    made = client.post("/v1/generations", data={"request": request}, files={"rex": ("rex.png", png(), "image/png")})
    assert made.status_code == 202, made.text
    first = wait(client, made.json()["id"])
    again = client.post("/v1/generations", json={**ASK, "subjects": {"dog": first["image_ids"][0]}})
    second = wait(client, again.json()["id"])
    assert second["state"] == "done"
    assert second["request"]["subjects"]["dog"]["images"] == first["image_ids"]


def test_a_region_is_what_was_painted_however_it_arrives(client, service):
    """White on a transparent ground, uploaded before or sent along, is the opaque mask of the same place."""
    opaque = Image.new("L", (32, 32))
    opaque.paste(255, (16, 0, 32, 32))
    painted = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), (16, 0, 32, 32))
    upload = client.post("/v1/images", content=png(painted)).json()["id"]
    masks, regions = [], []
    for region in (data_url(png(opaque)), data_url(png(painted)), upload):
        subject = {"images": data_url(png()), "region": region}
        job = wait(client, client.post("/v1/generations", json={**ASK, "subjects": {"dog": subject}}).json()["id"])
        assert job["state"] == "done"
        answer = client.get(f"/v1/generations/{job['id']}/images/0/masks/dog")
        assert answer.headers["content-type"] == "image/png"
        masks.append(answer.content)
        regions.append(job["request"]["subjects"]["dog"]["region"])
    assert masks[0] == masks[1] == masks[2]
    assert regions[0] == regions[1] == regions[2]
    black = {"images": data_url(png()), "region": data_url(png(Image.new("L", (32, 32))))}
    refused = client.post("/v1/generations", json={**ASK, "subjects": {"dog": black}})
    assert refused.status_code == 422
    assert "black" in refused.text


def test_pictures_say_that_they_are_srgb(client):
    job = wait(client, client.post("/v1/generations", json={**ASK, "subjects": {"dog": data_url(png())}}).json()["id"])
    data = client.get(f"/v1/generations/{job['id']}/images/0").content
    assert b"sRGB" in data[:80]


def test_events_tell_every_step_and_the_end(client):
    made = client.post("/v1/generations", json={**ASK, "steps": 100, "subjects": {"dog": data_url(png())}})
    with client.stream("GET", f"/v1/generations/{made.json()['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    kinds, records = [], []
    for block in text.strip().split("\n\n"):
        head, line = block.split("\n")
        kinds.append(head.removeprefix("event: "))
        records.append(json.loads(line.removeprefix("data: ")))
    assert kinds[-1] == "end"
    for kind, record in zip(kinds, records, strict=True):
        hold_event(client.app, kind, record)
    assert records[-1]["state"] == "done"
    steps = [record["step"] for record in records[:-1]]
    assert steps == sorted(steps)
    previews = [record for record in records if "preview" in record]
    assert previews, "at least one preview with its mask"
    assert set(previews[0]["masks"]) == {"dog"}


def test_the_queue_is_bounded_and_waiting_ones_can_be_cancelled(idle_client, service):
    names = [idle_client.post("/v1/generations", json=ASK).json()["id"] for _ in range(4)]
    refused = idle_client.post("/v1/generations", json=ASK)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "The queue is full (4 generations wait)" in refused.json()["detail"]
    assert idle_client.get(f"/v1/generations/{names[2]}").json()["position"] == 2
    assert idle_client.post(f"/v1/generations/{names[0]}/cancel").json()["state"] == "cancelled"
    assert idle_client.post("/v1/generations", json=ASK).status_code == 202
    listed = idle_client.get("/v1/generations", params={"state": "queued", "limit": 3}).json()
    assert len(listed["generations"]) == 3
    older = idle_client.get("/v1/generations", params={"state": "queued", "before": listed["before"]}).json()
    assert len(older["generations"]) == 1
    assert idle_client.delete(f"/v1/generations/{names[1]}").status_code == 409
    assert idle_client.delete(f"/v1/generations/{names[0]}").status_code == 204
    assert idle_client.get(f"/v1/generations/{names[0]}").status_code == 404


def test_a_running_generation_can_be_cancelled_and_is_bounded_in_time(client, service):
    made = client.post("/v1/generations", json={**ASK, "steps": 1000}).json()["id"]
    while client.get(f"/v1/generations/{made}").json()["step"] == 0:
        pass
    client.post(f"/v1/generations/{made}/cancel")
    assert wait(client, made)["state"] == "cancelled"
    object.__setattr__(service.limits, "seconds", 0.2)
    late = wait(client, client.post("/v1/generations", json={**ASK, "steps": 1000}).json()["id"])
    assert (late["state"], late["error"]) == (
        "failed",
        "It took longer than the 0.2 s that a generation may take here.",
    )
    assert client.get(f"/v1/generations/{late['id']}/images/0").status_code == 409


def test_removing_a_generation_keeps_images_that_are_in_use(client, service):
    first = wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    second = wait(client, client.post("/v1/generations", json={**ASK, "seed": 9}).json()["id"])
    record = {"name": "rex", "word": "dog", "images": first["image_ids"]}
    assert client.post("/v1/characters", json=record).status_code == 201
    for job in (first, second):
        assert client.delete(f"/v1/generations/{job['id']}").status_code == 204
    assert client.get(f"/v1/images/{first['image_ids'][0]}").status_code == 200
    assert client.get(f"/v1/images/{second['image_ids'][0]}").status_code == 404


def test_old_uploads_that_nothing_uses_are_removed(client, service):
    made = wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    kept = [service.store.add_picture(picture(number))["id"] for number in (5, 6)]
    unused = service.store.add_picture(picture(7))["id"]
    service.save_character({"name": "rex", "word": "dog", "images": kept[:1], "faces": kept[1:]})
    assert forget_unused(service.store, days=1.0) == 0
    assert forget_unused(service.store, days=0.0) == 1
    for image in (*kept, *made["image_ids"]):
        assert client.get(f"/v1/images/{image}").status_code == 200
    assert client.get(f"/v1/images/{unused}").status_code == 404


def test_characters_are_saved_changed_used_and_removed(client):
    record = {
        "name": "@Rex",
        "word": "dog",
        "images": [data_url(png())],
        "faces": [data_url(png(picture(1)))],
        "description": "a brown dog with a white chest",
        "strength": 0.9,
        "face_strength": 0.45,
    }
    made = client.post("/v1/characters", json=record)
    assert made.status_code == 201, made.text
    kept = made.json()
    assert kept["name"] == "rex"
    assert client.post("/v1/characters", json=record).json()["detail"].startswith("There is a character @rex already")
    job = wait(client, client.post("/v1/generations", json={**ASK, "prompt": "@rex on the beach"}).json()["id"])
    assert job["state"] == "done", job
    assert job["prompt"] == "dog on the beach"
    subject = job["request"]["subjects"]["dog"]
    assert (subject["images"], subject["strength"], subject["weights"]) == (
        kept["images"] + kept["faces"],
        0.9,
        [1.0, 0.5],
    )
    described = client.post("/v1/generations", json={**ASK, "prompt": "@rex", "describe_characters": True})
    assert described.json()["prompt"] == "dog, a brown dog with a white chest"
    assert client.put("/v1/characters/rex", json={**kept, "name": "max"}).json()["name"] == "max"
    unknown = client.post("/v1/generations", json={**ASK, "prompt": "@rex"})
    assert (unknown.status_code, unknown.json()["detail"]) == (422, "There is no character @rex.")
    both = client.post("/v1/generations", json={**ASK, "prompt": "@max and a dog", "subjects": {"dog": kept["images"]}})
    assert both.json()["prompt"] == "dog and a dog"
    assert sorted(both.json()["request"]["subjects"]) == ["dog#1", "dog#2"]
    places = {"dog#2": kept["images"]}
    assert client.post("/v1/generations", json={**ASK, "prompt": "a dog, a dog", "subjects": places}).status_code == 202
    third = client.post("/v1/generations", json={**ASK, "prompt": "a dog", "subjects": places})
    assert third.json()["detail"].startswith('"dog#2" asks for place 2 of "dog"')
    assert [entry["name"] for entry in client.get("/v1/characters").json()["characters"]] == ["max"]
    assert client.delete("/v1/characters/max").status_code == 204
    assert client.get("/v1/characters/max").status_code == 404


def test_health_models_metrics_and_the_document(client):
    wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    assert client.get("/v1/health").json()["status"] == "ok"
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["size"], model["steps"]) == ("tiny", "64x64", 25)
    text = client.get("/v1/metrics").text
    assert 'realcustom_generations_total{outcome="done"} 1' in text
    assert "realcustom_run_seconds_count 1" in text
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert {"/v1/generations", "/v1/generations/{id}/events", "/v1/characters/{name}"} <= set(paths)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret-token"}, 401),
        ({"authorization": "Bearer secret-token"}, 200),
        ({"cookie": "realcustom_token=secret-token"}, 200),
        ({"cookie": "realcustom_token=secret-token", "origin": "http://evil.example"}, 403),
    ],
)
def test_a_token_where_one_is_set(service, headers, status):
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app

    app = create_app(service, token="secret-token", studio=False)
    client = TestClient(app, base_url="http://anywhere.example", follow_redirects=False)
    assert client.get("/v1/models", headers=headers).status_code == status
    assert client.get("/v1/health", headers=headers).status_code == 200
    if status == 401:
        assert client.get("/v1/models", headers=headers).headers["www-authenticate"] == "Bearer"
        entered = client.get("/?token=secret-token")
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert "HttpOnly" in entered.headers["set-cookie"]
        client.cookies.clear()
        assert "The token is wrong." in client.get("/?token=no", headers={"accept": "text/html"}).text


def test_without_a_token_only_this_machine_and_its_own_pages(idle_client):
    assert idle_client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert idle_client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
    assert idle_client.get("/v1/models", headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_unfinished_work_is_taken_up_and_repeated_crashes_are_not(engine, tmp_path):
    from realcustom.serving.service import Service

    first = Service(engine, tmp_path / "data")
    waiting, running, poison = (first.submit(ASK) for _ in range(3))
    first.jobs.begin([running.id])
    with first.store.transaction() as database:
        database.execute("UPDATE jobs SET attempts = 3, state = 'running' WHERE id = ?", (poison.id,))
    first.store.close()
    second = Service(engine, tmp_path / "data")
    second.start()
    for name in (waiting.id, running.id):
        live = second.runner.live(name)
        if live is not None:
            assert live.finished.wait(60)
        assert second.jobs.get(name).state == "done"
    assert second.jobs.get(poison.id).state == "interrupted"
    with pytest.raises(ValueError, match="Another server uses the data folder"):
        Service(engine, tmp_path / "data")
    second.stop()


def test_characters_as_subjects():
    whole = Character(name="rex", word="dog", images=("a",), strength=0.5)
    assert (whole.subject().strength, whole.subject().weights) == (0.5, None)
    face = Character(name="rex", word="dog", images=("a",), faces=("b",), strength=0.5, face_strength=2.0)
    assert (face.subject().strength, face.subject().weights) == (2.0, (0.25, 1.0))
