"""Checkpoints that are whole or not there: written beside, synced to disk, then renamed.

A checkpoint is a folder `step-00001000` of safetensors files (`trained.<network>`, `average`, `optimizer`) and a
`state.json`. A process killed while it saves leaves a folder whose name starts with a dot, which nothing reads and the
next save removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "step-"
UNFINISHED = ".unfinished-"
DISCARDED = ".discarded-"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(PREFIX) and (path / "state.json").is_file())


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write one checkpoint atomically and remove all but the newest `keep`.

    Args:
        folder: of the run's checkpoints.
        step: optimiser steps done.
        tensors: file stem -> name -> tensor.
        state: plain JSON values.
        keep: complete checkpoints that stay, this one included.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    final = folder / f"{PREFIX}{step:08d}"
    unfinished = folder / f"{UNFINISHED}{final.name}"
    unfinished.mkdir()
    for stem, named in tensors.items():
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, unfinished / f"{stem}.safetensors")
    (unfinished / "state.json").write_text(json.dumps(state, indent=1), encoding="ascii")
    for path in [*unfinished.iterdir(), unfinished]:
        _sync(path)
    if final.exists():
        _discard(final)
    os.rename(unfinished, final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        _discard(old)
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors (file stem -> name -> tensor) and the state of a checkpoint.

    Raises:
        ValueError: the folder is no complete checkpoint, or a file in it is damaged.
    """
    if not (path / "state.json").is_file():
        raise ValueError(f"{path} is no checkpoint: it has no state.json.")
    try:
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        state = json.loads((path / "state.json").read_text(encoding="ascii"))
    except (SafetensorError, json.JSONDecodeError) as error:
        advice = "remove it and resume from the one before"
        raise ValueError(f"The checkpoint {path} is damaged ({error}): {advice}.") from error
    return tensors, state


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith((UNFINISHED, DISCARDED)):
            shutil.rmtree(path)


def _discard(path: Path) -> None:
    """Rename before removing: a removal cut short must not leave half a checkpoint under a valid name."""
    gone = path.with_name(DISCARDED + path.name)
    os.rename(path, gone)
    shutil.rmtree(gone)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
