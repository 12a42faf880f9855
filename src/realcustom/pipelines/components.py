"""Our own components of a pipeline, loaded beside the stock ones from folders or hub ids."""

from __future__ import annotations

import torch

from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter

OWN_COMPONENTS = {"adapter": RealCustomAdapter, "reference_encoder": ReferenceEncoder}
# How files are fetched holds for every repository; which revision or subfolder, for the base's alone.
FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


def load_components(kwargs: dict) -> dict:
    """Keyword arguments of `from_pretrained` with our own components' folders and hub ids replaced by the objects.

    What says how files are fetched (token, cache_dir, local_files_only ...) counts for them, too.
    """
    kwargs = dict(kwargs)
    loading = {name: kwargs[name] for name in FETCHING if name in kwargs}
    loading |= {name: kwargs[name] for name in ("torch_dtype", "dtype") if name in kwargs}
    for name, kind in OWN_COMPONENTS.items():
        source = kwargs.get(name)
        if source is not None and not isinstance(source, torch.nn.Module):
            kwargs[name] = _component_class(kind, source, loading).from_pretrained(source, **loading)
    return kwargs


def checked(pipe):
    """The pipeline, if its adapter fits its U-Net.

    Raises:
        ValueError: it does not.
    """
    if pipe.adapter is not None and pipe.unet is not None:
        pipe.adapter.check(pipe.backbone())
    return pipe


def _component_class(kind: type, source, loading: dict) -> type:
    """RealCustom's CLIP encoder says so in its configuration."""
    if kind is not ReferenceEncoder:
        return kind
    fetching = {name: value for name, value in loading.items() if name in FETCHING}
    config = ClipReferenceEncoder.load_config(source, **fetching)
    return ClipReferenceEncoder if config["_class_name"] == "ClipReferenceEncoder" else kind
