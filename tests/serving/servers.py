"""A real server in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


class Server:
    """`realcustom serve` on a free port of this machine, until it is stopped or killed."""

    def __init__(self, model: str, data: Path, *options: str, seconds: float = 600.0, files: int | None = None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", "from realcustom.cli import main; main()", "serve", "--port", "0"]
        command += ["--model", model, "--data", str(data), *options]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if files is not None:  # that it may open; long before it asks
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (files, files))
        self.lines: list[str] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(seconds):
            self.kill()
            raise AssertionError("the server did not start:\n" + "".join(self.lines))
        self.url = next(line for line in self.lines if line.startswith("http://")).strip()
        self._await_health(seconds)

    def kill(self) -> None:
        """What kill -9 does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """What a service manager does."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def resident(self) -> float:
        """MiB of memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("http://"):
                self._ready.set()

    def _await_health(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/v1/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server does not answer:\n" + "".join(self.lines))
