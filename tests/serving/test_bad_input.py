"""The table of bad inputs: each is a 4xx with its own sentence, and leaves nothing behind."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from .conftest import data_url, png

ASK = {"prompt": "a dog on the beach", "steps": 1}


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
BAD_PICTURES = {
    "no image": (b"hello", 422, "is not an image that can be read"),
    "truncated": (png()[:900], 422, "damaged or cut off"),
    "bomb": (bomb(), 413, "megapixel"),
    "too many pixels": (png(Image.new("RGB", (1200, 1000))), 413, "1200 x 1000 pixels, more than the 1 megapixels"),
    "empty": (b"", 422, "is empty (0 bytes)"),
    "svg": (SVG, 422, "is an SVG drawing; export it as PNG first"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
@pytest.mark.parametrize("door", ["upload", "multipart", "json"])
def test_pictures_that_are_none(idle_client, service, name, door):
    data, status, sentence = BAD_PICTURES[name]
    if door == "upload":
        answer = idle_client.post("/v1/images", content=data, headers={"content-type": "image/png"})
    elif door == "multipart":
        request = json.dumps({**ASK, "subjects": {"dog": "rex"}})
        answer = idle_client.post("/v1/generations", data={"request": request}, files={"rex": ("rex.png", data)})
    else:
        answer = idle_client.post("/v1/generations", json={**ASK, "subjects": {"dog": data_url(data)}})
    assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
    assert "\n" not in answer.json()["detail"]
    assert service.jobs.list() == []


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


GOOD_PICTURES = {
    "animated gif": _saved(picture(0), "GIF", save_all=True, append_images=[picture(1)]),
    "16 bit": _saved(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG"),
    "cmyk": _saved(picture(0).convert("CMYK"), "JPEG"),
    "transparent": _saved(picture(0).convert("RGBA"), "WEBP"),
}


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_pictures_of_unusual_kinds_become_plain_ones(idle_client, name):
    answer = idle_client.post("/v1/images", content=GOOD_PICTURES[name])
    assert answer.status_code == 201, answer.text
    kept = Image.open(io.BytesIO(idle_client.get(f"/v1/images/{answer.json()['id']}").content))
    assert (kept.format, kept.mode, getattr(kept, "n_frames", 1)) == ("PNG", "RGB", 1)


DOG = {"dog": data_url(png())}
BAD_FIELDS = [
    ({"prompt": "a dog " * 4000}, "24000 characters; 2000 is the most"),
    ({"prompt": "dog " * 400}, "shorten it by"),
    ({"prompt": ""}, "The prompt is empty."),
    ({"prompt": 7}, "The prompt must be text, not int."),
    ({"prompt": "a cat"}, '"dog" does not stand in the prompt "a cat"'),
    ({"prompt": "a dog\0"}, "null character"),
    ({"prompt": "a dog \ud800"}, "no"),
    ({"width": -64}, "The width must be a whole number from 8 to 8192, not -64."),
    ({"width": 60}, "The width must be a multiple of 8"),
    ({"width": 8192, "height": 8192}, "too large for this model"),
    ({"steps": 0}, "The number of steps must be"),
    ({"steps": 10**400}, "The number of steps must be"),
    ({"seed": 1.5}, "The seed must be a whole number"),
    ({"seed": "1"}, "The seed must be a whole number"),
    ({"num_images": 5}, "at most 4 images here"),
    ({"guidance_scale": float("inf")}, "The guidance scale must be a number"),
    ({"mask_scope": 0}, "The mask scope must be above 0"),
    ({"subjects": {"dog": {"images": DOG["dog"], "strength": float("nan")}}}, "strength of a subject must be a number"),
    ({"subjects": {"dog": {"images": DOG["dog"], "strength": -1}}}, "strength of a subject must be a number"),
    ({"subjects": {"dog": {"images": DOG["dog"], "weights": [0]}}}, "must be above 0"),
    ({"subjects": {"dog": {"images": DOG["dog"], "region": [0.5, 0, 0.2, 1]}}}, "region"),
    ({"subjects": {"dog": {"strength": 1}}}, "A subject needs at least one reference image."),
    ({"subjects": {"dog": []}}, "A subject needs at least one reference image."),
    ({"subjects": {"dog": 5}}, "A picture must be given by its id"),
    ({"subjects": {"dog": "../../etc/passwd"}}, "neither the id of a picture nor the name of a file"),
    ({"subjects": {"dog": "/etc/passwd"}}, "neither the id of a picture nor the name of a file"),
    ({"subjects": {"dog": "0" * 64}}, "upload it first"),
    ({"subjects": {"dog": "data:image/png;base64,%%%"}}, "damaged or cut off"),
    ({"subjects": dict.fromkeys("abcde", DOG["dog"])}, "5 subjects were given; 4 is the most."),
    ({"subjects": {"dog": [DOG["dog"]] * 17}}, "at most 16 pictures"),
    ({"subjects": [1]}, "subjects must be given as word -> image"),
    ({"colour": "red"}, "'colour' is no field of a request"),
    ({"model": "another"}, 'This server has the model "tiny"'),
    ({"describe_characters": 1}, "describe_characters must be true or false"),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_fields_that_make_no_sense(idle_client, service, fields, sentence):
    body = json.dumps({**ASK, "subjects": DOG, **fields})
    answer = idle_client.post("/v1/generations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert sentence in detail or sentence == "no"
    assert service.jobs.list() == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[1]", "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (b"nonsense", "multipart/form-data", 400),
        (b"x" * (2**20 + 1), "application/json", 413),
    ],
)
def test_bodies_that_cannot_be_read(idle_client, body, kind, status):
    for path in ("/v1/generations", "/v1/characters"):
        answer = idle_client.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].endswith(".")


def test_a_body_without_a_length_is_counted(idle_client):
    def stream():
        for _ in range(20):
            yield bytes(2**17)

    answer = idle_client.post("/v1/images", content=stream())
    assert answer.status_code == 413


TRAVERSALS = ("..%2f..%2fetc%2fpasswd", "%2e%2e", "a/../../b", "0" * 63, "A" * 64, "\u00e9", "x" * 150, "%00")


@pytest.mark.parametrize("name", TRAVERSALS)
def test_ids_lead_nowhere_else(idle_client, name):
    for path in (f"/v1/images/{name}", f"/v1/generations/{name}", f"/v1/generations/{name}/images/0"):
        assert idle_client.get(path).status_code in (404, 405)
    assert idle_client.get(f"/v1/characters/{name}").status_code in (404, 405)
    assert idle_client.delete(f"/v1/generations/{name}").status_code in (404, 405)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "../rex"}, "The name of a character has 1 to 40 letters"),
        ({"name": ""}, "The name of a character has 1 to 40 letters"),
        ({"word": " "}, "A character needs the word it reads as"),
        ({"images": []}, "A character needs at least one reference image."),
        ({"strength": float("nan")}, "The strength of a character must be a number"),
        ({"face_strength": 3}, "The face strength of a character must be a number from 0 to 2"),
        ({"description": "x" * 401}, "at most 400 characters"),
        ({"age": 3}, "'age' is no field of a character"),
    ],
)
def test_characters_that_make_no_sense(idle_client, service, fields, sentence):
    body = json.dumps({"name": "rex", "word": "dog", "images": [DOG["dog"]], **fields})
    answer = idle_client.post("/v1/characters", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, sentence in answer.json()["detail"]) == (422, True), answer.text
    assert service.cast.list() == []
