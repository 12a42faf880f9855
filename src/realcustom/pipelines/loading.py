"""Loading a pipeline by name, folder or hub id, as diffusers' own loading functions do."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

from realcustom.hub.fetching import Access, asking
from realcustom.pipelines.samplers import scheduler_named
from realcustom.pipelines.sources import Sources, load_parts, own_sources, resolve

OWN_COMPONENTS = ("adapter", "reference_encoder")
ACCESS = tuple(field.name for field in dataclasses.fields(Access))


def split_access(kwargs: Mapping[str, Any]) -> tuple[Access, dict[str, Any]]:
    """How the hub is asked, and what is left.

    Raises:
        ValueError: proxies are given, which huggingface_hub takes from the environment only.
    """
    if kwargs.get("proxies") is not None:
        raise ValueError("proxies: huggingface_hub reads them from HTTPS_PROXY and HTTP_PROXY; set those instead.")
    access = Access(**{name: kwargs[name] for name in ACCESS if kwargs.get(name) is not None})
    return access, {name: value for name, value in kwargs.items() if name not in {*ACCESS, "proxies"}}


def split_names(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `realcustom.pipelines.sources.resolve` finds, by its names, and what is left."""
    names = {name: str(kwargs[name]) for name in OWN_COMPONENTS if isinstance(kwargs.get(name), (str, PathLike))}
    names |= {name: kwargs[name] for name in ("revision", "variant") if kwargs.get(name) is not None}
    return names, {name: value for name, value in kwargs.items() if name not in {*names, "revision", "variant"}}


def load_components(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with our own components' folders and hub ids replaced by the objects.

    Raises:
        ValueError: one of them cannot be had.
    """
    access, kwargs = split_access(kwargs)
    names, left = split_names(kwargs)
    with asking(access):
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


class LoadingMixin:
    """Puts our components, and the settings that come with an adapter, into a stock pipeline."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a pipeline from a folder, a hub id, or the name of a bundled or real model.

        Args:
            pretrained_model_name_or_path: a saved RealCustom pipeline, or any stock base model of the family
                together with `adapter`.
            kwargs: as diffusers' `from_pretrained`; `adapter` and `reference_encoder` may be folders or hub ids
                (owner/name[/folder...][@revision]). A converted or exported adapter brings its encoder and settings.
                `token`, `cache_dir`, `local_files_only` and `force_download` hold for every repository.

        Raises:
            ValueError: in one sentence, what cannot be had, or that the adapter does not fit the base model.
        """
        return cls._from_names(str(pretrained_model_name_or_path), None, kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path, **kwargs):
        """Load the base from one checkpoint file; `adapter` and `reference_encoder` as in `from_pretrained`.

        With `config`, a folder or hub id in diffusers' layout, the file is read as a model of its shape.
        """
        if "config" not in kwargs:
            stock = {name: kwargs[name] for name in (*ACCESS, "proxies") if name in kwargs}
            loaded = {**load_components(kwargs), **stock}
            return checked(super().from_single_file(pretrained_model_link_or_path, **loaded))
        named = {name: value for name, value in kwargs.items() if name != "config"}
        return cls._from_names(str(kwargs["config"]), str(pretrained_model_link_or_path), named)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """Share the networks of another pipeline; `adapter` and `reference_encoder` as in `from_pretrained`."""
        return checked(super().from_pipe(pipeline, **load_components(kwargs)))

    @classmethod
    def _from_names(cls, model: str, base_file: str | None, kwargs: Mapping[str, Any]):
        access, kwargs = split_access(kwargs)
        names, kwargs = split_names(kwargs)
        present = [name for name, value in kwargs.items() if value is not None]
        with asking(access):
            sources = resolve(model, **names, base_file=base_file, given=present)
        return cls.from_sources(sources, **kwargs)

    @classmethod
    def from_sources(cls, sources: Sources, **kwargs):
        """Load a pipeline whose files `realcustom.pipelines.sources.resolve` has found; `kwargs` as diffusers'."""
        kwargs = {**load_parts(sources.parts, kwargs.get("torch_dtype", kwargs.get("dtype"))), **kwargs}
        settings = sources.settings
        if "adapter" in sources.parts:
            known = inspect.signature(cls.__init__).parameters
            own = {"defaults": settings.defaults.to_dict(), "released_conditioning": settings.released_conditioning}
            kwargs = {**{name: value for name, value in own.items() if name in known and value}, **kwargs}
        if sources.base_file is None:
            pipe = super().from_pretrained(str(sources.base), variant=sources.variant, **kwargs)
        else:
            base = str(sources.base)
            pipe = super().from_single_file(str(sources.base_file), config=base, local_files_only=True, **kwargs)
        if settings.scheduler is not None and "scheduler" not in kwargs:
            pipe.scheduler = scheduler_named(settings.scheduler, pipe.scheduler)
        return checked(pipe)
