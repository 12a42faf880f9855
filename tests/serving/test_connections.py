"""Clients that say nothing, or read nothing: they keep nobody out, are closed in time, and fill no log."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from functools import partial

import httpx
import pytest
import uvicorn
from conftest import picture

from realcustom.serving import connections
from realcustom.serving.connections import BoundedProtocol, Unrepeated

from .attacks import API, file_value
from .conftest import png
from .servers import Server

HALF_OPEN = 1100


async def hello(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    large = b"x" * (20_000_000 if scope["path"] == "/large" else 5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(large))]})
    await send({"type": "http.response.body", "body": large})


async def with_server(most: int, client) -> None:
    """Run `client(port)` beside a small application behind our protocol."""
    config = uvicorn.Config(hello, http=partial(BoundedProtocol, most=most), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        await client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await serving


async def ask(port: int, path: str = "/") -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost:",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_a_client_that_stops_talking_is_closed(monkeypatch, begin):
    monkeypatch.setattr(connections, "HEADERS", 0.3)
    monkeypatch.setattr(connections, "BODY", 0.3)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        start = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert 0.2 < time.monotonic() - start < 2

    asyncio.run(with_server(10, client))


def test_a_client_that_sends_a_byte_now_and_then_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS", 0.5)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")
        start = time.monotonic()
        while not reader.at_eof() and time.monotonic() - start < 5:
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.1)
        assert time.monotonic() - start < 2

    asyncio.run(with_server(10, client))


def test_a_client_that_does_not_read_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "UNREAD", 0.3)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(20_000_000), 5)

    asyncio.run(with_server(10, client))


def test_silent_clients_keep_nobody_out_and_busy_ones_are_not_cut_off():
    async def client(port: int) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
        assert await ask(port) == 200
        for _, writer in opened:
            writer.close()
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        for _, writer in busy:
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nx")
        await asyncio.sleep(0.2)
        assert await ask(port) == 503
        busy[0][1].write(b"y")
        assert b"200" in await asyncio.wait_for(busy[0][0].readline(), 5)

    asyncio.run(with_server(10, client))


def test_a_connection_rests_longer_than_clients_keep_theirs(monkeypatch):
    """What the server closes at the moment when a client uses it again is an error that no client repeats."""
    monkeypatch.setattr(connections, "HEADERS", 0.2)
    assert connections.REST > 60

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await reader.readuntil(b"xxxxx")
            await asyncio.sleep(0.5)
        writer.write(b"GET / HTTP/1.1\r\n")
        start = time.monotonic()
        assert await asyncio.wait_for(reader.read(1), 5) == b"", "a head that does not end is late as ever"
        assert time.monotonic() - start < 2

    asyncio.run(with_server(10, client))


def test_a_resting_connection_gives_way():
    async def client(port: int) -> None:
        resting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        for reader, writer in resting:
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await reader.readuntil(b"xxxxx")
        assert await ask(port) == 200

    asyncio.run(with_server(10, client))


def test_a_connection_is_used_again_and_again(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS", 0.5)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(8):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await reader.readuntil(b"xxxxx")
            await asyncio.sleep(0.1)

    asyncio.run(with_server(10, client))


def test_a_log_does_not_repeat_itself():
    unrepeated = Unrepeated()
    records = [logging.LogRecord("a", 30, "", 0, "lost %s", (n,), None) for n in range(1000)]
    passed = [record for record in records if unrepeated.filter(record)]
    assert len(passed) == 5
    assert "not repeated" in passed[-1].getMessage()
    assert unrepeated.filter(logging.LogRecord("a", 30, "", 0, "another", (), None))


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    # What most systems allow a process.
    server = Server(str(tiny_model), tmp_path_factory.mktemp("connections") / "data", files=1024)
    yield server
    server.kill()


@pytest.mark.slow
def test_half_open_connections_end_no_server(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    held = []
    try:
        for _ in range(HALF_OPEN):
            held.append(socket.create_connection(address, timeout=10))
            held[-1].send(b"GET / HTTP/1.1\r\nhost:")
        for _ in range(5):
            assert httpx.get(f"{server.url}/v1/ready", timeout=5, trust_env=False).status_code == 200
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.process.poll() is None
    assert "out of system resource" not in "".join(server.lines), "accepting went on all the time"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/proc/self/mem"])
def test_no_device_stops_the_server(server, path):
    with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
        config = client.get("/config").json()
        function = next(part["id"] for part in config["dependencies"] if part["api_name"] == "boxed")
        data = [[{"image": file_value(path), "caption": None}], 25, 10, 75, 60]
        answer = client.post(f"{API}/run/x", json={"fn_index": function, "data": data, "session_hash": "spy"})
        assert answer.status_code == 404
        assert client.get("/v1/ready").status_code == 200
        assert client.post("/v1/images", content=png(picture(3))).status_code == 201
