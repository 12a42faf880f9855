"""Files of others -> a folder that `--adapter` takes. What a file is, its keys tell, whatever it is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from realcustom.convert.ip_adapter import is_ip_adapter, write_ip_adapter
from realcustom.convert.release import (
    PROJECTOR,
    encoder_levels,
    released_settings,
    stock_config,
    write_encoder,
    write_release,
    write_vae,
)
from realcustom.convert.states import read_state, whole_folder

ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
PARTS = ("adapter", "unet", "vae", "reference_encoder")


def _is_realcustom(keys: Iterable[str]) -> bool:
    return any(".to_k_vision." in key or key.startswith(PROJECTOR) for key in keys)


def _is_timm(keys: Iterable[str]) -> bool:
    return any(key.removeprefix("visual.trunk.") == "patch_embed.proj.weight" for key in keys)


def _is_dino(keys: Iterable[str]) -> bool:
    return _is_timm(keys) and any(key.endswith(("reg_token", "register_tokens")) for key in keys)


# In this order: the first that fits counts.
KINDS: dict[str, Callable[[Iterable[str]], bool]] = {
    "RealCustom++ weights": _is_realcustom,
    "U-Net": lambda keys: "time_embedding.linear_1.weight" in keys and "conv_in.weight" in keys,
    "DINOv2": _is_dino,
    "SigLIP": _is_timm,
    "IP-Adapter": is_ip_adapter,
    "CLIP image encoder": lambda keys: "vision_model.embeddings.class_embedding" in keys,
    "autoencoder": lambda keys: "encoder.conv_in.weight" in keys and "decoder.conv_in.weight" in keys,
    "text encoder": lambda keys: any("text_model.embeddings." in key or key.startswith("transformer.") for key in keys),
}


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        parts: subfolders that were written.
        notes: what the user should know: what was left out and why.
    """

    parts: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class Found:
    """Files by what they are; each is mapped into memory, not read."""

    states: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def checkpoint_files(sources: Iterable[Path | str]) -> list[Path]:
    """The checkpoint files named, and those in the folders named, at any depth.

    Raises:
        ValueError: a source does not exist, or a folder holds none.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.suffix in ENDINGS and path.is_file())
            if not inside:
                raise ValueError(f"{source} holds no checkpoint: no file that ends in {', '.join(ENDINGS)}.")
            files += inside
        else:
            files.append(source)
    if not files:
        raise ValueError("There is nothing to convert: name the files, or the folder they lie in.")
    return files


def kind_of(keys: Iterable[str]) -> str | None:
    """What a state dict with these keys is, as a name in `KINDS`; None for nothing we know."""
    names = set(keys)
    return next((kind for kind, fits in KINDS.items() if fits(names)), None)


def find(files: Iterable[Path | str]) -> Found:
    """The files sorted by what their keys say they are.

    Raises:
        ValueError: a file cannot be read, or two are the same thing.
    """
    found = Found()
    for file in map(Path, files):
        state = read_state(file)
        kind = kind_of(state)
        if kind is None:
            found.notes.append(f"{file.name} is left out: its {len(state)} keys belong to nothing that is needed.")
        elif kind == "text encoder":
            found.notes.append(f"{file.name} is left out: it is a text encoder, and the base model brings its own.")
        elif kind in found.states:
            raise ValueError(f"{found.files[kind]} and {file} are both {kind}: name only one of them.")
        else:
            found.states[kind], found.files[kind] = state, file
    return found


def convert(
    sources: Iterable[Path | str],
    out: Path | str,
    *,
    unet_config: Mapping[str, Any] | Path | str | None = None,
    base: str | None = None,
    negative_prompt: str | None = None,
    dim_head: int = 64,
    dtype: torch.dtype | None = None,
) -> Converted:
    """Convert a downloaded release, or IP-Adapter's files, to a folder that `--adapter` takes.

    Args:
        sources: files, and folders that hold them.
        out: the folder to make; it does not exist yet, or is empty. After an error nothing of it is there.
        unet_config: configuration of the stock U-Net; default SDXL's, or for IP-Adapter the one that its keys imply.
        base: hub id or folder of the base model, as recorded in the settings; default the one of the same family.
        negative_prompt: recorded in the settings of the release instead of ours.
        dim_head: head size of the released projector's attention, which the weights do not tell.
        dtype: of the weights written; None as they are.

    Raises:
        ValueError: a file is unreadable or refused, keys that could change a picture are unknown, missing or
            misshapen, or `out` is taken.
    """
    found = find(checkpoint_files(sources))
    with whole_folder(Path(out)) as work:
        if "RealCustom++ weights" in found.states:
            _write_released(found, work, unet_config, base, negative_prompt, dim_head, dtype)
        elif "IP-Adapter" in found.states:
            encoder = found.states.get("CLIP image encoder")
            config = found.files["CLIP image encoder"].with_name("config.json") if encoder else None
            settings, notes = write_ip_adapter(
                found.states["IP-Adapter"], encoder, work, unet_config=unet_config, clip_config=config, base=base,
                dtype=dtype,
            )  # fmt: skip
            settings.save(work)
            found.notes += notes
        else:
            kinds = ", ".join(found.states) or "nothing known"
            raise ValueError(f"None of the files holds RealCustom++ or IP-Adapter weights; found: {kinds}.")
        parts = tuple(name for name in PARTS if (work / name).is_dir())
    return Converted(parts, tuple(found.notes))


def _write_released(found: Found, work: Path, unet_config, base, negative_prompt, dim_head: int, dtype) -> None:
    # The base U-Net first: where both hold a key, RealCustom's counts, as in the released pipeline.
    state = {**found.states.get("U-Net", {}), **found.states["RealCustom++ weights"]}
    config = stock_config(unet_config)
    split = write_release(state, work, config, dim_head, dtype)
    if split.left:
        found.notes.append(f"left out, since no network reads it: {', '.join(split.left)}.")
    if not split.unet:
        found.notes.append("the files hold no U-Net: the base model's own is used.")
    backbones = [found.states.get(name) for name in ("SigLIP", "DINOv2")]
    if None not in backbones:
        kind = split.adapter_config["projector_config"]["kind"]
        write_encoder(*backbones, work, dtype=dtype, **encoder_levels(kind))
    elif any(backbones):
        lacking = "SigLIP" if backbones[0] is None else "DINOv2"
        raise ValueError(f"The reference encoder needs both backbones, and {lacking} is not among the files.")
    else:
        found.notes.append("SigLIP and DINOv2 are not among the files: a reference encoder must be given to use it.")
    if "autoencoder" in found.states:
        beside = found.files["autoencoder"].with_name("sdxl.json")
        write_vae(found.states["autoencoder"], work, _record(beside), dtype)
    released_settings(base or "stabilityai/stable-diffusion-xl-base-1.0", config, negative_prompt).save(work)


def _record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON.") from error
