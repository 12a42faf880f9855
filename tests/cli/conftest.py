"""A folder to work in, and the command line called in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import picture
from loopback import hub as hub

from realcustom.cli import main


@dataclass
class Outcome:
    code: int
    lines: list[str]
    error: str


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with the references rex.png and tom.png."""
    picture(0).save(tmp_path / "rex.png")
    picture(1).save(tmp_path / "tom.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def web(folder):
    """Address of a server of the working directory's files."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def realcustom(folder, capsys):
    """Calls the command line: realcustom("generate", "a dog", ...) -> exit code, lines of stdout, stderr."""

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(leaving.value.code, printed.out.split("\n")[:-1], printed.err)

    return call
