"""Every route and every function of the studio, asked for files that are none of its business."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import picture

from realcustom.serving.app import create_app
from realcustom.serving.blobs import NotHere
from realcustom.serving.gate import page_file, studio_app, upload_folder

from .attacks import API, MARK, Attacker, calls, disguises, file_value, gradio_routes
from .conftest import png

pytest.importorskip("gradio")

TOKEN = "secret-token"
ENVIRONMENT = Path("/proc/self/environ")
# The routes of Gradio that the page needs. Each one more is one more to be attacked.
OPEN = {
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/manifest.json"),
    ("GET", "/static/{path:path}"),
    ("GET", "/assets/{path:path}"),
    ("GET", f"{API}/info"),
    ("GET", f"{API}/startup-events"),
    ("GET", f"{API}/heartbeat/{{session_hash}}"),
    ("GET", f"{API}/queue/data"),
    ("POST", f"{API}/queue/join"),
    ("POST", f"{API}/run/{{api_name}}"),
    ("POST", f"{API}/cancel"),
}
# Answered by our own code under Gradio's names.
OURS = {
    ("POST", f"{API}/upload"),
    ("GET", f"{API}/upload_progress"),
    ("GET", f"{API}/file={{path_or_url:path}}"),
    ("HEAD", f"{API}/file={{path_or_url:path}}"),
}


@pytest.fixture
def secrets(service, tmp_path, monkeypatch):
    """Paths of files that hold MARK: elsewhere, in the working folder, in that of temporary files, in the data folder,
    and links to one of them from folders that may be read."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    uploads, pictures = upload_folder(service), service.store.pictures.folder
    uploads.mkdir(exist_ok=True)
    files = [tmp_path / "outside.txt", tmp_path / "outside.png", work / "notes.txt", service.store.folder / "notes.txt"]
    with tempfile.NamedTemporaryFile(suffix=".txt") as temporary:
        files.append(Path(temporary.name))
        for file in files:
            file.write_bytes(MARK)
        (uploads / "link.png").symlink_to(files[0])
        (uploads / "folder").symlink_to(tmp_path)
        (pictures / "ab").mkdir(exist_ok=True)
        (pictures / "ab" / f"{'ab' * 32}.png").symlink_to(files[1])
        links = [uploads / "link.png", uploads / "folder" / "outside.txt", pictures / "ab" / f"{'ab' * 32}.png"]
        yield [*files, ENVIRONMENT, *links]


@pytest.fixture
def trap(tmp_path):
    """A pipe that nobody writes to, as slow to read as /dev/zero is long; whether it was opened is told by its list."""
    path, opened, done = tmp_path / "pipe.png", [], threading.Event()
    os.mkfifo(path)

    def watch():
        while not done.wait(0.05):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            opened.append(path)
            os.close(handle)

    thread = threading.Thread(target=watch)
    thread.start()
    yield path, opened
    done.set()
    thread.join()


def names_of(secrets: list[Path], service) -> list[str]:
    folder = upload_folder(service)
    return [*map(str, secrets), *disguises(secrets[0], folder), "http://127.0.0.1:1/x.png", str(service.store.folder)]


def leaks(body: bytes) -> bool:
    return MARK in body or ENVIRONMENT.read_bytes()[:60] in body


def copies(service, secrets: list[Path]) -> list[Path]:
    """Files of the data folder that hold what a spy wants, but for those put there above."""
    files = [path for path in service.store.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path not in secrets and leaks(path.read_bytes())]


def attack(service, token: str | None, spy) -> None:
    """Run `spy` with a client of the whole server; it knows the token where there is one."""
    app = create_app(service, token=token, studio=True)
    client = Attacker(app, {"authorization": f"Bearer {token}"} if token else None)

    async def run():
        async with app.router.lifespan_context(app):
            await spy(client)

    asyncio.run(run())


