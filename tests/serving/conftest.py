"""A service on a tiny random model, without and with a running server."""

from __future__ import annotations

import base64
import io

import pytest
from conftest import picture

pytest.importorskip("fastapi", reason="the serving packages are installed by make install")


@pytest.fixture(autouse=True)
def promises_are_kept(monkeypatch):
    """Whatever client of /v1 a test makes, each answer is held against the document."""
    from fastapi.testclient import TestClient

    from .promises import watched

    monkeypatch.setattr(TestClient, "send", watched(TestClient.send))


def png(image=None, **options) -> bytes:
    stream = io.BytesIO()
    (image or picture(0)).save(stream, format="PNG", **options)
    return stream.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def engine(tiny_model, tiny_controlnet):
    from realcustom import Engine

    return Engine.load(str(tiny_model), device="cpu", controlnet=f"outline={tiny_controlnet}")


@pytest.fixture
def service(engine, tmp_path):
    """A service whose queue is not being worked on until it is started."""
    from realcustom.serving.limits import Limits
    from realcustom.serving.service import Service

    limits = Limits(queue=4, seconds=60, upload_bytes=2**20, pixels=2**20, images=4)
    service = Service(engine, tmp_path / "data", limits, name="tiny")
    yield service
    service.stop()


@pytest.fixture
def client(service):
    """HTTP without a network on a service that works; no studio."""
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app

    with TestClient(
        create_app(service, studio=False), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as it:
        yield it


@pytest.fixture
def idle_client(service):
    """The same with a queue that nobody works on, so that what waits stays waiting."""
    from fastapi.testclient import TestClient

    from realcustom.serving.app import create_app

    app = create_app(service, studio=False)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def until(happens, seconds: float = 20.0) -> None:
    """Wait for a condition."""
    import time

    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def wait(client, name: str, seconds: float = 120.0) -> dict:
    """Poll a generation until it is finished."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = client.get(f"/v1/generations/{name}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError(f"not finished after {seconds} s: {job}")
