"""From the options of a model to a pipeline that is ready to run."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline

from realcustom.engine.options import DTYPES as DTYPE_NAMES
from realcustom.engine.options import LoadOptions, control_name, lora_scale
from realcustom.hub.bundled import controlnet_folder
from realcustom.hub.layout import component_files, preferred
from realcustom.hub.places import open_shelf
from realcustom.hub.trouble import told_apart
from realcustom.models.control import same_family
from realcustom.pipelines.samplers import scheduler_named
from realcustom.pipelines.sources import Sources, resolve

# model_index.json's class -> ours: a stock base model runs in the pipeline of its shape.
PIPELINES = {
    "StableDiffusionPipeline": "RealCustomPipeline",
    "RealCustomPipeline": "RealCustomPipeline",
    "StableDiffusionXLPipeline": "RealCustomXLPipeline",
    "RealCustomXLPipeline": "RealCustomXLPipeline",
    "FluxPipeline": "UNOPipeline",
    "UNOPipeline": "UNOPipeline",
}
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}
LORA_NAMES = ("pytorch_lora_weights.safetensors",)
LESS_MEMORY = (
    "dtype bfloat16 halves what the weights take, offload model keeps only the network at work on the accelerator, "
    "offload group or sequential only its layers at work, vae tiling and a smaller size help the picture's part"
)

log = logging.getLogger("realcustom.engine")


def load_pipeline(model: str = "miniature", **options: Any) -> DiffusionPipeline:
    """The pipeline of a base model with its adapter, on a device; `options` are those of `LoadOptions`.

    Where the accelerator's memory does not hold it, it is loaded again with offload="model", and that is said.

    Raises:
        ValueError: one sentence saying what cannot be had, or that there is not enough memory and what helps.
    """
    loading = LoadOptions(model=model, **options)
    return load_sources(find_sources(loading), loading)


def find_sources(options: LoadOptions) -> Sources:
    """Everything that is to be fetched, fetched; errors as `load_pipeline`."""
    sources = resolve(
        options.model,
        adapter=options.adapter,
        reference_encoder=options.reference_encoder,
        revision=options.revision,
        variant=options.variant,
        base_file=options.base_file,
    )
    _pipeline_class(sources, options.model)
    return sources


def load_sources(sources: Sources, options: LoadOptions) -> DiffusionPipeline:
    """The pipeline of files that are here."""
    place = resolve_device(options.device)
    if options.offload is not None and place.type == "cpu":
        raise ValueError("offload moves networks between an accelerator and main memory; on a CPU there is none.")
    try:
        with enough_memory():
            return _load(sources, options, place)
    except MemoryError as error:
        if options.offload is not None or place.type == "cpu":
            raise ValueError(str(error)) from error
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
    log.warning("The memory of %s does not hold the model: it goes on with offload=model, which is slower.", place)
    try:
        with enough_memory():
            return _load(sources, replace(options, offload="model"), place)
    except MemoryError as error:
        raise ValueError(str(error)) from error


@contextmanager
def enough_memory() -> Iterator[None]:
    """Whatever says that memory is short becomes one `MemoryError` that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryError(f"There is not enough memory for this model: {LESS_MEMORY}.") from error
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
            raise
        raise MemoryError(f"There is not enough memory for this model: {LESS_MEMORY}.") from error


def _load(sources: Sources, options: LoadOptions, place: torch.device) -> DiffusionPipeline:
    dtype = resolve_dtype(options.dtype, place)
    try:
        pipeline = _pipeline_class(sources, options.model).from_sources(sources, torch_dtype=dtype)
    except OSError as error:
        raise ValueError(f"{_named(options)} cannot be read: {_first_line(error)}") from error
    _check_family(pipeline, options.model)
    if options.scheduler is not None:
        pipeline.scheduler = scheduler_named(options.scheduler, pipeline.scheduler)
    _load_loras(pipeline, options.lora, {} if sources.lora is None else {"uno": 1.0})
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    _place(pipeline, place, options.offload)
    if options.compiled:
        pipeline.compile_blocks()
    return pipeline


def _place(pipeline: DiffusionPipeline, place: torch.device, offload: str | None) -> None:
    if offload is None:
        pipeline.to(place)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=place)
    else:
        # By leaf: keys and values of the text are made by single layers, outside of their blocks.
        pipeline.enable_group_offload(place, offload_type="leaf_level", use_stream=place.type == "cuda")


