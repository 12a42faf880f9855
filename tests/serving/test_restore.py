"""A picture of any door tells the server what it was made of, completely; what the server lacks is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from whole_request import PICTURES, REQUEST, command_options, write_pictures

from realcustom import Request
from realcustom.pictures.png import metadata_of, png_bytes

from .conftest import data_url, png, wait
from .test_rest import pixels

OCCURRENCE = {
    "prompt": "a dog beside a red, wet dog and a toy",
    "subjects": {
        "toy": {"images": ["tom.png"], "strength": 0.5},
        "dog#2": {"images": ["a/rex.png", "b/rex.png"], "weights": [0.25, 1.0], "region": [0.5, 0.0, 1.0, 1.0]},
        "red, wet": {"images": ["b/rex.png"], "region": "mask.png"},
    },
    "preset": "turbo",
    "steps": 1,
    "seed": 11,
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory with the pictures of the requests, which is not where the server keeps its own."""
    place = tmp_path / "work"
    place.mkdir()
    write_pictures(place)
    monkeypatch.chdir(place)
    return place


def inlined(record: dict) -> dict:
    """A request with its pictures as data: URLs."""
    request = Request.from_dict(record)
    return request.with_pictures(lambda name, *_: data_url(Path(name).read_bytes())).to_dict()


def image_of(client, record: dict, index: int = 0) -> bytes:
    """Make a request over REST; the bytes of one of its images."""
    made = client.post("/v1/generations", json=record)
    assert made.status_code == 202, made.text
    job = wait(client, made.json()["id"])
    assert job["state"] == "done", job
    return client.get(job["images"][index]).content


