"""Pages of other sites: only those that were named, and never by a cookie."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from realcustom.serving.app import create_app
from realcustom.serving.origins import check_origins

TOKEN = "secret-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}
OURS, OTHER = "https://front.example", "https://front.example.evil.com"
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}


def client_of(service, token, origins, host="http://127.0.0.1"):
    app = create_app(service, token=token, studio=False, origins=origins)
    return TestClient(app, base_url=host, raise_server_exceptions=False)


def allowed(answer) -> str | None:
    return answer.headers.get("access-control-allow-origin")


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_named_page_may_ask_and_read(service, token):
    client = client_of(service, token, [OURS])
    asked = client.options("/v1/generations", headers={"origin": OURS, **ASKED})
    assert (asked.status_code, allowed(asked)) == (200, OURS), "before it has sent its token"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    headers = {"origin": OURS, "sec-fetch-site": "cross-site", **(BEARER if token else {})}
    made = client.post("/v1/generations", json={"prompt": "a dog"}, headers=headers)
    assert (made.status_code, allowed(made)) == (202, OURS)
    assert "Location" in made.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in made.headers
    assert "Origin" in made.headers["vary"]
    wrong = client.post("/v1/generations", json={"prompt": 1}, headers=headers)
    assert (wrong.status_code, allowed(wrong)) == (422, OURS), "a refusal can be read, too"


@pytest.mark.parametrize("origin", [OTHER, "http://front.example", "https://front.example:8443", "null", OURS.upper()])
def test_any_other_page_may_not(service, origin):
    open_client = client_of(service, None, [OURS])
    asked = open_client.options("/v1/generations", headers={"origin": origin, **ASKED})
    assert (asked.status_code, allowed(asked)) == (400, None)
    made = open_client.post("/v1/generations", json={"prompt": "a dog"}, headers={"origin": origin})
    assert (made.status_code, allowed(made)) == (403, None)
    guarded = client_of(service, TOKEN, [OURS])
    made = guarded.get("/v1/models", headers={"origin": origin, **BEARER})
    assert allowed(made) is None


def test_a_cookie_is_no_key_for_a_page_of_another_site(service):
    client = client_of(service, TOKEN, [OURS])
    cookie = {"cookie": f"realcustom_token={TOKEN}"}
    assert client.get("/v1/models", headers={"origin": OURS, **cookie}).status_code == 403
    assert client.get("/v1/models", headers=cookie).status_code == 200


def test_a_page_that_hides_its_name_is_foreign(service):
    client = client_of(service, None, [OURS])
    assert client.get("/v1/models", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": OURS, "host": "evil.example"}).status_code == 403


def test_every_page_needs_a_token_and_gets_no_cookies(service):
    client = client_of(service, TOKEN, ["*"], "http://studio.example")
    answer = client.get("/v1/models", headers={"origin": OTHER, **BEARER})
    assert (answer.status_code, allowed(answer)) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers
    refused = client.get("/v1/models", headers={"origin": OTHER, "cookie": f"realcustom_token={TOKEN}"})
    assert refused.status_code == 403
    with pytest.raises(ValueError, match="would let every web page use this server"):
        create_app(service, studio=False, origins=["*"])


def test_without_cors_nothing_is_allowed(idle_client):
    asked = idle_client.options("/v1/generations", headers={"origin": OURS, **ASKED})
    assert asked.status_code == 403
    assert allowed(asked) is None


def test_origins_are_read_as_browsers_write_them():
    given = ["https://Front.Example:443/", "http://localhost:3000", "http://[::1]:80", "http://localhost:3000/"]
    assert check_origins(given, False) == ("https://front.example", "http://localhost:3000", "http://[::1]")
    for wrong in ("front.example", "null", "https://a.example/page", "https://*.example", "ftp://a", "https://a:x", ""):
        with pytest.raises(ValueError, match="--cors takes an origin such as"):
            check_origins([wrong], True)


def test_the_command_line_refuses_what_is_no_origin(capsys):
    from realcustom.cli import main

    with pytest.raises(SystemExit) as leaving:
        main(["serve", "--port", "0", "--cors", "front.example"])
    assert leaving.value.code == 2
    assert "--cors takes an origin such as https://example.org" in capsys.readouterr().err
