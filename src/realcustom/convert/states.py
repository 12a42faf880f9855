"""State dicts of others: read without harm and without holding them in memory, written tensor by tensor.

Files are mapped into memory, so a checkpoint of 12 GB costs what one of its tensors takes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

LISTED = 20  # keys named in a sentence, of each kind
WRAPPERS = ("state_dict", "module", "model", "ema", "model_state_dict")
# Left behind by training, or read by no network: they cannot change a picture.
HARMLESS = re.compile(
    r"(?:.*\.)?(?:position_ids|num_batches_tracked|logit_scale|logit_bias|global_step|step|epoch|num_updates|decay"
    r"|alphas_cumprod|betas)|(?:optimizer|lr_scheduler|scheduler|ema_model|loss)\..*"
)
SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def read_state(file: Path | str) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a pickle, of which only tensors are read (`weights_only`).

    Dictionaries inside dictionaries become dotted names; wrappers around all of it (`state_dict`, `module.`) fall away.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but named tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no checkpoint file {file}.")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} is refused: it is no checkpoint, or holds more than tensors.") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{file} is damaged or no checkpoint.") from error
    return unwrapped(_flat(_inner(state), file))


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without prefixes that all of its names share and that only wrap it."""
    state = dict(state)
    for prefix in (f"{wrapper}." for wrapper in WRAPPERS * 2):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _inner(state: Any) -> Any:
    """What a training's checkpoint wraps: its state dict, without the counters and optimisers beside it."""
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            return _inner(state[wrapper])
    return state


def _flat(state: Any, file: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} is no state dict: it must hold named tensors and nothing else.")
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": tensor for inner, tensor in _flat(value, file).items()}
        elif isinstance(value, Tensor):
            flat[str(name)] = value
        else:
            raise ValueError(f"{file} is no state dict: it must hold named tensors and nothing else.")
    return flat


def write_state(file: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """A safetensors file, written tensor by tensor.

    Args:
        dtype: of floating-point tensors; None leaves each as it is.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in state.items():
        kind = _stored_dtype(tensor, dtype)
        size = tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in state.values():
            stored = tensor.detach().to(_stored_dtype(tensor, dtype)).contiguous()
            stream.write(stored.reshape(-1).view(torch.uint8).numpy())


def _stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def save_model(model: nn.Module, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a diffusers model's folder from a state dict, as `save_pretrained` would.

    Args:
        model: gives configuration, names and shapes; may lie on the meta device.

    Raises:
        ValueError: names or shapes differ; all are listed.
    """
    expected = model.state_dict()
    check_keys({name: t.shape for name, t in state.items()}, {name: t.shape for name, t in expected.items()})
    folder.mkdir(parents=True)
    model.save_config(folder)
    write_state(folder / "diffusion_pytorch_model.safetensors", {name: state[name] for name in expected}, dtype)


def check_keys(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Compare names and shapes; ValueError that lists unknown, missing and misshapen keys where they differ."""
    misshapen = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    problems = {
        "unknown": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        parts = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"The checkpoint does not fit the network's configuration: {parts}.")


def listed(names: Sequence[str]) -> str:
    """Names for a sentence, cut after `LISTED`."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def without_harmless(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict without names that cannot change a picture, and those names."""
    left = [name for name in state if HARMLESS.fullmatch(name)]
    return {name: tensor for name, tensor in state.items() if name not in set(left)}, left


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` once the block is through; nothing stays after an error.

    Raises:
        ValueError: `out` exists already and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; name a new folder.")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        if out.is_dir():
            out.rmdir()
        os.replace(work, out)
    finally:
        rmtree(work, ignore_errors=True)
