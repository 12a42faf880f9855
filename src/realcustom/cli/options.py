"""Text of the command line to a request, and the options of every command that loads a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

import typer

from realcustom.engine.options import LoadOptions
from realcustom.types import Subject

# The fields of `LoadOptions` as options, in the order of the help.
LOADING: dict[str, Any] = {
    "model": Annotated[
        str, typer.Option(help="miniature, sdxl, sd15 (realcustom models list), a folder, or a hub id.")
    ],
    "adapter": Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Folder or hub id of the adapter, if the model brings none."),
    ],
    "reference_encoder": Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Folder or hub id of the encoder, if the adapter brings none.")
    ],
    "base_file": Annotated[
        str | None, typer.Option(metavar="FILE", help="One checkpoint file whose networks replace the base model's.")
    ],
    "revision": Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model on the hub; of a named one BASE+WEIGHTS.")
    ],
    "variant": Annotated[
        str | None, typer.Option(help="Of the base's weights: fp16, or full; half precision where it is fetched.")
    ],
    "device": Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; a GPU if there is one.")],
    "dtype": Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")],
    "offload": Annotated[
        str | None, typer.Option(help="Keep less on the GPU: model, group or sequential, each slower than the last.")
    ],
    "lora": Annotated[
        list[str], typer.Option(metavar="SOURCE[:SCALE]", help="LoRA file, folder or hub id; may be repeated.")
    ],
    "scheduler": Annotated[str | None, typer.Option(help="Sampler: released, ddim, dpm, euler, unipc, lcm ...")],
    "compiled": Annotated[
        bool, typer.Option("--compile", help="Compile the network: a slow first image, faster ones after it.")
    ],
    "vae_tiling": Annotated[bool, typer.Option("--vae-tiling", help="Decode in tiles, for large pictures.")],
}


def loads_model(command: Callable) -> Callable:
    """A command that takes `loading: LoadOptions`, with the options of `LOADING` in its place."""
    own = [parameter for name, parameter in signature(command).parameters.items() if name != "loading"]
    defaults = LoadOptions()
    more = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=_default(defaults, name), annotation=kind)
        for name, kind in LOADING.items()
    ]

    @wraps(command)
    def called(**arguments: Any) -> Any:
        loading = LoadOptions(**{name: arguments.pop(name) for name in LOADING})
        return command(**arguments, loading=loading)

    hints = get_type_hints(command, include_extras=True)
    own = [one.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[one.name]) for one in own]
    called.__signature__ = signature(command).replace(parameters=[*own, *more])
    called.__annotations__ = {one.name: one.annotation for one in (*own, *more)}
    return called


def _default(defaults: LoadOptions, name: str) -> Any:
    value = getattr(defaults, name)
    return list(value) if isinstance(value, tuple) else value


class Place(StrEnum):
    """Where an engine is: in this process, or on a Ray cluster."""

    local = "local"
    ray = "ray"


def read_pairs(option: str, pairs: Sequence[str], what: str) -> list[tuple[str, str]]:
    """ "word=value" texts as (word, value).

    Raises:
        ValueError: names the option and shows its form.
    """
    read = []
    for pair in pairs:
        word, sign, value = pair.partition("=")
        if not sign or not word.strip() or not value.strip():
            raise ValueError(f'{option} must look like dog={what}, not "{pair}".')
        read.append((word.strip(), value.strip()))
    return read


def read_subjects(subjects: Sequence[str], strengths: Sequence[str]) -> dict[str, Subject]:
    """--subject and --strength as word -> `Subject`; a word given several times has several references.

    Raises:
        ValueError: a text of another form, a strength that is no number, or one for a word that is no subject.
    """
    images: dict[str, list[str]] = {}
    for word, path in read_pairs("--subject", subjects, "rex.png"):
        images.setdefault(word, []).append(path)
    factors: dict[str, Any] = {}
    for word, text in read_pairs("--strength", strengths, "0.8"):
        if word not in images:
            raise ValueError(f'--strength names "{word}", for which there is no --subject.')
        try:
            factors[word] = float(text)
        except ValueError:
            raise ValueError(f'--strength {word} must be a number, not "{text}".') from None
    return {word: Subject(tuple(paths), strength=factors.get(word, 1.0)) for word, paths in images.items()}


def read_size(size: str | None) -> dict[str, int]:
    """ "256x192" (width x height) as the request's fields; nothing for None.

    Raises:
        ValueError: a text of another form.
    """
    if size is None:
        return {}
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX]\s*(\d{1,6})\s*", size)
    if match is None:
        raise ValueError(f'--size must look like 256x192 (width x height), not "{size}".')
    return {"width": int(match[1]), "height": int(match[2])}
