"""A Ray cluster of two CPUs on this machine, reachable from nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# Ray is an extra; `make test-ray` installs it.
collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    from realcustom.distributed.cluster import disconnect, start_local

    start_local(cpus=2)
    yield
    disconnect()
