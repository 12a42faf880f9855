"""From names to files: base model, adapter, encoder and settings of a pipeline, whichever door asks.

Everything small is looked at first: what is missing or does not fit together is said before anything large is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from realcustom.convert.named import Prepared, base_listing, prepare, remember_base
from realcustom.encoders.clip_image import ClipImageEncoder
from realcustom.encoders.image import ClipReferenceEncoder, ReferenceEncoder
from realcustom.hub.bundled import model_folder
from realcustom.hub.layout import component_files, components, preferred, small_files, weight_variant
from realcustom.hub.names import NAMED, UNO_LORA
from realcustom.hub.places import HubPlace, Shelf, open_shelf
from realcustom.hub.settings import SETTINGS, AdapterSettings
from realcustom.hub.trouble import NeedsOption
from realcustom.models.adapter import RealCustomAdapter
from realcustom.pipelines.scheduler import RealCustomScheduler

INDEX = "model_index.json"
# What an adapter's folder may bring, in the place of the base's.
PARTS = ("adapter", "reference_encoder", "unet", "vae", "scheduler")
FLUX = ("FluxPipeline", "UNOPipeline")
IN_SINGLE_FILES = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where everything of a pipeline lies on this machine.

    Attributes:
        kind: class name in the base's model_index.json.
        base: folder in diffusers' layout; it may lack what `parts` holds.
        variant: of the base's weights.
        base_file: a single file that holds the base's networks, of a FLUX its transformer.
        parts: component -> its folder.
        settings: what travels with the adapter.
        lora: the adapter where it is UNO's LoRA.
        revision: of the model, under which the same files are found again; None for folders of this machine.
    """

    kind: str
    base: Path
    variant: str | None = None
    base_file: Path | None = None
    parts: Mapping[str, Path]
    settings: AdapterSettings
    lora: Path | None = None
    revision: str | None = None


def resolve(
    model: str,
    *,
    adapter: str | None = None,
    reference_encoder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    base_file: str | None = None,
    given: Collection[str] = (),
) -> Sources:
    """Find and fetch what a pipeline needs.

    Args:
        model: a bundled or named model, a folder in diffusers' layout, or a hub id.
        adapter: folder or hub id (owner/name[/folder...][@revision]) of an adapter, with what lies beside it.
        reference_encoder: folder or hub id of another encoder than the adapter brings.
        revision: of the model on the hub; of a named one BASE or BASE+WEIGHTS.
        variant: of the base's weights, such as "fp16"; "full" is the one without a name.
        base_file: a checkpoint of the same family whose networks replace the base's.
        given: components that the caller brings.

    Raises:
        ValueError: in one sentence, what cannot be had or does not fit together.
    """
    prepared = prepare(model, revision) if model in NAMED else None
    file = _single_file(base_file)
    ours = _adapter_shelf(adapter, prepared)
    found = _adapter_parts(ours)
    shelf = _base_shelf(model, prepared, revision, {*found, *given}, preferred(variant, False))
    index = _index(shelf, model)
    settings = AdapterSettings() if ours is None else AdapterSettings.load(_small(ours, (SETTINGS,)))
    encoder = None if reference_encoder is None else open_shelf(reference_encoder, "reference encoder")
    if encoder is not None:
        found["reference_encoder"] = (encoder, "")
    flux = index.get("_class_name") in FLUX
    if file is not None:
        found = {name: place for name, place in found.items() if name not in IN_SINGLE_FILES}
    without = {*found, *given, *(("transformer",) if flux and file is not None else ())}
    lora = ours is not None and "adapter" not in found
    if lora:
        _check_flux(ours, index, model)
    elif ours is not None:
        _check_complete(ours, found, index, settings, model, given, shelf)
    order = preferred(variant, shelf.local and model not in NAMED)
    files = _base_files(shelf, index, without, order, file is not None and not flux)
    if flux and file is not None:  # which holds the transformer's weights, not its shape
        files.append("transformer/config.json")
    base = shelf.take(files)
    if prepared is not None and not set(files) <= set(prepared.base_files):
        remember_base(model, prepared, files)
    return Sources(
        kind=index.get("_class_name", ""),
        base=base,
        variant=_variant(shelf, index, without, order),
        base_file=file,
        parts={name: _take_part(*place) for name, place in found.items()},
        settings=settings,
        lora=ours.take([UNO_LORA]) / UNO_LORA if lora else None,
        revision=prepared.revision if prepared is not None else shelf.commit,
    )


