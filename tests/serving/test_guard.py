"""Headers made to confuse, foreign pages, proxies, and those who guess tokens."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fastapi.testclient import TestClient

from realcustom.serving import guard
from realcustom.serving.app import create_app

TOKEN = "secret-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}
COOKIE = {"cookie": f"realcustom_token={TOKEN}"}


@pytest.fixture
def guarded(service):
    """A client of a server with a token."""
    app = create_app(service, token=TOKEN, studio=False)
    return TestClient(app, base_url="http://studio.example", follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture
def waited(monkeypatch):
    """Seconds that the guard lets somebody wait; nobody really waits."""
    seconds, sleep = [], asyncio.sleep

    async def noted(delay, *rest):
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(guard.asyncio, "sleep", noted)
    return seconds


@pytest.mark.parametrize(
    "host", ["[::1", "[", "]", "a]b", "[::1]]", "\x7f", "127.0.0.1:x", "127.0.0.1.evil.example", ""]
)
def test_a_host_that_cannot_be_read_is_none_of_ours(idle_client, guarded, host):
    assert idle_client.get("/v1/models", headers={"host": host}).status_code in (200, 403)
    assert guarded.get("/v1/models", headers={**BEARER, "host": host}).status_code == 200


def test_the_names_of_this_machine(idle_client):
    for host in ("127.0.0.1", "localhost:7860", "[::1]", "[::1]:7860"):
        assert idle_client.get("/v1/models", headers={"host": host}).status_code == 200, host
    assert idle_client.get("/v1/models", headers={"host": "[::1"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://[::1", "http://", "null", "http://evil.example", "http://studio.example.evil.com"]
)
def test_an_origin_that_is_not_ours_is_foreign(idle_client, guarded, origin):
    assert idle_client.get("/v1/models", headers={"origin": origin}).status_code == 403
    assert guarded.get("/v1/models", headers={**COOKIE, "origin": origin}).status_code == 403


@pytest.mark.parametrize("other", ["a=b", 'bad"cookie', "=", "a b c", "realcustom_token=wrong", "x={}[]", "\x7f=1"])
def test_cookies_of_others_do_not_hide_ours(guarded, other):
    for cookie in (f"{other}; realcustom_token={TOKEN}", f"realcustom_token={TOKEN}; {other}"):
        assert guarded.get("/v1/models", headers={"cookie": cookie}).status_code == 200, cookie
    assert guarded.get("/v1/models", headers={"cookie": other}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "10.0.0.5:7860", "origin": "https://studio.example", "sec-fetch-site": "same-origin"}, 422),
        ({"host": "10.0.0.5:7860", "origin": "https://studio.example", "x-forwarded-host": "studio.example"}, 422),
        ({"host": "10.0.0.5:7860", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example", "origin": "https://evil.example", "sec-fetch-site": "same-site"}, 403),
        ({"host": "10.0.0.5:7860", "origin": "https://studio.example"}, 403),
    ],
)
def test_behind_a_proxy_that_rewrites_the_host(guarded, headers, status):
    assert guarded.post("/v1/generations", json={}, headers={**COOKIE, **headers}).status_code == status


def test_a_link_to_the_page_may_be_followed(idle_client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert idle_client.get("/v1/models", headers=headers).status_code == 200
    assert idle_client.get("/v1/models", headers={"sec-fetch-site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    ("base", "headers", "secure"),
    [
        ("http://studio.example", {}, False),
        ("https://studio.example", {}, True),
        ("http://10.0.0.5", {"x-forwarded-proto": "https"}, True),
    ],
)
def test_the_cookie_stays_with_tls(service, base, headers, secure):
    client = TestClient(create_app(service, token=TOKEN, studio=False), base_url=base, follow_redirects=False)
    cookie = client.get(f"/?token={TOKEN}", headers=headers).headers["set-cookie"]
    assert ("Secure" in cookie, "HttpOnly" in cookie, "SameSite=Strict" in cookie) == (secure, True, True)


def test_wrong_tokens_are_slowed_and_logged_and_right_ones_are_not(guarded, waited, caplog):
    with caplog.at_level(logging.WARNING, logger=guard.__name__):
        for attempt in range(8):
            answer = guarded.get("/v1/models", headers={"authorization": f"Bearer wrong-{attempt}"})
            assert (answer.status_code, answer.json()["detail"]) == (401, "The token is wrong.")
    assert waited[:3] == [0, 0, 0]
    assert waited[3:] == sorted(waited[3:])
    assert waited[-1] == guard.SLOWEST
    assert "wrong token from testclient (8 in all)" in caplog.text
    assert "wrong-7" not in caplog.text
    before = len(waited)
    assert guarded.get("/v1/models", headers=BEARER).status_code == 200
    assert guarded.get("/v1/models").status_code == 401, "a missing token is no guess"
    assert len(waited) == before
    assert "The token is wrong." in guarded.get("/?token=<b>", headers={"accept": "text/html"}).text


def test_every_answer_tells_browsers_what_it_is_not(guarded):
    for headers in ({}, BEARER, {"accept": "text/html"}):
        for path in ("/v1/models", "/v1/nothing", "/", "/v1/health"):
            answer = guarded.get(path, headers=headers)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_wrong_method_is_405_and_says_which_are_right(service):
    client = TestClient(create_app(service, studio=True), base_url="http://127.0.0.1")
    for method, path in (
        ("PATCH", "/v1/generations"),
        ("HEAD", "/v1/models"),
        ("PUT", "/v1/images"),
        ("POST", "/v1/health"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, "allow" in answer.headers) == (405, True), path
    assert client.get("/v1/nothing").status_code == 404


def test_a_token_in_a_file(tmp_path):
    from realcustom.cli.serve_options import Door

    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    for door in (Door(token_file=path), Door(token=TOKEN)):
        assert door.holders().find(TOKEN).admin
        assert door.holders().find(f"{TOKEN}\n") is None
    with pytest.raises(ValueError, match="in one place"):
        Door(token=TOKEN, token_file=path).holders()
    with pytest.raises(ValueError, match="cannot be read"):
        Door(token_file=tmp_path / "missing").holders()
    with pytest.raises(ValueError, match="choose a secret"):
        Door(host="0.0.0.0").check()
    with pytest.raises(ValueError, match="at least 8"):
        Door(token="short").holders()