def restored(client, data: bytes) -> dict:
    answer = client.post("/v1/restore", content=data, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("record", [REQUEST, OCCURRENCE], ids=["every field", "one of two words"])
def test_a_picture_made_here_comes_back_complete(client, folder, record):
    data = image_of(client, inlined(record), index=record.get("num_images", 1) - 1)
    found = restored(client, data)
    assert (found["missing"], found["notes"]) == ([], [])
    request = found["request"]
    assert list(request["subjects"]) == list(record["subjects"]), "their order decides values, too"
    settings = metadata_of(data, "it")["request"]
    assert {name: value for name, value in request.items() if name not in PICTURES} == {
        name: value for name, value in settings.items() if name not in PICTURES
    }
    for word, subject in record["subjects"].items():
        back = request["subjects"][word]
        assert [client.get(f"/v1/images/{name}").status_code for name in back["images"]] == [200] * len(back["images"])
        for name, source in zip(back["images"], subject["images"], strict=True):
            assert np.array_equal(pixels(client.get(f"/v1/images/{name}").content), pixels(Path(source).read_bytes()))
        if not isinstance(subject.get("region"), str):
            assert back["region"] == subject.get("region")
        assert (back["strength"], back["weights"]) == (subject.get("strength", 1.0), subject.get("weights"))
    assert np.array_equal(pixels(image_of(client, request)), pixels(data)), "the same picture again"


def test_a_multipart_upload_is_taken_and_the_service_takes_bytes_and_paths(client, service, folder):
    data = image_of(client, {"prompt": "a dog", "steps": 1, "seed": 5})
    parts = client.post("/v1/restore", files={"file": ("made.png", data, "image/png")}).json()
    Path("made.png").write_bytes(data)
    for found in (service.restore(data), service.restore("made.png"), service.restore(Path("made.png"))):
        assert found.fields == parts["request"] == restored(client, data)["request"]
    assert found.fields["seed"] == 5


def doors(engine, folder: Path, model, net) -> dict[str, Path]:
    """A picture of every door that works without a server."""
    from typer.testing import CliRunner

    from realcustom.cli.app import app

    record = {**REQUEST, "num_images": 1}
    result = engine.run(Request.from_dict(record))
    (folder / "python.png").write_bytes(png_bytes(result.images[0], result.metadata[0]))
    (folder / "jobs.jsonl").write_text(json.dumps({"id": "line", **record}))
    options = [*command_options(), "--num-images", "1", "--model", model, "--controlnet", net, "--out", "command.png"]
    for call in (
        ["generate", REQUEST["prompt"], *options],
        ["batch", "jobs.jsonl", "--out", "jobs", "--model", model, "--controlnet", net],
    ):
        done = CliRunner().invoke(app, list(map(str, call)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return {name: folder / name for name in ("python.png", "command.png", "jobs/line.png")}


def test_a_picture_of_another_door_restores_all_but_the_pictures_and_then_those(
    client, folder, engine, tiny_model, tiny_controlnet
):
    places = [["subjects", "dog, red", "images", 0], ["subjects", "dog, red", "images", 1]]
    places += [["subjects", "toy", "images", 0], ["subjects", "toy", "region"]]
    places += [["image"], ["hole"], ["controls", 0, "image"]]
    names = ["rex.png", "rex.png", "tom.png", "mask.png", "photo.png", "hole.png", "outline.png"]
    made = doors(engine, folder, tiny_model, f"outline={tiny_controlnet}")
    plain = {name: value for name, value in REQUEST.items() if name not in (*PICTURES, "num_images")}
    requests = []
    for name, path in made.items():
        found = restored(client, path.read_bytes())
        requests.append(found["request"])
        assert {field: found["request"][field] for field in plain} == plain, name
        assert found["notes"] == []
        assert [entry["place"] for entry in found["missing"]] == places, name
        assert len({entry["sha256"] for entry in found["missing"]}) == len(places), (
            "two files of one name are two pictures"
        )
        if name != "python.png":
            assert [entry["name"] for entry in found["missing"]] == names
            assert 'The reference of "dog, red" (rex.png) is not on this server' in found["missing"][0]["sentence"]
            assert 'The region of "toy" (mask.png) is not on this server' in found["missing"][3]["sentence"]
    refused = client.post("/v1/generations", json=requests[0])
    assert refused.status_code == 422
    assert "upload it first" in refused.json()["detail"], "nothing is made without what is missing"

    # One of two is there: it alone is restored. Then all are, and the first answer is right as it is.
    kept = client.post("/v1/images", content=Path("b/rex.png").read_bytes()).json()["id"]
    found = restored(client, made["command.png"].read_bytes())
    assert [entry["place"] for entry in found["missing"]] == [places[0], *places[2:]]
    assert found["request"]["subjects"]["dog, red"]["images"][1] == kept
    # The mask is paint on a transparent ground, which shows something else where it is no mask.
    for name in ("a/rex.png", "tom.png", "photo.png", "hole.png", "outline.png", "mask.png"):
        assert client.post("/v1/images", content=Path(name).read_bytes()).status_code == 201
    for name, request in zip(made, requests, strict=True):
        assert restored(client, made[name].read_bytes())["missing"] == []
        assert np.array_equal(pixels(image_of(client, request)), pixels(made[name].read_bytes())), name


def test_what_this_version_or_this_server_does_not_have_is_said(client):
    settings = metadata_of(image_of(client, {"prompt": "a dog", "steps": 1}), "it")
    settings["request"]["subjects"] = {"dog": {"images": [{"path": None, "sha256": "0" * 64}], "glow": 1}}
    settings["request"]["colour"] = "red"
    settings["model"]["model"] = "/somewhere/sdxl"
    found = restored(client, png_bytes(picture(0), settings))
    assert found["missing"][0]["sentence"] == 'The reference of "dog" is not on this server: upload it again.'
    assert found["request"]["subjects"]["dog"]["images"] == ["0" * 64]
    colour, glow, model = found["notes"]
    assert '"colour" is not known' in colour
    assert '"dog.glow" is not known' in glow
    assert model.startswith("It was made with model sdxl, ")
    assert "; this server has model tiny, " in model


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "This picture is not a PNG file that can be read."),
        (b"no picture", "This picture is not a PNG file that can be read."),
        (png(), "This picture carries no settings of realcustom"),
        (png_bytes(picture(0), {"request": [], "model": {}}), "This picture carries damaged settings."),
        (png_bytes(picture(0), {"request": {"prompt": "x"}, "model": 3}), None),
        (png_bytes(picture(0), {"request": {"prompt": "x", "steps": "many"}, "model": {}}), "The number of steps"),
        (png_bytes(picture(0), {"request": {"prompt": "x", "subjects": {"x": []}}, "model": {}}), "damaged"),
        (
            png_bytes(
                picture(0), {"request": {"prompt": "x", "subjects": {"x": {"images": [{"sha256": 1}]}}}, "model": {}}
            ),
            "damaged",
        ),
        (
            png_bytes(
                picture(0),
                {"request": {"prompt": "x", "subjects": {"x": {"images": [{"sha256": "0"}] * 500}}}, "model": {}},
            ),
            "damaged",
        ),
    ],
)
def test_what_is_no_such_picture_is_refused_in_a_sentence(client, data, sentence):
    answer = client.post("/v1/restore", content=data)
    assert answer.status_code == (200 if sentence is None else 422), answer.text
    assert sentence is None or sentence in answer.json()["detail"]


def test_a_text_that_is_nested_too_deeply_is_damaged(client):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("realcustom", "[" * 200_000)
    answer = client.post("/v1/restore", content=png(picture(0), pnginfo=info))
    assert (answer.status_code, answer.json()["detail"]) == (422, "This picture carries damaged settings.")
