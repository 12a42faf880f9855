"""Load on a server: python benchmarks/serving.py MODEL [CLIENTS] [REQUESTS]

Starts `realcustom serve` on a free port with a queue of 32. First CLIENTS (200) ask at the same moment; each must get
an image or a 429 with Retry-After. Then REQUESTS (1000) are made, as many at a time as the queue takes, and the
server's memory is measured after every hundred.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serving.servers import Server

QUEUE = 32
REFERENCE = Path(__file__).parents[1] / "examples" / "references" / "rex.png"
UNFINISHED = ("queued", "running")


async def generate(client: httpx.AsyncClient, record: dict, patience: float = 0.0) -> str:
    """One generation from asking to fetching its image: "image", "429", or what else happened."""
    end = time.monotonic() + patience
    while True:
        made = await client.post("/v1/generations", json=record)
        if made.status_code != 429:
            break
        if not made.headers["retry-after"].isdigit():
            return "429 without Retry-After"
        if time.monotonic() > end:
            return "429"
        await asyncio.sleep(min(0.5, float(made.headers["retry-after"])))
    if made.status_code != 202:
        return f"{made.status_code} {made.text[:80]}"
    job = made.json()
    while job["state"] in UNFINISHED:
        await asyncio.sleep(0.1)
        job = (await client.get(f"/v1/generations/{job['id']}")).json()
    if job["state"] != "done":
        return f"{job['state']} {job['error']}"
    image = await client.get(job["images"][0])
    return "image" if image.content.startswith(b"\x89PNG") else "no image"


async def burst(url: str, record: dict, clients: int) -> Counter:
    """Many clients at the same moment."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return Counter(await asyncio.gather(*(generate(client, {**record, "seed": seed}) for seed in range(clients))))


async def endurance(server: Server, record: dict, requests: int, every: int) -> tuple[Counter, list[tuple[int, float]]]:
    """Many requests one after the other; outcomes, and (done, MiB) at every so many."""
    outcomes: Counter = Counter()
    memory: list[tuple[int, float]] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for start in range(0, requests, every):
            seeds = asyncio.Queue()
            for seed in range(start, min(start + every, requests)):
                seeds.put_nowait(seed)

            async def work(seeds: asyncio.Queue = seeds) -> None:
                while not seeds.empty():
                    outcome = await generate(client, {**record, "seed": seeds.get_nowait()}, patience=600)
                    outcomes[outcome] += 1

            await asyncio.gather(*(work() for _ in range(8)))
            memory.append((sum(outcomes.values()), server.resident()))
    return outcomes, memory


def measure(model: str, clients: int, requests: int, every: int = 100) -> dict:
    """Both measurements on a fresh server."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, Path(folder) / "data", "--queue", str(QUEUE))
        try:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                dog = client.post("/v1/images", content=REFERENCE.read_bytes()).json()["id"]
            record = {"prompt": "a dog on the beach", "steps": 1, "subjects": {"dog": dog}}
            start = time.monotonic()
            first = asyncio.run(burst(server.url, record, clients))
            took = time.monotonic() - start
            start = time.monotonic()
            outcomes, memory = asyncio.run(endurance(server, record, requests, every))
            return {
                "burst": first,
                "burst_seconds": took,
                "outcomes": outcomes,
                "memory": memory,
                "per_second": requests / (time.monotonic() - start),
            }
        finally:
            server.kill()


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "miniature"
    clients, requests = (int(value) for value in (sys.argv[2:4] + ["200", "1000"][len(sys.argv[2:4]) :]))
    figures = measure(model, clients, requests)
    print(f"{clients} clients at once, queue of {QUEUE}: {dict(figures['burst'])} in {figures['burst_seconds']:.1f} s")
    print(f"{requests} requests: {dict(figures['outcomes'])}, {figures['per_second']:.1f} a second")
    for done, mebibytes in figures["memory"]:
        print(f"  after {done:5d} requests {mebibytes:7.1f} MiB")


if __name__ == "__main__":
    main()
