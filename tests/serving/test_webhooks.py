"""Who is told that a generation has ended: listed hosts, with a signature, once."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from realcustom.serving import webhooks
from realcustom.serving.limits import Limits
from realcustom.serving.webhooks import HookRules, send

from .conftest import until, wait

ASK = {"prompt": "a dog", "steps": 1}


@pytest.fixture
def hook():
    """A server of this machine that keeps what it is sent; its answers are set by `answers`."""
    received, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, dict(self.headers), body))
            status = answers.pop(0) if answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.received, server.answers = received, answers
    server.url = f"http://127.0.0.1:{server.server_port}/hook?a=1"
    yield server
    server.shutdown()


@pytest.fixture
def client(engine, tmp_path):
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app
    from realcustom.serving.service import Service

    rules = HookRules(hosts=("127.0.0.0/8", "hooks.example.org"), secret="s" * 20)
    service = Service(engine, tmp_path / "data", Limits(), name="tiny", hooks=rules)
    with TestClient(create_app(service, studio=False), base_url="http://127.0.0.1") as it:
        it.service = service
        yield it


def test_the_end_is_told_once_with_a_signature(client, hook):
    name = wait(client, client.post("/v1/generations", json={**ASK, "webhook": hook.url}).json()["id"])["id"]
    until(lambda: client.service.jobs.get(name).told == 1)
    ((path, headers, body),) = hook.received
    headers = {key.lower(): value for key, value in headers.items()}
    assert path == "/hook?a=1"
    signed = headers["x-realcustom-timestamp"].encode() + b"." + body
    expected = hmac.new(b"s" * 20, signed, hashlib.sha256).hexdigest()
    assert headers["x-realcustom-signature"] == f"sha256={expected}"
    told = json.loads(body)
    assert (told["event"], told["generation"]["id"], told["generation"]["state"]) == ("end", name, "done")


def test_it_is_tried_again_but_not_for_ever(client, hook, monkeypatch):
    monkeypatch.setattr(webhooks, "TRIES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(webhooks, "LOOK", 0.05)
    hook.answers += [500, 503]
    name = client.post("/v1/generations", json={**ASK, "webhook": hook.url}).json()["id"]
    until(lambda: client.service.jobs.get(name).told == 1)
    assert len(hook.received) == 3
    hook.answers += [500] * 9
    name = client.post("/v1/generations", json={**ASK, "webhook": hook.url}).json()["id"]
    until(lambda: client.service.jobs.get(name).told == -1)
    assert len(hook.received) == 6


def test_redirects_are_not_followed(hook):
    hook.answers.append(302)
    with pytest.raises(ConnectionError, match="302"):
        send(HookRules(hosts=("127.0.0.1",)), hook.url, "x", {})
    assert [path for path, *_ in hook.received] == ["/hook?a=1"]


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example.org/",
        "https://hooks.example.org@evil.example/",
        "https://hooks.example.org.evil.example/",
        "ftp://hooks.example.org/",
        "file:///etc/hostname",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "http://hooks.example.org:99999/",
        "http://hooks.example.org/a b",
        "http://[::1",
        7,
        "",
    ],
)
def test_other_addresses_are_refused(client, url):
    answer = client.post("/v1/generations", json={**ASK, "webhook": url})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    "number", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
)
def test_a_listed_name_may_not_lead_inside(number, monkeypatch):
    def found(host, port, **_):
        return [(None, None, None, "", (number, port))]

    monkeypatch.setattr(webhooks.socket, "getaddrinfo", found)
    with pytest.raises(ConnectionError, match="private"):
        send(HookRules(hosts=("hooks.example.org",)), "http://hooks.example.org/", "x", {})
    assert HookRules(hosts=("hooks.example.org", "10.0.0.0/8")).choose(["8.8.8.8"]) == "8.8.8.8"


def test_without_listed_hosts_there_are_no_webhooks():
    with pytest.raises(ValueError, match="tells no webhooks"):
        HookRules().check("https://hooks.example.org/")
