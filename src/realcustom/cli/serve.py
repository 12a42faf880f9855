"""`realcustom serve`."""

from __future__ import annotations

import os

import typer

from realcustom.cli.options import Place, loads_model
from realcustom.cli.serve_options import Bounds, Door, Engines, takes
from realcustom.engine.options import LoadOptions


@loads_model
@takes(door=Door, bounds=Bounds, engines=Engines)
def serve(*, door: Door, bounds: Bounds, engines: Engines, loading: LoadOptions) -> None:
    """Open the studio and the REST interface: http://127.0.0.1:7860 and /v1."""
    from realcustom.cli.console import load_engine, quiet

    door.check()
    engines.check()
    listener = _listen(door.host, door.port)
    quiet()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from realcustom.serving.app import create_app
        from realcustom.serving.connections import Unrepeated, listen
        from realcustom.serving.origins import check_origins
    except ImportError as error:
        raise ValueError(f"Serving needs more packages ({error.name}): install with the extra [serve].") from error
    from realcustom.serving import logs
    from realcustom.serving.service import Service

    holders, limits, hooks = door.holders(), bounds.limits(), door.hooks()
    check_origins(door.cors, bool(holders))
    logs.configure(bounds.log, bounds.log_prompts, Unrepeated())
    if engines.engine is Place.local:
        loaded = load_engine(loading, engines.batch_size)
    else:
        loaded = _on_ray(loading, engines)
    # A folder by its name: where it lies is nobody's business.
    name = os.path.basename(os.path.abspath(loading.model)) if os.path.isdir(loading.model) else loading.model
    service = Service(loaded, bounds.data, limits, name=name, hooks=hooks)
    app = create_app(service, holders=holders, origins=door.cors, root_path=door.root_path)
    shown = f"[{door.host}]" if ":" in door.host else door.host
    typer.echo(f"http://{shown}:{listener.getsockname()[1]}")
    listen(app, listener, limits.connections, service.drain)


def _on_ray(loading: LoadOptions, engines: Engines):
    """Replicas of the engine; a cluster that was started for them ends with this process."""
    from realcustom.cli.console import status
    from realcustom.distributed.ray_serve import deploy

    found = {**loading.located().to_dict(), "batch_size": engines.batch_size}
    with status(f"Deploying {loading.model} ..."):
        return deploy(
            found,
            address=engines.ray_address,
            replicas=engines.replicas,
            max_replicas=engines.max_replicas,
        )


def _listen(host: str, port: int):
    """A listening socket, before a model is loaded; ValueError if the address cannot be had."""
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host.strip("[]"), port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"The address {host}:{port} cannot be used: {reason}.") from error
