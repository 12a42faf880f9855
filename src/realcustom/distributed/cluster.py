"""Reaching a Ray cluster, and what of it one engine takes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realcustom.engine.engine import Engine

LOCAL_STORE = 256 * 2**20  # bytes of shared memory for a cluster of our own: only paths and notes travel through it

TRIES = 3  # to start a cluster
# Ray reads 127.0.0.1 as "the address that others reach this machine by", and its processes then listen everywhere,
# unless clusters of several machines are off, as they are by default on other systems than Linux.
SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
QUIET = {"logging_level": logging.ERROR, "log_to_driver": False}


@dataclass(frozen=True)
class Share:
    """What one engine reserves of a node: CPU cores, a fraction where there are fewer than engines, and GPUs."""

    cpus: float
    gpus: float


def import_ray():
    """The ray module, sending no usage statistics; ValueError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("This needs Ray: install realcustom with its extra [ray].") from error
    return ray


def connect(address: str | None = None) -> bool:
    """Join a cluster, or start one on this machine that nobody else can reach.

    Args:
        address: "auto", or host:port of the head node; None starts a new local cluster, unless this process has joined
            one already.

    Returns:
        whether a cluster was joined or started here, which `disconnect` then leaves.

    Raises:
        ValueError: Ray is not installed or there is no cluster at that address.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    if address is None:
        start_local()
        return True
    try:
        _check_reachable(address)
        ray.init(address, **QUIET)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f'There is no Ray cluster at "{address}".') from error
    return True


def _check_reachable(address: str) -> None:
    """ConnectionError where nothing listens at host:port, for which Ray itself would wait many minutes."""
    host, colon, port = address.rsplit("/", 1)[-1].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(address) from error


def start_local(cpus: int | None = None) -> None:
    """Start a cluster of this machine alone, with so many CPU cores (None: all there are), and join it."""
    ray = import_ray()
    _allow_machines(False)
    options = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": LOCAL_STORE}
    for left in reversed(range(TRIES)):
        try:
            ray.init("local", num_cpus=cpus, **options, **QUIET)
            return
        except Exception as error:
            # Ray gives its own processes 30 seconds, which a busy machine may not be able to keep.
            disconnect()
            _allow_machines(False)
            if not left or "timed out" not in str(error):
                raise


def disconnect() -> None:
    """Leave the cluster, and stop it if `connect` started it."""
    import_ray().shutdown()
    _allow_machines(True)


def _allow_machines(several: bool) -> None:
    """Whether clusters that are started from now on may have other machines; for this process and its children."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = several
    os.environ[SEVERAL_MACHINES] = str(int(several))


def keep_replica_here() -> None:
    """In the process of a replica, before it is ready: on a cluster of one machine its server, which runs whatever it
    is sent, listens to that machine only. Ray Serve has no setting for it."""
    if os.environ.get(SEVERAL_MACHINES) != "0":
        return
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


def share(workers: int | None) -> tuple[int, Share]:
    """How many engines the joined cluster gets, and what each of them reserves.

    One a GPU; without GPUs one for every two CPU cores. More engines than that share the cores. A core is left to
    Ray's own tasks where there is one to spare.
    """
    ray = import_ray()
    total: Mapping[str, Any] = ray.cluster_resources()
    cpus, gpus = float(total.get("CPU", 1.0)), int(total.get("GPU", 0))
    count = workers or gpus or max(1, int(cpus) // 2)
    free = cpus - 1 if cpus > 1 else cpus / 2
    # Fractions of a core only: an engine computes with as many threads as it reserves whole cores, and one thread
    # gives the same image everywhere.
    return count, Share(cpus=max(0.01, min(1.0, round(free / count, 2))), gpus=min(1.0, gpus / count) if gpus else 0.0)


def load_engine(loading: Mapping[str, Any]) -> Engine:
    """The engine of a worker; `loading` are the arguments of `Engine.load`."""
    import torch

    from realcustom.engine.engine import Engine

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the number of threads changes the last bits of an image
    return Engine.load(**loading)
