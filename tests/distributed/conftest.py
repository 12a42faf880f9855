"""A Ray cluster of two CPUs on this machine, reachable from nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

ray = pytest.importorskip("ray", reason="Ray is an extra: make test-ray")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    from realcustom.distributed.cluster import LOCAL_STORE, import_ray

    import_ray().init(
        "local",
        num_cpus=2,
        object_store_memory=LOCAL_STORE // 2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
