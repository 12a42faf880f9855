"""Base64 and numbers as clients send them."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from conftest import picture

from realcustom.serving.base64_text import decode_base64
from realcustom.types import MAX_SEED, WHOLE_FIELDS

from .conftest import png, wait
from .test_rest import pixels

DATA = png()
PLAIN = base64.b64encode(DATA).decode()
SAFE = base64.urlsafe_b64encode(DATA).decode()
FORMS = {
    "plain": PLAIN,
    "data url": f"data:image/png;base64,{PLAIN}",
    "with a parameter": f"data:image/png;charset=utf-8;base64,{PLAIN}",
    "without a type": f"data:;base64,{PLAIN}",
    "upper case": f"DATA:image/png;BASE64,{PLAIN}",
    "percent": "data:image/png;base64," + PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "lines": base64.encodebytes(DATA).decode(),
    "windows lines in a url": "data:image/png;base64," + base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "url-safe": SAFE,
    "url-safe without padding": SAFE.rstrip("="),
    "without padding": PLAIN.rstrip("="),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_every_form_of_base64(idle_client, form):
    subject = {"images": [FORMS[form]]}
    made = idle_client.post("/v1/generations", json={"prompt": "a dog", "subjects": {"dog": subject}})
    assert made.status_code == 202, made.text
    (name,) = made.json()["request"]["subjects"]["dog"]["images"]
    assert np.array_equal(pixels(idle_client.get(f"/v1/images/{name}").content), np.asarray(picture(0)))
    region = idle_client.post(
        "/v1/generations",
        json={"prompt": "a dog", "subjects": {"dog": {"images": FORMS[form], "region": FORMS[form]}}},
    )
    assert region.status_code == 202, region.text


@pytest.mark.parametrize("rest", [b"", b"\0", b"\0\0"])
def test_bytes_of_any_length_with_both_special_signs(rest):
    data = bytes(range(256)) + rest
    assert decode_base64(base64.urlsafe_b64encode(data).decode().rstrip("=")) == data


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data:image/png,plain", "A data: URL of a picture must be base64"),
        ("data:image/png;base64", "A data: URL of a picture must be base64"),
        ("data:image/png;base64,%%%", "damaged or cut off"),
        (f"data:image/png;base64,{PLAIN.rstrip('=')[: len(PLAIN) // 4 * 4 - 7]}", "damaged or cut off"),
        (base64.b64encode(b"x" * 300).decode(), "is not an image that can be read"),
        ("rex", "neither the id of a picture"),
        ("rex.png", "neither the id of a picture"),
        ("../" * 40, "neither the id of a picture"),
    ],
)
def test_what_is_no_base64_is_refused_in_a_sentence(idle_client, text, sentence):
    made = idle_client.post("/v1/generations", json={"prompt": "a dog", "subjects": {"dog": text}})
    assert made.status_code == 422
    assert sentence in made.json()["detail"]


@pytest.mark.parametrize("name", [name for name, *_ in WHOLE_FIELDS])
def test_whole_numbers_may_be_written_as_floats(idle_client, name):
    value = {"num_images": 2}.get(name, 64)
    ask = {"prompt": "a dog", "steps": 1}
    made = idle_client.post("/v1/generations", content=json.dumps({**ask, name: float(value)}))
    assert made.status_code == 202, made.text
    assert json.dumps(made.json()["request"][name]) == str(value), "stored as the whole number it is"
    assert idle_client.get("/v1/generations", params={"limit": "1.0"}).status_code == 200
    refused = idle_client.post("/v1/generations", json={**ask, name: value + 0.5})
    assert refused.status_code == 422
    assert "must be a whole number" in refused.json()["detail"]


def test_the_seed_minus_one_is_drawn_told_and_kept(client):
    seeds = set()
    for seed in (-1, -1.0):
        made = client.post("/v1/generations", json={"prompt": "a dog", "steps": 1, "seed": seed}).json()
        drawn = made["request"]["seed"]
        assert 0 <= drawn <= MAX_SEED
        seeds.add(drawn)
        job = wait(client, made["id"])
        assert client.get(f"{job['images'][0]}/metadata").json()["request"]["seed"] == drawn
        data = client.get(job["images"][0]).content
        assert client.post("/v1/restore", content=data).json()["request"]["seed"] == drawn
    assert len(seeds) == 2
    assert client.post("/v1/generations", json={"prompt": "a dog", "seed": -2}).status_code == 422
    document = client.get("/v1/openapi.json").json()
    kinds = document["components"]["schemas"]["GenerationBody"]["properties"]["seed"]["anyOf"]
    assert {"type": "integer", "minimum": -1, "maximum": MAX_SEED} in kinds
