"""The engine on Ray Serve: replicas behind an object that behaves like `realcustom.engine.engine.Engine`.

The studio and the REST interface stand in front of it unchanged: queue, pictures and characters stay in one place, and
only the making of images is spread over the cluster. Nothing of Ray listens to HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from realcustom.checks import whole
from realcustom.distributed.cluster import connect, disconnect, import_ray, share
from realcustom.engine.knowledge import warnings_of
from realcustom.engine.requests import open_request, with_stand_ins
from realcustom.types import Cancelled, Progress, Request, Result

APP = "realcustom"
TRIES = 3  # of a run whose replica dies
WAIT_SECONDS = 0.02  # for others to share a batch


def deploy(
    loading: Mapping[str, Any],
    *,
    address: str | None = None,
    replicas: int | None = None,
    max_replicas: int | None = None,
) -> RayEngine:
    """Put engines on a cluster.

    Args:
        loading: arguments of `Engine.load`: {"model": ..., "adapter": ..., "device": ..., "dtype": ...,
            "batch_size": ...}; the model must be found on every node.
        address: see `realcustom.distributed.cluster.connect`.
        replicas: engines, or the fewest of them when they may grow; None is one a GPU, or for every two CPU cores.
        max_replicas: the most; None keeps their number. In between, their number follows the runs under way.

    Raises:
        ValueError: Ray is not installed, there is no such cluster, the numbers make no sense, or the model cannot be
            loaded.
    """
    if replicas is not None:
        whole("The number of replicas", replicas, 1, 10_000)
    if max_replicas is not None:
        whole("The most replicas", max_replicas, replicas or 1, 10_000)
    own = connect(address)
    try:
        from ray import serve

        from realcustom.distributed.replica import Replica

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        most, part = share(max_replicas or replicas)
        fewest = most if max_replicas is None else (replicas or 1)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        deployment = serve.deployment(
            Replica,
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": part.cpus, "num_gpus": part.gpus},
            **_scaling(fewest, most),
        )
        # Where every replica fails for the same reason, the reason is a wrong model: said before they are started.
        _check_loading(loading, part)
        handle = serve.run(deployment.bind(dict(loading), WAIT_SECONDS), name=APP, route_prefix=None)
        return RayEngine(handle, workers=most, own=own)
    except BaseException:
        if own:
            disconnect()
        raise


class RayEngine:
    """What doors need of an engine, answered by the replicas of a deployment, from any thread.

    Attributes:
        workers: runs that can be under way at the same time.
        batch_size, source: as of `realcustom.engine.engine.Engine`; every replica has the same.
    """

    def __init__(self, handle, workers: int, own: bool = False):
        self._handle, self._own = handle, own
        self.workers = workers
        facts = handle.facts.remote().result()
        self._describe = facts["describe"]
        self.batch_size: int = facts["batch_size"]
        self.source: dict[str, Any] = facts["source"]

    def describe(self) -> dict[str, Any]:
        """As `Engine.describe`."""
        return dict(self._describe)

    def warnings(self, prompt: str) -> tuple[str, ...]:
        """As `Engine.warnings`."""
        return warnings_of(prompt, self._describe.get("knows", {}))

    @property
    def grid(self) -> int:
        """As `Engine.grid`."""
        return self._describe["size_grid"]

    def resolve(self, request: Request) -> Request:
        """As `Engine.resolve`; pictures are opened here and do not travel."""
        opened = open_request(request)
        resolved, _ = self._resolved(opened)
        return replace(resolved, subjects=opened.subjects)

    def together(self, request: Request) -> tuple:
        """As `Engine.together`."""
        return self._resolved(request)[1]

    def preview(self, latents: Sequence[Image.Image]) -> list[Image.Image]:
        """The images of a `Progress`: replicas decode them, now and then, before they are sent."""
        return list(latents)

    def run(
        self,
        request: Request,
        progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """As `Engine.run`. Without `progress` and `cancelled` it shares a batch with whatever arrives with it."""
        if progress is None and cancelled is None:
            request = open_request(request)
            return _answer(*self._retried(lambda: self._handle.generate.remote(request).result()))

        def told(_: int, now: Progress) -> None:
            if progress is not None:
                progress(now)

        (result,) = self.run_many([request], told, cancelled and (lambda _: cancelled()))
        if isinstance(result, Cancelled):
            raise result
        return result

    def run_many(
        self,
        requests: Sequence[Request],
        progress: Callable[[int, Progress], None] | None = None,
        cancelled: Callable[[int], bool] | None = None,
    ) -> list[Result | Cancelled]:
        """As `Engine.run_many`, on one replica; begun again on another one if it dies."""
        requests = [open_request(request) for request in requests]
        return self._retried(lambda: self._run_many(requests, progress, cancelled))

    def close(self) -> None:
        """Take the replicas down, and the cluster if it was started for them."""
        from ray import serve

        serve.delete(APP)
        if self._own:
            serve.shutdown()
            disconnect()

    def _run_many(self, requests: list[Request], progress, cancelled) -> list[Result | Cancelled]:
        answers = self._handle.options(stream=True).stream.remote(requests)
        stopped: set[int] = set()
        for kind, value in answers:
            if kind != "progress":
                results = _answer(kind, value)
                return [_cancelled() if index in stopped else result for index, result in enumerate(results)]
            index, now = value
            if index not in stopped and progress is not None:
                progress(index, now)
            if index not in stopped and cancelled is not None and cancelled(index):
                stopped.add(index)
            if len(stopped) == len(requests):
                answers.cancel()
                break
        return [_cancelled() for _ in requests]

    def _resolved(self, request: Request) -> tuple[Request, tuple]:
        plain = with_stand_ins(request)
        return _answer(*self._retried(lambda: self._handle.resolve.remote(plain).result()))

    @staticmethod
    def _retried(call: Callable[[], Any]) -> Any:
        """The value of `call`, called again where a replica died: the same request makes the same image."""
        from ray.exceptions import RayActorError

        for left in reversed(range(TRIES)):
            try:
                return call()
            except RayActorError:
                if not left:
                    raise
        raise AssertionError


def _scaling(fewest: int, most: int) -> dict[str, Any]:
    if fewest == most:
        return {"num_replicas": most}
    # One run fills a replica, so every run under way beyond their number calls for one more.
    return {
        "autoscaling_config": {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": 1},
    }


def _check_loading(loading: Mapping[str, Any], part) -> None:
    ray = import_ray()
    check = ray.remote(num_cpus=part.cpus, num_gpus=part.gpus, max_calls=1)(_loading_problem)
    problem = ray.get(check.remote(dict(loading)))
    if problem is not None:
        raise ValueError(problem)


def _loading_problem(loading: dict[str, Any]) -> str | None:
    from realcustom.distributed.cluster import load_engine

    try:
        load_engine(loading)
    except ValueError as error:
        return str(error)
    return None


def _answer(kind: str, value: Any) -> Any:
    if kind == "done":
        return value
    raise ValueError(value) if kind == "refused" else RuntimeError(value)


def _cancelled() -> Cancelled:
    return Cancelled("The run was cancelled.")