def own_sources(adapter: str | None, reference_encoder: str | None) -> dict[str, Path]:
    """Folders of adapter and reference encoder alone, for a pipeline that has everything else."""
    found = _adapter_parts(None if adapter is None else open_shelf(adapter, "adapter"))
    if reference_encoder is not None:
        found["reference_encoder"] = (open_shelf(reference_encoder, "reference encoder"), "")
    return {name: _take_part(*place) for name, place in found.items() if name in ("adapter", "reference_encoder")}


def load_parts(parts: Mapping[str, Path], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Components loaded from their folders."""
    options = {} if dtype is None else {"torch_dtype": dtype}
    loaders = {"reference_encoder": load_encoder, "adapter": RealCustomAdapter.from_pretrained}
    loaded: dict[str, Any] = {}
    for name, folder in parts.items():
        if name == "scheduler":
            loaded[name] = _stock_class(folder, "scheduler_config.json").from_pretrained(folder)
        elif name in loaders:
            loaded[name] = loaders[name](folder, **options)
        else:
            loaded[name] = _stock_class(folder, "config.json").from_pretrained(folder, **options)
    return loaded


def _stock_class(folder: Path, config: str) -> type:
    """The class of diffusers, or our scheduler, that a component's configuration names."""
    name = json.loads((folder / config).read_text()).get("_class_name")
    kind = RealCustomScheduler if name == RealCustomScheduler.__name__ else getattr(diffusers, str(name), None)
    if kind is None:
        raise ValueError(f"{folder} is a {name}, which diffusers does not have.")
    return kind


def load_encoder(folder: Path | str, **options: Any):
    """A reference encoder of whichever kind its configuration names; ValueError for one we do not know."""
    kinds = {kind.__name__: kind for kind in (ReferenceEncoder, ClipReferenceEncoder, ClipImageEncoder)}
    name = ReferenceEncoder.load_config(folder).get("_class_name")
    if name not in kinds:
        raise ValueError(f"{folder} is no reference encoder: it says it is a {name}, known are {', '.join(kinds)}.")
    return kinds[name].from_pretrained(folder, **options)


def _base_shelf(model: str, prepared: Prepared | None, revision: str | None, without: set[str], order) -> Shelf:
    if prepared is None:
        return open_shelf(model_folder(model), "model", revision)
    # What is here already is used without asking the hub, as long as it is complete.
    named = NAMED[model]
    listed = base_listing(model, prepared)
    if listed is not None:
        shelf = Shelf(model, listed.folder, tuple(listed.sizes), listed, HubPlace(named.base, "", prepared.base))
        if not _lacking(shelf, _index(shelf, model), without, order):
            return shelf
    return replace(open_shelf(named.base, "model", prepared.base), source=model)


def _index(shelf: Shelf, model: str) -> dict[str, Any]:
    if not shelf.has(INDEX):
        raise ValueError(f'"{model}" is not a model folder: it has no {INDEX}.')
    try:
        return json.loads((_small(shelf, (INDEX,)) / INDEX).read_text())
    except ValueError as error:
        raise ValueError(f'The {INDEX} of "{model}" is damaged: {error}') from error


def _small(shelf: Shelf, paths: Collection[str]) -> Path:
    return shelf.take([path for path in paths if shelf.has(path)])


def _adapter_shelf(adapter: str | None, prepared: Prepared | None) -> Shelf | None:
    if adapter is not None:
        return open_shelf(adapter, "adapter")
    return None if prepared is None else open_shelf(str(prepared.folder), "adapter")


def _adapter_parts(shelf: Shelf | None) -> dict[str, tuple[Shelf, str]]:
    """Component -> where it lies: in the adapter's folder, which may be the bare adapter itself."""
    if shelf is None:
        return {}
    if shelf.has(UNO_LORA):
        return {}
    if shelf.has("adapter/config.json"):
        return {name: (shelf, name) for name in PARTS if shelf.has(name)}
    if not shelf.has("config.json"):
        raise ValueError(
            f'"{shelf.source}" is no adapter: it has neither adapter/config.json nor config.json; a release as its '
            "authors publish it goes through realcustom convert first."
        )
    return {"adapter": (shelf, "")}


def _check_complete(
    ours: Shelf,
    found: Mapping[str, tuple[Shelf, str]],
    index: Mapping[str, Any],
    settings: AdapterSettings,
    model: str,
    given: Collection[str],
    base: Shelf,
) -> None:
    """Refuse an adapter of another family, or one without an encoder, from the configurations alone."""
    if "reference_encoder" not in {*found, *given, *components(index)}:
        raise NeedsOption(
            f'The adapter "{ours.source}" comes without a reference encoder, which subjects need: give one with '
            "{option}.",
            "reference_encoder",
        )
    width = _config(*found["adapter"]).get("token_dim")
    texts = [_config(base, name).get("hidden_size") for name in ("text_encoder", "text_encoder_2") if base.has(name)]
    if None in texts or width is None or width == sum(texts):
        return
    where = "" if settings.base is None else f"; it was made for {settings.base}"
    raise NeedsOption(
        f'The adapter "{ours.source}" and the model "{model}" are of different families{where}: name a base model of '
        "its family with {option}.",
        "model",
        settings.base or "BASE",
    )


def _check_flux(ours: Shelf, index: Mapping[str, Any], model: str) -> None:
    if index.get("_class_name") not in FLUX:
        raise NeedsOption(
            f'The adapter "{ours.source}" is UNO\'s LoRA, and the model "{model}" is no FLUX: name a FLUX model with '
            "{option}.",
            "model",
            NAMED["flux"].base,
        )


def _config(shelf: Shelf, folder: str) -> dict[str, Any]:
    path = f"{folder}/config.json" if folder else "config.json"
    if not shelf.has(path):
        return {}
    return json.loads((shelf.take([path]) / path).read_text())


def _single_file(base_file: str | None) -> Path | None:
    if base_file is None:
        return None
    path = Path(base_file)
    if not path.is_file():
        raise ValueError(f"There is no file {base_file} for the base model.")
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"{base_file} is no checkpoint of a base model: it ends in .safetensors or .ckpt.")
    return path.absolute()