@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_function_reads_a_file_that_was_not_uploaded(service, secrets, trap, token):
    names = [*names_of(secrets, service), str(trap[0])]

    async def spy(client: Attacker) -> None:
        config = (await client.ask("GET", "/config")).json()
        asked = [(function, data, name) for name in names for function, data in calls(config, name)]
        # A bare text is a file to no function.
        texts = [(function, data, names[0]) for function, data in calls(config, names[0], text=True)]
        assert len(asked) > 1000
        for function, data, name in [*asked, *texts]:
            record = {"fn_index": function, "data": data, "session_hash": "spy"}
            answer = await client.post(f"{API}/run/x", record)
            assert not trap[1], f"function {function} opens {name}"
            assert not leaks(answer.body), f"function {function} shows {name}: {answer.body[:200]}"
            refused = answer.status in (400, 404) or name in data
            assert refused, f"function {function} is given {name}: {answer.body[:200]}"
        for function, data, name in asked[:: len(config["dependencies"])]:
            record = {"fn_index": function, "data": data, "session_hash": "spy", "event_data": file_value(name)}
            assert (await client.post(f"{API}/queue/join", record)).status in (400, 404)
        assert copies(service, secrets) == []

    attack(service, token, spy)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_route_shows_a_file_that_is_not_the_pages_own(service, secrets, trap, token):
    routes = sorted(set(gradio_routes(studio_app(service).routes)))
    names = [*names_of(secrets, service), str(trap[0]), "/dev/zero"]
    spellings = {spelling for name in names for spelling in (name, quote(name), quote(name, safe=""), name.lstrip("/"))}

    async def spy(client: Attacker) -> None:
        assert len(routes) > 60
        for method, route in routes:
            head, brace, rest = route.partition("{")
            for name in spellings if brace else [""]:
                path = head + name + rest.partition("}")[2].replace("{", "").replace("}", "")
                query = f"deep_link={quote(name)}&page={quote(name)}&session_hash=spy&url={quote(name)}"
                answer = await client.ask(method, path, query=query)
                assert not leaks(answer.body), f"{method} {path} shows {name}: {answer.body[:200]}"
                assert not trap[1], f"{method} {path} opens the pipe"
        assert copies(service, secrets) == []

    attack(service, token, spy)


def test_no_more_of_gradio_is_open_than_the_page_needs(service):
    routes = sorted(set(gradio_routes(studio_app(service).routes)))

    async def spy(client: Attacker) -> None:
        open_routes = set()
        for method, route in routes:
            path = route.replace("{session_hash}", "spy").replace("{api_name}", "x").replace("{path:path}", "x")
            answer = await client.ask(method, path.replace("{", "").replace("}", ""), kind="application/json")
            if answer.body != b'{"detail": "There is no such page."}':
                open_routes.add((method, route))
        assert open_routes == OPEN | OURS

    attack(service, None, spy)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_the_way_from_a_gallery_to_a_saved_state_is_closed(service, secrets, token):
    async def spy(client: Attacker) -> None:
        config = (await client.ask("GET", "/config")).json()
        for function in config["dependencies"]:
            data = [[{"image": file_value(str(secrets[0])), "caption": None}], 25, 10, 75, 60]
            record = {"fn_index": function["id"], "data": data, "session_hash": "spy"}
            await client.post(f"{API}/run/x", record)
        link = await client.ask("GET", f"{API}/deep_link", query="session_hash=spy")
        state = await client.ask("GET", "/", query=f"deep_link={link.body.decode('latin-1')[:64]}")
        assert not leaks(link.body + state.body)
        assert copies(service, secrets) == []
        assert link.status == 404

    attack(service, token, spy)


def test_what_was_uploaded_can_be_used_and_seen(service):
    body = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="../../my rex.png"\r\n\r\n'
        + png(picture(0))
        + b"\r\n--x--\r\n"
    )

    async def guest(client: Attacker) -> None:
        (path,) = (await client.ask("POST", f"{API}/upload", body=body, kind="multipart/form-data; boundary=x")).json()
        assert Path(path).is_relative_to(upload_folder(service))
        assert (await client.ask("GET", f"{API}/file={path}")).body == png(picture(0))
        config = (await client.ask("GET", "/config")).json()
        boxed = next(part["id"] for part in config["dependencies"] if part["api_name"] == "boxed")
        data = [[{"image": file_value(path), "caption": None}], 25, 10, 75, 60]
        drawn = await client.post(f"{API}/run/x", {"fn_index": boxed, "data": data, "session_hash": "guest"})
        assert drawn.status == 200, drawn.body
        shown = json.loads(drawn.body)["data"][0]
        assert (await client.ask("GET", f"{API}/file={shown['path']}")).body.startswith(b"\x89PNG")

    attack(service, None, guest)


def test_a_page_that_was_uploaded_is_not_shown_as_one(service):
    body = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.html"\r\n\r\n<script>1</script>\r\n--x--\r\n'
    )

    async def spy(client: Attacker) -> None:
        (path,) = (await client.ask("POST", f"{API}/upload", body=body, kind="multipart/form-data; boundary=x")).json()
        headers = (await client.ask("GET", f"{API}/file={path}")).headers
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"

    attack(service, None, spy)


def test_names_of_files_are_taken_by_their_letters(tmp_path):
    folder = Path(os.path.realpath(tmp_path)) / "studio"
    (folder / "a").mkdir(parents=True)
    good = folder / "a" / "rex.png"
    good.write_bytes(b"1")
    (folder / "a" / ".x.part").write_bytes(b"1")
    assert page_file([folder], str(good)) == good
    for name in (
        f"{folder}/a/../a/rex.png",
        f"{folder}/a",
        f"{folder}/a/.x.part",
        "rex.png",
        5,
        None,
        "a\0",
        "/" * 5000,
    ):
        with pytest.raises(NotHere):
            page_file([folder], name)
