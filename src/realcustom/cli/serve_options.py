"""The options of `realcustom serve`, in groups, and what they mean together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from realcustom.cli.characters import FOLDER
from realcustom.cli.options import Place
from realcustom.serving.log_form import LogForm

if TYPE_CHECKING:
    from realcustom.serving.holders import Holders
    from realcustom.serving.limits import Limits
    from realcustom.serving.webhooks import HookRules


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server listens, and to whom."""

    host: Annotated[str, typer.Option(help="Address to listen on; anything but this machine needs a token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860
    root_path: Annotated[str, typer.Option(help="Path under which a proxy shows the server, as /pictures.")] = ""
    token: Annotated[
        str | None,
        typer.Option(envvar="REALCUSTOM_TOKEN", help="Secret that every request must bring; other users can see it."),
    ] = None
    token_file: Annotated[Path | None, typer.Option(help="File that holds the secret, which nobody sees then.")] = None
    tokens: Annotated[
        Path | None, typer.Option(help="TOML file of several tokens with names and limits, instead of one.")
    ] = None
    cors: Annotated[
        list[str],
        typer.Option(metavar="ORIGIN", help="Site whose pages may use this server: https://example.org; repeatable."),
    ] = ()
    webhook_host: Annotated[
        list[str],
        typer.Option(metavar="HOST", help="Host or network that generations may tell of their end; may be repeated."),
    ] = ()
    webhook_secret: Annotated[Path | None, typer.Option(help="File that holds the secret of their signatures.")] = None

    def check(self) -> None:
        """ValueError where other machines could come in without a token, or a path is none."""
        from realcustom.serving.guard import is_loopback

        holders = self.holders()
        if not is_loopback(self.host) and not holders:
            raise ValueError(f"Other machines can reach {self.host}: choose a secret with --token, or 127.0.0.1.")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ValueError(f'--root-path must look like /pictures, not "{self.root_path}".')

    def holders(self) -> Holders:
        """Whose requests are answered."""
        from realcustom.serving.holders import SHORTEST, read_holders, single

        if sum(source is not None for source in (self.token, self.token_file, self.tokens)) > 1:
            raise ValueError("Give the token in one place: --token, REALCUSTOM_TOKEN, --token-file or --tokens.")
        if self.tokens is not None:
            return read_holders(self.tokens)
        token = self.token if self.token_file is None else _secret(self.token_file, "token")
        if token is not None and len(token) < SHORTEST:
            raise ValueError(f"The token must have at least {SHORTEST} characters.")
        return single(token)

    def hooks(self) -> HookRules:
        """Who may be told."""
        from realcustom.serving.webhooks import HookRules

        if not self.webhook_host:
            return HookRules()
        if self.webhook_secret is None:
            raise ValueError("--webhook-host needs --webhook-secret, a file with the secret of the signatures.")
        return HookRules(hosts=tuple(self.webhook_host), secret=_secret(self.webhook_secret, "secret"))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much the server takes, keeps and writes."""

    data: Annotated[Path, typer.Option(help="Folder of images, generations and characters.")] = FOLDER
    queue: Annotated[int, typer.Option(min=1, help="Generations that may wait; one more is refused.")] = 32
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds a generation may take.")] = 600.0
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that a generation gets to finish when the server is stopped.")
    ] = 5.0
    max_upload: Annotated[float, typer.Option(min=0.01, help="MiB of one request.")] = 32.0
    max_pixels: Annotated[float, typer.Option(min=0.01, help="Megapixels (2^20) of one picture.")] = 32.0
    keep_days: Annotated[float | None, typer.Option(min=0, help="Days that results are kept; default for ever.")] = None
    max_data: Annotated[
        float | None, typer.Option(min=0.001, help="GiB of --data; above it new requests are refused.")
    ] = None
    max_connections: Annotated[int, typer.Option(min=16, help="Connections at one time.")] = 512
    log: Annotated[
        LogForm, typer.Option(help="quiet: warnings; text or json: also a line a request and a generation.")
    ] = LogForm.quiet
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log, too.")] = False

    def limits(self) -> Limits:
        """The same for the service."""
        from realcustom.serving.limits import Limits

        return Limits(
            queue=self.queue,
            seconds=self.time_limit,
            drain=self.drain,
            upload_bytes=round(self.max_upload * 2**20),
            pixels=round(self.max_pixels * 2**20),
            keep_days=self.keep_days,
            data_bytes=None if self.max_data is None else round(self.max_data * 2**30),
            connections=self.max_connections,
        )


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Where pictures are made, and how many together."""

    batch_size: Annotated[int | None, typer.Option(min=1, help="Images made together; 1 on a CPU, 4 elsewhere.")] = None
    engine: Annotated[Place, typer.Option(help="This process, or replicas on a Ray cluster.")] = Place.local
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Ray: engines, or the fewest; default one a GPU or two CPUs.")
    ] = None
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Ray: grow up to so many with the load.")] = None
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray: cluster to use; default a new one on this machine."),
    ] = None

    def check(self) -> None:
        """ValueError where an option needs another engine."""
        if self.engine is Place.local and (self.replicas or self.max_replicas):
            raise ValueError("--replicas and --max-replicas are for --engine ray; the local engine is one.")


def takes(**groups: type) -> Callable:
    """A command that takes records of options, with their fields as options in their place."""

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def called(**arguments: Any) -> Any:
            records = {
                name: kind(**{one.name: arguments.pop(one.name) for one in fields(kind)})
                for name, kind in groups.items()
            }
            return command(**records, **arguments)

        parameters, hints = [], {}
        for kind in groups.values():
            own = get_type_hints(kind, include_extras=True)
            for one in fields(kind):
                default = Parameter.empty if one.default is MISSING else one.default
                default = list(default) if isinstance(default, tuple) else default
                parameters.append(Parameter(one.name, Parameter.KEYWORD_ONLY, default=default))
                hints[one.name] = own[one.name]
        others = {name: hint for name, hint in command.__annotations__.items() if name not in groups}
        rest = [one for name, one in signature(command).parameters.items() if name not in groups]
        called.__signature__ = signature(command).replace(
            parameters=[*parameters, *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in rest)]
        )
        called.__annotations__ = {**hints, **others}
        return called

    return decorate


def _secret(path: Path, what: str) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The {what} file {path} cannot be read.") from error
