"""`realcustom serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli.characters import FOLDER
from realcustom.cli.options import Place, loads_model
from realcustom.engine.options import LoadOptions


@loads_model
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but this machine needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images made together; 1 on a CPU, 4 elsewhere.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="REALCUSTOM_TOKEN", help="Secret that every request must bring; other users can see it."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the secret, which nobody sees then.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of images, generations and characters.")] = FOLDER,
    queue: Annotated[int, typer.Option(min=1, help="Generations that may wait; one more is refused.")] = 32,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds a generation may take.")] = 600.0,
    max_upload: Annotated[float, typer.Option(min=0.01, help="MiB of one request.")] = 32.0,
    max_pixels: Annotated[float, typer.Option(min=0.01, help="Megapixels (2^20) of one picture.")] = 32.0,
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="Days that results are kept; default for ever.")
    ] = None,
    max_data: Annotated[
        float | None, typer.Option(min=0.001, help="GiB of --data; above it new requests are refused.")
    ] = None,
    max_connections: Annotated[int, typer.Option(min=16, help="Connections at one time.")] = 512,
    cors: Annotated[
        list[str],
        typer.Option(metavar="ORIGIN", help="Site whose pages may use this server: https://example.org; repeatable."),
    ] = [],  # noqa: B006
    engine: Annotated[Place, typer.Option(help="This process, or replicas on a Ray cluster.")] = Place.local,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Ray: engines, or the fewest; default one a GPU or two CPUs.")
    ] = None,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Ray: grow up to so many with the load.")] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray: cluster to use; default a new one on this machine."),
    ] = None,
    *,
    loading: LoadOptions,
) -> None:
    """Open the studio and the REST interface: http://127.0.0.1:7860 and /v1."""
    from realcustom.cli.console import load_engine, quiet
    from realcustom.serving.limits import Limits

    token = _read_token(token, token_file)
    _check_token(host, token)
    if engine is Place.local and (replicas or max_replicas):
        raise ValueError("--replicas and --max-replicas are for --engine ray; the local engine is one.")
    listener = _listen(host, port)
    limits = Limits(
        queue=queue,
        seconds=time_limit,
        upload_bytes=round(max_upload * 2**20),
        pixels=round(max_pixels * 2**20),
        keep_days=keep_days,
        data_bytes=None if max_data is None else round(max_data * 2**30),
        connections=max_connections,
    )
    quiet()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from realcustom.serving.app import create_app
        from realcustom.serving.connections import listen
        from realcustom.serving.origins import check_origins
    except ImportError as error:
        raise ValueError(f"Serving needs more packages ({error.name}): install with the extra [serve].") from error
    from realcustom.serving.service import Service

    check_origins(cors, token is not None)
    if engine is Place.local:
        loaded = load_engine(loading, batch_size)
    else:
        loaded = _on_ray(loading, batch_size, ray_address, replicas, max_replicas)
    # A folder by its name: where it lies is nobody's business.
    name = os.path.basename(os.path.abspath(loading.model)) if os.path.isdir(loading.model) else loading.model
    app = create_app(Service(loaded, data, limits, name=name), token, origins=cors)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{shown}:{listener.getsockname()[1]}")
    listen(app, listener, limits.connections)


def _read_token(token: str | None, path: Path | None) -> str | None:
    """The secret, from the file where one is given."""
    if path is None:
        return token
    if token is not None:
        raise ValueError("Give the token in one place: --token, REALCUSTOM_TOKEN or --token-file.")
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The token file {path} cannot be read.") from error


def _check_token(host: str, token: str | None) -> None:
    from realcustom.serving.guard import is_loopback

    if not is_loopback(host) and not token:
        raise ValueError(f"Other machines can reach {host}: choose a secret with --token, or listen on 127.0.0.1.")
    if token is not None and len(token) < 8:
        raise ValueError("The token must have at least 8 characters.")


def _on_ray(
    loading: LoadOptions, batch_size: int | None, address: str | None, replicas: int | None, max_replicas: int | None
):
    """Replicas of the engine; a cluster that was started for them ends with this process."""
    from realcustom.cli.console import status
    from realcustom.distributed.ray_serve import deploy

    found = {**loading.located().to_dict(), "batch_size": batch_size}
    with status(f"Deploying {loading.model} ..."):
        return deploy(found, address=address, replicas=replicas, max_replicas=max_replicas)


def _listen(host: str, port: int):
    """A listening socket, before a model is loaded; ValueError if the address cannot be had."""
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host.strip("[]"), port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"The address {host}:{port} cannot be used: {reason}.") from error
