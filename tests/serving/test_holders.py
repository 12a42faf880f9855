"""Several tokens on one server: what each sees, may do, and how much of it."""

from __future__ import annotations

import pytest

from realcustom.serving.holders import read_holders, sha256_of

from .conftest import png

TOKENS = """
[alice]
token = "alice-secret"
per_minute = 3
priority = 2

[bob]
sha256 = "{bob}"
share = 0.5

[root]
token = "root-secret"
admin = true
priority = 9
"""
ASK = {"prompt": "a dog", "steps": 1}


@pytest.fixture
def doors(service, tmp_path):
    """A client for each token, on a queue that nobody works on."""
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app

    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS.format(bob=sha256_of("bob-secret")))
    app = create_app(service, studio=False, holders=read_holders(path))

    def door(name: str) -> TestClient:
        headers = {"authorization": f"Bearer {name}-secret"}
        return TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False)

    return {name: door(name) for name in ("alice", "bob", "root", "mallory")}


def listed(door) -> set[str]:
    return {job["id"] for job in door.get("/v1/generations").json()["generations"]}


def test_a_token_sees_and_cancels_only_what_it_made(doors):
    ids = {name: doors[name].post("/v1/generations", json=ASK).json()["id"] for name in ("alice", "bob")}
    assert listed(doors["alice"]) == {ids["alice"]}
    assert listed(doors["root"]) == set(ids.values())
    assert doors["mallory"].get("/v1/generations").status_code == 401
    for call in ("", "/events", "/images/0", "/images/0/metadata", "/images/0/masks/dog", "/images/0/masks/dog/steps"):
        assert doors["bob"].get(f"/v1/generations/{ids['alice']}{call}").status_code == 404, call
    for mark in ("/trash", "/images/0/favourite"):
        for method in ("PUT", "DELETE"):
            assert doors["bob"].request(method, f"/v1/generations/{ids['alice']}{mark}").status_code == 404, mark
    zipped = doors["bob"].get("/v1/gallery/zip", params={"picture": f"{ids['alice']}/0"})
    assert (zipped.status_code, zipped.json()["detail"][:22]) == (404, "There is no generation")
    assert doors["bob"].post(f"/v1/generations/{ids['alice']}/cancel").status_code == 404
    assert doors["bob"].delete(f"/v1/generations/{ids['alice']}").status_code == 404
    assert doors["alice"].get(f"/v1/generations/{ids['alice']}").json()["state"] == "queued"
    assert doors["root"].post(f"/v1/generations/{ids['alice']}/cancel").json()["state"] == "cancelled"


def test_characters_are_their_tokens(doors):
    picture = doors["alice"].post("/v1/images", content=png()).json()["id"]
    rex = {"name": "rex", "word": "dog", "images": [picture]}
    assert doors["alice"].post("/v1/characters", json=rex).status_code == 201
    assert doors["bob"].get("/v1/characters").json()["characters"] == []
    assert doors["bob"].get("/v1/characters/rex").status_code == 404
    assert doors["bob"].delete("/v1/characters/rex").status_code == 404
    assert doors["bob"].post("/v1/generations", json={"prompt": "@rex", "steps": 1}).status_code == 422
    assert doors["root"].delete("/v1/characters/rex").status_code == 204


def test_what_no_token_made_is_read_by_all_and_changed_by_the_admin(doors, service):
    picture = doors["alice"].post("/v1/images", content=png()).json()["id"]
    service.save_character({"name": "rex", "word": "dog", "images": [picture]})
    assert doors["bob"].get("/v1/characters/rex").status_code == 200
    assert doors["bob"].delete("/v1/characters/rex").status_code == 403
    assert doors["root"].delete("/v1/characters/rex").status_code == 204


def test_limits_a_minute_and_of_the_queue(doors):
    # The queue has four places, of which bob may fill two.
    assert [doors["bob"].post("/v1/generations", json=ASK).status_code for _ in range(3)] == [202, 202, 429]
    codes = [doors["alice"].post("/v1/generations", json=ASK) for _ in range(2)]
    assert [answer.status_code for answer in codes] == [202, 202]
    full = doors["root"].post("/v1/generations", json=ASK)
    assert (full.status_code, "queue is full" in full.json()["detail"]) == (429, True)
    for name in listed(doors["alice"]):
        doors["alice"].post(f"/v1/generations/{name}/cancel")
    assert doors["alice"].post("/v1/generations", json=ASK).status_code == 202
    slow = doors["alice"].post("/v1/generations", json=ASK)
    assert (slow.status_code, 50 <= int(slow.headers["retry-after"]) <= 61) == (429, True)


def test_priorities(doors, service):
    asked = [("bob", 0), ("alice", 0), ("alice", 2), ("root", 9)]
    ids = [doors[name].post("/v1/generations", json={**ASK, "priority": p}).json()["id"] for name, p in asked]
    assert [service.runner.position(name) for name in ids] == [2, 3, 1, 0]
    refused = doors["alice"].post("/v1/generations", json={**ASK, "priority": 3})
    assert (refused.status_code, "at most 2" in refused.json()["detail"]) == (422, True)


def test_a_key_is_one_generation(doors, service):
    first = doors["bob"].post("/v1/generations", json={**ASK, "seed": -1}, headers={"idempotency-key": "k 1"})
    again = doors["bob"].post("/v1/generations", json={**ASK, "seed": -1}, headers={"idempotency-key": "k 1"})
    assert first.json()["id"] == again.json()["id"]
    other = doors["bob"].post("/v1/generations", json=ASK, headers={"idempotency-key": "k 1"})
    assert (other.status_code, other.json()["detail"]) == (422, "This Idempotency-Key was used for another request.")
    whose = doors["root"].post("/v1/generations", json=ASK, headers={"idempotency-key": "k 1"})
    assert whose.json()["id"] != first.json()["id"], "another token's keys are its own"
    assert service.runner.waiting == 2
    assert doors["bob"].post("/v1/generations", json=ASK, headers={"idempotency-key": "x" * 256}).status_code == 422


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names none"),
        ("alice = 1", "needs a table"),
        ("[alice]\ntoken = 'short'", "at least 8 characters"),
        ("[alice]\n", "as token or as sha256"),
        ("[alice]\nsha256 = 'xyz'", "64 hex digits"),
        ("['a b']\ntoken = '12345678'", "letters, digits"),
        ("[alice]\ntoken = '12345678'\nspeed = 1", "'speed' is no setting"),
        ("[alice]\ntoken = '12345678'\nshare = 0", "must be above 0"),
        ("[a]\ntoken = '12345678'\n[b]\ntoken = '12345678'", "the same token"),
        ("[alice", "is no TOML"),
    ],
)
def test_files_of_tokens_that_are_refused(tmp_path, text, sentence):
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as refused:
        read_holders(path)
    assert "12345678" not in str(refused.value)
