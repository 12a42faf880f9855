"""Which files of a folder in diffusers' layout are needed, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[a-z0-9_]+?))?(?:-\d{5}-of-\d{5})?"
    r"\.(?P<format>safetensors|bin)"
)
INDEX = re.compile(r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>[a-z0-9_]+))?\.json")
SMALL = (".json", ".txt", ".model")
FULL = "full"  # the variant's name for weights without one
HALF_FIRST = ("fp16", None)
FULL_FIRST = (None, "fp16")


def preferred(variant: str | None, local: bool) -> tuple[str | None, ...]:
    """Variants of weights in the order in which they are taken.

    Args:
        variant: asked for; "full" is the one without a name. None leaves the choice: what is fetched is fetched in
            half precision where that exists, what lies in a folder is taken as it is.
        local: whether it lies in a folder already.
    """
    if variant is None:
        return FULL_FIRST if local else HALF_FIRST
    return (None,) if variant == FULL else (variant,)


def components(index: Mapping[str, Any]) -> list[str]:
    """Names of the components that a model_index.json lists."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] is not None and not name.startswith("_")
    ]


def weight_variant(
    paths: Iterable[str], component: str, order: Collection[str | None]
) -> tuple[str | None, str] | None:
    """Variant and format ("safetensors" or "bin") of a component's weights to take; None where it has none."""
    found = {_kind(path) for path in _inside(paths, component)} - {None}
    for format_ in ("safetensors", "bin"):
        for variant in order:
            if (variant, format_) in found:
                return variant, format_
    return None


def component_files(paths: Iterable[str], component: str, order: Collection[str | None]) -> list[str]:
    """Configuration and weights of one component, weights in one variant and one format only."""
    inside = _inside(paths, component)
    chosen = weight_variant(inside, "", order)
    needed = []
    for name, path in inside.items():
        index = INDEX.fullmatch(name)
        if index is not None:
            if chosen is not None and chosen == (index["variant"], "safetensors"):
                needed.append(path)
        elif name.endswith(SMALL) or (chosen is not None and _kind(name) == chosen):
            needed.append(path)
    return needed


def small_files(paths: Iterable[str]) -> list[str]:
    """Configurations and tokenizers: what tells what a model is, without its weights."""
    return [path for path in paths if path.endswith(SMALL) and not INDEX.fullmatch(path.rsplit("/", 1)[-1])]


def _inside(paths: Iterable[str], component: str) -> dict[str, str]:
    """File name -> path of the files directly in a component's folder."""
    prefix = f"{component}/" if component else ""
    names = {path.removeprefix(prefix): path for path in paths if path.startswith(prefix)}
    return {name: path for name, path in names.items() if "/" not in name}


def _kind(name: str) -> tuple[str | None, str] | None:
    match = WEIGHTS.fullmatch(name.rsplit("/", 1)[-1])
    return None if match is None else (match["variant"], match["format"])