def _load_loras(pipeline: DiffusionPipeline, loras: tuple[str, ...], present: Mapping[str, float]) -> None:
    """All of them, each with its scale, beside those that are present; errors name the one that cannot be had."""
    scales = dict(present)
    for index, lora in enumerate(loras):
        source, scale = lora_scale(lora)
        file = _lora_file(source)
        name = f"lora_{index}"
        try:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f'The LoRA "{source}" does not fit this model: {_first_line(error)}') from error
        scales[name] = scale
    if loras:
        pipeline.set_adapters(list(scales), list(scales.values()))


def load_controls(options: LoadOptions, pipeline: DiffusionPipeline) -> dict[str, ControlNetModel]:
    """The ControlNets of a model by their names, where the pipeline computes.

    Raises:
        ValueError: one cannot be had, or is of another family.
    """
    nets = {}
    for entry in options.controlnet:
        name, source = control_name(entry)
        with told_apart(source):
            shelf = open_shelf(controlnet_folder(source), "ControlNet")
        files = component_files(shelf.paths, "", preferred(options.variant, shelf.local))
        try:
            net = ControlNetModel.from_pretrained(shelf.take(files))
        except (OSError, ValueError) as error:
            raise ValueError(f'The ControlNet "{source}" cannot be read: {_first_line(error)}') from error
        if not same_family(net, pipeline.unet):
            raise ValueError(f'The ControlNet "{source}" is of another family than the model "{options.model}".')
        nets[name] = net.to(computing_device(pipeline), pipeline.dtype).eval()
    return nets


def _lora_file(source: str) -> Path:
    """The one file of a LoRA: named, or the only one of its folder or repository."""
    path = Path(source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"The LoRA {source} is refused: LoRAs are read from .safetensors files.")
        return path.absolute()
    name = ""
    if not path.is_dir() and source.endswith(".safetensors") and source.count("/") >= 2:
        source, _, name = source.rpartition("/")
    with told_apart(source):
        shelf = open_shelf(source, "LoRA")
    found = [path for path in shelf.paths if path.endswith(".safetensors") and "/" not in path]
    usual = [path for path in found if path == (name or LORA_NAMES[0])]
    if name and not usual:
        raise ValueError(f'"{source}" has no file {name}; it has {", ".join(found) or "no .safetensors file"}.')
    chosen = usual or found
    if len(chosen) != 1:
        raise ValueError(
            f'"{source}" has {len(found)} .safetensors files: name one of them, {source}/FILE.safetensors.'
        )
    return shelf.take(chosen) / chosen[0]


def computing_device(pipeline: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes; with offload its weights lie elsewhere between their uses."""
    return torch.device(pipeline._execution_device)


def resolve_device(device: str | None) -> torch.device:
    """The device of that name, or the best one there is; ValueError if this machine does not have it."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
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
    return named_dtype(dtype)


def named_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of that name; ValueError that lists them where there is none."""
    if dtype not in DTYPES:
        raise ValueError(f'There is no dtype "{dtype}"; there are {", ".join(DTYPES)}.')
    return DTYPES[dtype]


def _pipeline_class(sources: Sources, model: str) -> type[DiffusionPipeline]:
    import realcustom

    name = PIPELINES.get(sources.kind)
    if name is None:
        raise ValueError(
            f'"{model}" is a {sources.kind}; models of Stable Diffusion 1.x, SDXL and FLUX.1 are supported.'
        )
    return getattr(realcustom, name)


def _check_family(pipeline: DiffusionPipeline, model: str) -> None:
    """ValueError where the U-Net, which an adapter folder may bring, is none for the base's text encoders."""
    if getattr(pipeline, "unet", None) is None:
        return  # a transformer comes with the base itself
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
    config = pipeline.unet.config
    pooled = config.addition_embed_type == "text_time"
    if config.cross_attention_dim != width or pooled != (encoders[1] is not None):
        raise ValueError(f'The U-Net and the text encoders of "{model}" are of different families.')


def _named(options: LoadOptions) -> str:
    return f'The model "{options.model}"' + (
        "" if options.adapter is None else f' with the adapter "{options.adapter}"'
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