def _lacking(shelf: Shelf, index: Mapping[str, Any], without: Collection[str], order) -> str | None:
    """The first component that the shelf has no weights or no files of; None where it is complete."""
    for name in components(index):
        if name in without:
            continue
        network = shelf.has(f"{name}/config.json")
        if not shelf.has(name) or (network and weight_variant(shelf.paths, name, order) is None):
            return name
    return None


def _base_files(shelf: Shelf, index: Mapping[str, Any], without: set[str], order, small_only: bool) -> list[str]:
    if small_only:
        return [INDEX, *small_files(path for path in shelf.paths if path.count("/") == 1)]
    lacking = _lacking(shelf, index, without, order)
    if lacking is not None:
        if shelf.listed is not None and not shelf.listed.complete:
            raise ValueError(shelf.listed.why)
        variants = " or ".join(f'"{name or "full"}"' for name in order)
        raise ValueError(f'"{shelf.source}" lacks the weights of its {lacking} in the variant {variants}.')
    names = [name for name in components(index) if name not in without]
    return [INDEX, *(path for name in names for path in component_files(shelf.paths, name, order))]


def _variant(shelf: Shelf, index: Mapping[str, Any], without: Collection[str], order) -> str | None:
    """The variant that diffusers is told: it takes it where a component has it."""
    found = [weight_variant(shelf.paths, name, order) for name in components(index) if name not in without]
    return next((kind[0] for kind in found if kind is not None and kind[0] is not None), None)


def _take_part(shelf: Shelf, folder: str) -> Path:
    paths = component_files(shelf.paths, folder, preferred(None, True))
    return shelf.take(paths) / folder
