"""Text of the command line to a request, and the options of every command that loads a model."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial, wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

import typer

from realcustom.engine.options import LoadOptions
from realcustom.engine.requests import opened
from realcustom.pictures.content import Picture
from realcustom.types import Request, Subject

STDIN = "-"

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace earlier results instead of taking the next free number.")
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Write no settings into the images.")]

# The fields of `LoadOptions` as options, in the order of the help.
LOADING: dict[str, Any] = {
    "model": Annotated[
        str, typer.Option(help="miniature, sdxl, sd15, flux (realcustom models list), a folder, or a hub id.")
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
    "controlnet": Annotated[
        list[str],
        typer.Option(metavar="[NAME=]SOURCE", help="Folder or hub id of a ControlNet, for --control; may be repeated."),
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


def read_subjects(
    subjects: Sequence[str], strengths: Sequence[str], regions: Sequence[str] = (), weights: Sequence[str] = ()
) -> dict[str, Subject]:
    """--subject, --strength, --region and --weights as word -> `Subject`; a word given several times has several
    references.

    Raises:
        ValueError: a text of another form, what is no number, or an option for a word that is no subject.
    """
    images: dict[str, list[str]] = {}
    for word, path in read_pairs("--subject", subjects, "rex.png"):
        images.setdefault(word, []).append(path)
    settings: dict[str, dict[str, Any]] = {word: {} for word in images}
    for option, texts, form, read in (
        ("strength", strengths, "0.8", lambda text: _numbers("--strength", text, 1)[0]),
        ("region", regions, "0,0,0.5,1", _region),
        ("weights", weights, "1,0.5", lambda text: _numbers("--weights", text)),
    ):
        for word, text in read_pairs(f"--{option}", texts, form):
            if word not in images:
                raise ValueError(f'--{option} names "{word}", for which there is no --subject.')
            settings[word][option] = read(text)
    return {word: Subject(tuple(paths), **settings[word]) for word, paths in images.items()}


def open_pictures(request: Request) -> Request:
    """The request with its pictures opened: paths (also ~/rex.png), URLs, and "-" for standard input.

    Raises:
        ValueError: a picture cannot be used, or standard input is named twice.
    """
    places: list[Any] = []
    request.with_pictures(lambda picture, *_: places.append(picture))
    if sum(isinstance(place, str) and place == STDIN for place in places) > 1:
        raise ValueError("Standard input (-) can be one picture only.")
    return request.with_pictures(_opened)


def _opened(place: Any, kind: str, what: str) -> Picture:
    from realcustom.batch import places

    opener = partial(opened, kind=kind, what=what)
    if place == STDIN:
        if sys.stdin.isatty():
            raise ValueError("A picture is to come from standard input (-), which is a terminal.")
        return replace(opener(sys.stdin.buffer.read(), name="standard input"), path=None)
    if isinstance(place, str) and places.is_url(place):
        place = places.absolute(place)
        if places.is_url(place):
            return opener(places.read_bytes(place), name=place)
    return opener(os.path.expanduser(place))


def _numbers(option: str, text: str, count: int | None = None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or count not in (None, len(numbers)):
        what = "a number" if count == 1 else "numbers with commas between"
        raise ValueError(f'{option} must be {what}, not "{text}".')
    return numbers


def _region(text: str) -> Any:
    """Four numbers as a box, anything else as the place of a mask."""
    try:
        return _numbers("--region", text, 4)
    except ValueError:
        return text


def read_hole(text: str | None) -> Any:
    """--hole: four numbers as a box, corners x,y x,y x,y ... as a polygon, anything else as the place of a mask."""
    if text is None:
        return None
    try:
        corners = [_numbers("--hole", part, 2) for part in text.split()]
    except ValueError:
        return _region(text)
    return tuple(corners) if len(corners) > 1 else _region(text)


def read_controls(texts: Sequence[str]) -> list[dict[str, Any]]:
    """--control [NAME=]PICTURE[@SCALE[,START,END]] as records of controls.

    Raises:
        ValueError: a text of another form.
    """
    controls = []
    for text in texts:
        name, sign, rest = text.partition("=")
        place, at, numbers = (rest if sign else name).rpartition("@")
        values = _numbers("--control ...@", numbers) if at else ()
        if len(values) not in (0, 1, 3) or not (place if at else numbers):
            raise ValueError(f'--control must look like outline=picture.png@0.8 or ...@0.8,0,0.6, not "{text}".')
        record = {"image": place if at else numbers, "name": name if sign else ""}
        controls.append(record | dict(zip(("scale", "start", "end"), values, strict=False)))
    return controls


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
