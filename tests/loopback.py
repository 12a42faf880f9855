"""A hub on this machine: answers what huggingface_hub asks, from folders, and counts what it sends."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = 1000  # bytes from which a file has its content's hash as its tag, as large files of the hub have


@dataclass
class Hub:
    """What the server knows and did.

    Attributes:
        repos: owner/name -> folder.
        tags: further revisions of all repositories besides "main" and the commit.
        gated, private: repositories that ask for a token.
        token: the one that opens them.
        cut: path -> bytes after which its sending breaks off; one more request for it is answered with 503.
        log: (method, path, Range header, bytes sent) of every request.
    """

    repos: dict[str, Path]
    url: str = ""
    tags: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    token: str = "hf_right"
    cut: dict[str, int] = field(default_factory=dict)
    log: list[tuple[str, str, str | None, int]] = field(default_factory=list)

    def fetched(self) -> dict[str, int]:
        """Bytes sent of every file, by its path in its repository."""
        sent: dict[str, int] = {}
        for method, path, _, count in self.log:
            match = FILE.fullmatch(path)
            if method == "GET" and match and count:
                sent[match[3]] = sent.get(match[3], 0) + count
        return sent

    def commit(self, repo: str) -> str:
        """A hash of the names and sizes of a repository's files."""
        text = "".join(f"{path} {size}\n" for path, size in self.files(repo).items())
        return hashlib.sha1(f"{repo}\n{text}".encode()).hexdigest()

    def files(self, repo: str) -> dict[str, int]:
        """Path -> bytes."""
        folder = self.repos[repo]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.stat().st_size for path in files}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        api, file = API.fullmatch(path), FILE.fullmatch(path)
        match = api or file
        if match is None:
            return self.refuse(404)
        repo, revision = match[1], match[2] or "main"
        if repo not in self.hub.repos:
            return self.refuse(401 if self.token is None else 404, "RepoNotFound")
        if repo in self.hub.gated | self.hub.private and self.token != self.hub.token:
            if self.token is not None:
                return self.refuse(403) if repo in self.hub.private else self.refuse(403, "GatedRepo")
            return self.refuse(401, "GatedRepo" if repo in self.hub.gated else "RepoNotFound")
        if revision not in {"main", self.hub.commit(repo), *self.hub.tags}:
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.describe(repo)
        if file[3] not in self.hub.files(repo):
            return self.refuse(404, "EntryNotFound")
        return self.send_file(repo, file[3], body)

    @property
    def token(self) -> str | None:
        value = self.headers.get("authorization")
        return None if value is None else value.removeprefix("Bearer ")

    def describe(self, repo: str) -> None:
        siblings = [{"rfilename": path, "size": size} for path, size in self.hub.files(repo).items()]
        record = {"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "siblings": siblings, "tags": []}
        data = json.dumps({**record, "private": False, "downloads": 0, "likes": 0}).encode()
        self.hub.log.append((self.command, self.path, None, len(data)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, repo: str, name: str, body: bool) -> None:
        data = (self.hub.repos[repo] / name).read_bytes()
        asked = self.headers.get("Range")
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        stop = len(data)
        if body and name in self.hub.cut:
            stop = self.hub.cut[name]
            if stop <= start:
                del self.hub.cut[name]
                return self.refuse(503)
        # Noted before the client can know: a test may look as soon as it does.
        self.hub.log.append((self.command, unquote(urlsplit(self.path).path), asked, stop - start if body else 0))
        kind = hashlib.sha256 if len(data) >= LARGE else hashlib.sha1
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", self.hub.commit(repo))
        self.send_header("ETag", f'"{kind(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:stop])
            if stop < len(data):
                self.close_connection = True

    def refuse(self, status: int, code: str | None = None) -> None:
        self.hub.log.append((self.command, self.path, None, 0))
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A running hub without repositories, which huggingface_hub takes for its own, and empty caches."""
    from huggingface_hub import constants

    hub = Hub({})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("REALCUSTOM_CACHE", str(tmp_path / "converted"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    server.shutdown()
    server.server_close()
