"""The small FLUX model of the reference data, with or without its LoRA, and what its single passes are given."""

import json
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from realcustom.convert.uno import flux_from_released, load_lora
from realcustom.models.uno import ReferenceTokens


def small_config(folder: Path) -> dict:
    """The model's JSON; `folder` is the reference folder."""
    return json.loads((folder / "uno" / "flux_small.json").read_text())


def build_flux(folder: Path, dtype: torch.dtype = torch.float32):
    """diffusers' transformer with the reference's weights."""
    meta = small_config(folder)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(meta["diffusers_config"])
    state = flux_from_released(base_weights(folder, meta), transformer)
    transformer.load_state_dict(state, strict=True, assign=True)
    return cast(transformer, dtype).requires_grad_(False).eval()


def build_uno(folder: Path, dtype: torch.dtype = torch.float32):
    """The same with its LoRA, unmerged."""
    transformer = build_flux(folder)
    load_lora(transformer, lora_file(folder))
    transformer.set_adapters("uno", lora_scale(folder))
    return cast(transformer, dtype)


def lora_scale(folder: Path) -> float:
    """The adapter weight at which the reference was made."""
    return float(small_config(folder)["lora"]["scale_in_effect"])


def cast(transformer, dtype: torch.dtype):
    """All weights in a dtype; float32 they are already."""
    return transformer if dtype == torch.float32 else transformer.to(dtype)


def lora_file(folder: Path) -> Path:
    meta = small_config(folder)
    return folder / "uno" / meta["files"]["lora"]


def base_weights(folder: Path, meta: dict) -> dict[str, torch.Tensor]:
    """The weights' file, or the same numbers drawn from the seed that made it.

    The subset beside the tests leaves the file out and names the seed under "drawn"; the whole reference has the file.
    """
    file = folder / "uno" / meta["files"]["base"]
    if "drawn" not in meta or file.is_file():
        return load_file(file)
    generator = torch.Generator().manual_seed(meta["drawn"]["base"])
    return {name: _drawn(name, shape, generator) for name, shape in sorted(meta["base_keys"].items())}


def _drawn(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if name.endswith(".scale"):
        return 0.6 + 0.9 * torch.rand(shape, generator=generator)
    normal = torch.randn(shape, generator=generator)
    if len(shape) == 2:
        return normal * shape[1] ** -0.5
    return normal * (0.3 if "mod" in name.lower() else 0.1)


def pass_references(given: dict[str, torch.Tensor]) -> ReferenceTokens | None:
    """The references of a single pass, tokens and positions as stored."""
    tokens = [given[f"ref{index}"] for index in range(len(given)) if f"ref{index}" in given]
    if not tokens:
        return None
    ids = [given[f"ref{index}_ids"][0] for index in range(len(tokens))]
    return ReferenceTokens(
        tokens=torch.cat(tokens, dim=1), ids=torch.cat(ids), counts=tuple(one.shape[1] for one in tokens)
    )


def stored_latents(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Reference latents of a loop or of a training step."""
    return [given[f"ref{index}_latent"] for index in range(len(given)) if f"ref{index}_latent" in given]
