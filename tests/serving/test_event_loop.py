"""Nothing waits for a disk or decodes a picture where all requests are served: one such wait would stop them all."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback

import pytest
from conftest import picture
from PIL import Image

from realcustom.serving.app import create_app
from realcustom.serving.store import Store

from .attacks import API, Attacker, file_value
from .conftest import data_url, png

pytest.importorskip("gradio")

PICTURE, OTHER = png(), png(picture(1))
SOURCE = ("realcustom", "PIL", "gradio")
waits: list[str] | None = None


def note(what: str) -> None:
    """Remember `what`, with those who did it, if it happens in an event loop."""
    if waits is not None and asyncio._get_running_loop() is not None:
        frames = traceback.extract_stack()[:-2]
        ours = [f"{frame.name} ({frame.lineno})" for frame in frames if any(name in frame.filename for name in SOURCE)]
        waits.append(f"{what}: {' > '.join(ours[-4:])}")


def watch(event: str, values: tuple) -> None:
    # Modules that are imported on their first use are read once.
    if event == "open" and not str(values[0]).endswith((".py", ".pyc", ".so")):
        note(f"open {values[0]}")


sys.addaudithook(watch)


@pytest.fixture
def watched(monkeypatch):
    """Files opened, pictures decoded or encoded and statements run in an event loop."""
    global waits
    for kind, name in ((Image.Image, "save"), (Image.Image, "resize"), (Image, "open"), (Store, "rows")):
        original = getattr(kind, name)

        def noted(*arguments, original=original, **options):
            note(original.__qualname__)
            return original(*arguments, **options)

        monkeypatch.setattr(kind, name, noted)
    yield lambda: waits
    waits = None


async def use_rest(client: Attacker) -> None:
    """Every route of /v1 once."""
    made = (await client.ask("POST", "/v1/images", body=PICTURE)).json()["id"]
    body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + PICTURE + b"\r\n--x--\r\n"
    await client.ask("POST", "/v1/images", body=body, kind="multipart/form-data; boundary=x")
    rex = {"name": "rex", "word": "dog", "images": [made]}
    assert (await client.post("/v1/characters", rex)).status == 201
    put = await client.ask("PUT", "/v1/characters/rex", body=json.dumps(rex).encode(), kind="application/json")
    assert put.status == 200
    ask = {"prompt": "a dog", "steps": 12, "subjects": {"dog": data_url(OTHER)}}
    job = (await client.post("/v1/generations", ask)).json()["id"]
    events = await client.ask("GET", f"/v1/generations/{job}/events")
    assert b"preview" in events.body
    assert b"event: end" in events.body
    for path in (
        f"/v1/images/{made}",
        f"/v1/images/{made}/face",
        "/v1/characters",
        "/v1/characters/rex",
        "/v1/generations",
        f"/v1/generations/{job}",
        f"/v1/generations/{job}/images/0",
        f"/v1/generations/{job}/images/0/metadata",
        f"/v1/generations/{job}/images/0/masks/dog",
        "/v1/models",
        "/v1/health",
        "/v1/metrics",
        "/v1/openapi.json",
    ):
        assert (await client.ask("GET", path)).status == 200, path
    await client.ask("POST", f"/v1/generations/{job}/cancel")
    await client.ask("DELETE", f"/v1/generations/{job}")
    await client.ask("DELETE", "/v1/characters/rex")


async def use_studio(client: Attacker) -> None:
    """Every function of the page once, with a picture in every field that takes one."""
    body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + PICTURE + b"\r\n--x--\r\n"
    (path,) = (await client.ask("POST", f"{API}/upload", body=body, kind="multipart/form-data; boundary=x")).json()
    assert (await client.ask("GET", f"{API}/file={path}")).body == PICTURE
    assert (await client.ask("GET", "/")).status == 200
    config = (await client.ask("GET", "/config")).json()
    kinds = {part["id"]: part["type"] for part in config["components"]}
    gallery = [{"image": file_value(path), "caption": None}]
    fillings = {"gallery": gallery, "file": file_value(path), "slider": 1, "number": 1, "textbox": "dog"}
    for function in config["dependencies"]:
        data = [fillings.get(kinds[part]) for part in function["inputs"]]
        record = {"fn_index": function["id"], "data": data, "session_hash": "guest"}
        await client.post(f"{API}/run/x", {**record, "event_data": {"index": 0, "value": None}})
        if function["queue"]:
            assert (await client.post(f"{API}/queue/join", record)).status == 200
    await client.ask("GET", f"{API}/queue/data", query="session_hash=guest")


@pytest.mark.parametrize("use", [use_rest, use_studio])
def test_no_disk_and_no_picture_in_the_event_loop(service, watched, use):
    app = create_app(service, studio=use is use_studio)

    async def run():
        global waits
        async with app.router.lifespan_context(app):
            waits = []
            await use(Attacker(app))
            found, waits = waits, None
            assert found == []

    asyncio.run(run())
