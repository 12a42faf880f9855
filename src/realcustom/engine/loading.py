"""From a model's name to a pipeline that is ready to run."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from realcustom.hub.bundled import MODELS, model_folder

# model_index.json's class -> ours: a stock base model runs in the pipeline of its shape.
PIPELINES = {
    "StableDiffusionPipeline": "RealCustomPipeline",
    "RealCustomPipeline": "RealCustomPipeline",
    "StableDiffusionXLPipeline": "RealCustomXLPipeline",
    "RealCustomXLPipeline": "RealCustomXLPipeline",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SETTINGS = "pipeline.json"  # of an adapter folder: arguments of the pipeline that its weights expect
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(
    model: str = "miniature", *, adapter: str | None = None, device: str | None = None, dtype: str | None = None
) -> DiffusionPipeline:
    """The pipeline of a base model with its adapter, on a device.

    Args:
        model: a bundled model's name, a folder in diffusers' layout, or a hub id.
        adapter: folder or hub id of an adapter, or a folder with the subfolder `adapter`; what else lies there
            (`reference_encoder`, `unet`, `scheduler`, `pipeline.json`) replaces the base's. None: the adapter that the
            model's own folder holds.
        device: "cpu", "cuda", "cuda:1", "mps" ...; None takes a GPU if there is one.
        dtype: "float32", "float16" or "bfloat16"; None is float32 on a CPU, bfloat16 elsewhere.

    Raises:
        ValueError: one sentence saying which of these cannot be had.
    """
    place = resolve_device(device)
    number_format = resolve_dtype(dtype, place)
    folder = model_folder(model)
    pipeline_class = _pipeline_class(folder)
    try:
        parts = {} if adapter is None else _adapter_parts(adapter, number_format, pipeline_class)
        pipeline = pipeline_class.from_pretrained(folder, dtype=number_format, **parts)
    except OSError as error:
        what = f'The model "{model}"' + ("" if adapter is None else f' with the adapter "{adapter}"')
        raise ValueError(f"{what} cannot be read: {_first_line(error)}") from error
    _check_family(pipeline, model)
    return pipeline.to(place)


def resolve_device(device: str | None) -> torch.device:
    """The device of that name, or the best one there is; ValueError if this machine does not have it."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'The device "{device}" is not available here; "cpu" always is.') from error
    return place


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The torch dtype of that name; None is float32 on a CPU, bfloat16 elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f'There is no dtype "{dtype}"; there are {", ".join(DTYPES)}.')
    return DTYPES[dtype]


def _pipeline_class(folder: str) -> type[DiffusionPipeline]:
    import realcustom

    index = _model_index(folder)
    name = PIPELINES.get(index.get("_class_name"))
    if name is None:
        raise ValueError(
            f'"{folder}" is a {index.get("_class_name")}; models of Stable Diffusion 1.x and SDXL are supported.'
        )
    return getattr(realcustom, name)


def _model_index(folder: str) -> dict[str, Any]:
    path = Path(folder)
    if path.exists() and not (path / "model_index.json").is_file():
        raise ValueError(f'"{folder}" is not a model folder: it has no model_index.json.')
    if not path.exists() and not HUB_ID.fullmatch(folder):
        raise ValueError(
            f'There is no model "{folder}": give a folder, a hub id (owner/name) or one of {", ".join(MODELS)}.'
        )
    try:
        return DiffusionPipeline.load_config(folder)
    except (OSError, ValueError) as error:
        where = "read" if path.exists() else "fetched from the hub, nor is it a folder here"
        raise ValueError(f'The model "{folder}" cannot be {where}.') from error


def _adapter_parts(adapter: str, dtype: torch.dtype, pipeline_class: type[DiffusionPipeline]) -> dict[str, Any]:
    """The components and settings an adapter folder brings: `from_pretrained`'s keyword arguments."""
    from diffusers import UNet2DConditionModel

    from realcustom.pipelines.scheduler import RealCustomScheduler

    path = Path(adapter)
    if not path.is_dir() and not HUB_ID.fullmatch(adapter):
        raise ValueError(f'There is no adapter "{adapter}": give a folder or a hub id (owner/name).')
    if not (path / "adapter").is_dir():
        return {"adapter": adapter}
    parts: dict[str, Any] = {"adapter": str(path / "adapter")}
    if (path / "reference_encoder").is_dir():
        parts["reference_encoder"] = str(path / "reference_encoder")
    if (path / "unet").is_dir():
        parts["unet"] = UNet2DConditionModel.from_pretrained(path, subfolder="unet", dtype=dtype)
    if (path / "scheduler").is_dir():
        parts["scheduler"] = RealCustomScheduler.from_pretrained(path, subfolder="scheduler")
    if (path / SETTINGS).is_file():
        known = inspect.signature(pipeline_class.__init__).parameters
        settings = json.loads((path / SETTINGS).read_text())
        parts |= {name: value for name, value in settings.items() if name in known}
    return parts


def _check_family(pipeline: DiffusionPipeline, model: str) -> None:
    """ValueError where the U-Net, which an adapter folder may bring, is none for the base's text encoders."""
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
    config = pipeline.unet.config
    pooled = config.addition_embed_type == "text_time"
    if config.cross_attention_dim != width or pooled != (encoders[1] is not None):
        raise ValueError(f'The U-Net and the text encoders of "{model}" are of different families.')


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
