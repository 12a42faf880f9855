"""What an operator relies on: readiness, draining, logs, traces."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
import threading
import time

import httpx
import pytest

from realcustom.serving import logs
from realcustom.serving.log_form import LogForm

from .conftest import until, wait
from .servers import Server

ASK = {"prompt": "a dog on the beach", "steps": 2}


@pytest.fixture
def lines(request):
    """What `configure` writes."""
    form, prompts = request.param
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    with contextlib.redirect_stderr(stream):
        logs.configure(form, prompts)
    yield lambda: stream.getvalue().splitlines()
    root.handlers[:] = before
    for log in (logs.access, logs.generations):
        log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("lines", [(LogForm.json, False)], indirect=True)
def test_a_line_a_request_and_a_line_a_generation(client, lines):
    headers = {"x-request-id": "order-66"}
    answer = client.post("/v1/generations", json=ASK, headers=headers)
    assert answer.headers["x-request-id"] == "order-66"
    name = wait(client, answer.json()["id"])["id"]
    until(lambda: any('"generation"' in line for line in lines()))
    records = [json.loads(line) for line in lines()]
    (made,) = [record for record in records if record["message"] == "generation"]
    assert (made["id"], made["state"], made["request_id"]) == (name, "done", "order-66")
    assert (made["width"], made["height"], made["steps"], made["images"], made["batch"]) == (64, 64, 2, 1, 1)
    assert made["ran_s"] > 0
    assert made["waited_s"] >= 0
    first = next(record for record in records if record["message"] == "request")
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/generations", 202)
    assert first["request_id"] == "order-66"
    assert first["bytes"] == len(answer.content)
    assert "beach" not in "".join(lines())


@pytest.mark.parametrize("lines", [(LogForm.text, True)], indirect=True)
def test_prompts_are_written_where_they_are_asked_for(client, lines):
    wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    until(lambda: any('prompt="a dog on the beach"' in line for line in lines()))


@pytest.mark.parametrize("lines", [(LogForm.text, False)], indirect=True)
def test_neither_tokens_nor_words_nor_lines_of_a_client_get_into_the_log(client, lines):
    client.get("/v1/generations/x/images/0/masks/secretword")
    client.get("/v1/generations?token=secretsecret")
    client.get("/v1/a%0AFORGED line")
    answer = client.get("/v1/health", headers={"x-request-id": "no good\tid"})
    assert answer.headers["x-request-id"] != "no good\tid"
    written = lines()
    assert not any("secret" in line or line.startswith("FORGED") for line in written)
    assert len([line for line in written if "realcustom.access" in line]) == 4


@pytest.mark.parametrize("lines", [(LogForm.quiet, False)], indirect=True)
def test_quiet_is_quiet(client, lines):
    wait(client, client.post("/v1/generations", json=ASK).json()["id"])
    assert not [line for line in lines() if "realcustom" in line]


def test_spans_of_a_request_and_of_its_generation(client):
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    theirs = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{theirs}-b7ad6b7169203331-01", "x-request-id": "seven"}
    wait(client, client.post("/v1/generations", json=ASK, headers=headers).json()["id"])
    until(lambda: any(span.name == "generate" for span in exporter.get_finished_spans()))
    spans = exporter.get_finished_spans()
    (generate,) = [span for span in spans if span.name == "generate"]
    post = next(span for span in spans if span.name == "POST")
    assert post.attributes["realcustom.request_id"] == "seven"
    assert post.attributes["http.response.status_code"] == 202
    assert f"{generate.context.trace_id:032x}" == f"{post.context.trace_id:032x}" == theirs
    parents = {span.context.span_id: span.parent and span.parent.span_id for span in spans}
    above = [generate.parent.span_id]
    while parents.get(above[-1]):
        above.append(parents[above[-1]])
    assert post.context.span_id in above
    assert "beach" not in "".join(span.to_json() for span in spans)


def test_draining_refuses_what_is_new_and_finishes_what_runs(client, service):
    name = client.post("/v1/generations", json={**ASK, "steps": 30}).json()["id"]
    until(lambda: client.get(f"/v1/generations/{name}").json()["state"] == "running")
    later = client.post("/v1/generations", json={**ASK, "seed": 1}).json()["id"]
    draining = threading.Thread(target=service.drain)
    draining.start()
    until(lambda: service.runner.draining)
    refused = client.post("/v1/generations", json=ASK)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert client.get("/v1/ready").status_code == 503
    assert client.get("/v1/health").status_code == 200
    draining.join()
    assert client.get(f"/v1/generations/{name}").json()["state"] == "done"
    assert client.get(f"/v1/generations/{later}").json()["state"] == "queued"


@pytest.mark.slow
def test_sigterm_ends_streams_with_an_event_and_hands_back_what_is_not_finished(tiny_model, tmp_path):
    server = Server(str(tiny_model), tmp_path / "data", "--drain", "1")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        name = client.post("/v1/generations", json={**ASK, "steps": 1000, "num_images": 16}).json()["id"]
        until(lambda: client.get(f"/v1/generations/{name}").json()["step"] > 0)
        events, news = [], []

        def watch(path: str, seen: list[str]) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as other, other.stream("GET", path) as stream:
                seen.extend(line for line in stream.iter_lines() if line.startswith("event:"))

        watchers = [
            threading.Thread(target=watch, args=pair)
            for pair in ((f"/v1/generations/{name}/events", events), ("/v1/events", news))
        ]
        for watcher in watchers:
            watcher.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert client.post("/v1/generations", json=ASK).status_code == 503
        assert client.get("/v1/ready").json()["problems"] == ["This server is being stopped."]
    for watcher in watchers:
        watcher.join(30)
    server.process.wait(30)
    assert events[-1] == news[-1] == "event: stopping"
    again = Server(str(tiny_model), tmp_path / "data")
    with httpx.Client(base_url=again.url, timeout=60) as client:
        job = client.get(f"/v1/generations/{name}").json()
        assert job["state"] in ("queued", "running")
        assert job["attempts"] <= 1, "a stop is no crash"
        client.post(f"/v1/generations/{name}/cancel")
    again.stop()


def test_paths_begin_with_the_one_that_a_proxy_cuts_off(service):
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app

    app = create_app(service, token="a-long-secret", studio=False, root_path="/pictures")
    client = TestClient(app, base_url="http://127.0.0.1", headers={"authorization": "Bearer a-long-secret"})
    answer = client.post("/v1/generations", json=ASK)
    assert answer.headers["location"] == f"/pictures/v1/generations/{answer.json()['id']}"
    stranger = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    opened = stranger.get("/?token=a-long-secret")
    assert (opened.status_code, opened.headers["location"]) == (303, "/pictures/")
    assert "Path=/pictures/" in opened.headers["set-cookie"]
    assert client.get("/v1/openapi.json").json()["servers"] == [{"url": "/pictures"}]
    assert stranger.get("/v1/health").status_code == 200
    assert stranger.get("/v1/generations").status_code == 401
