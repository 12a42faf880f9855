"""Our own components of a pipeline among the arguments of diffusers' loading functions."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from realcustom.pipelines.sources import load_parts, own_sources

OWN_COMPONENTS = ("adapter", "reference_encoder")
# Arguments that say where and how to fetch; here the environment says so, for every repository alike.
FETCHING = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "token"})


def split_names(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `realcustom.pipelines.sources.resolve` finds, by its names, and what is left.

    Raises:
        ValueError: an argument says how to fetch.
    """
    elsewhere = sorted(FETCHING & kwargs.keys())
    if elsewhere:
        raise ValueError(f"{', '.join(elsewhere)}: set HF_TOKEN, HF_HUB_CACHE or HF_HUB_OFFLINE instead.")
    names = {name: str(kwargs[name]) for name in OWN_COMPONENTS if isinstance(kwargs.get(name), (str, PathLike))}
    names |= {name: kwargs[name] for name in ("revision", "variant") if kwargs.get(name) is not None}
    return names, {name: value for name, value in kwargs.items() if name not in {*names, "revision", "variant"}}


def load_components(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with our own components' folders and hub ids replaced by the objects.

    Raises:
        ValueError: one of them cannot be had.
    """
    names, left = split_names(kwargs)
    sources = own_sources(names.get("adapter"), names.get("reference_encoder"))
    return {**load_parts(sources, left.get("torch_dtype", left.get("dtype"))), **left}


def checked(pipe):
    """The pipeline, if its adapter fits its U-Net and its settings can be used.

    Raises:
        ValueError: it does not.
    """
    pipe.default_mask  # noqa: B018 - settings that cannot be used are told now
    if pipe.adapter is not None and pipe.unet is not None:
        pipe.adapter.check(pipe.backbone())
    return pipe
