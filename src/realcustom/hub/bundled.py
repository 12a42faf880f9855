"""Models that ship inside the package, by name."""

from __future__ import annotations

from pathlib import Path

MODELS = {"miniature": Path(__file__).parents[1] / "miniature" / "weights"}
CONTROLNETS = {"miniature-outline": MODELS["miniature"] / "controlnet"}


def controlnet_folder(name: str) -> str:
    """The folder of a bundled ControlNet, or `name` itself (a folder or hub id)."""
    return str(CONTROLNETS.get(str(name), name))


def model_folder(name: str) -> str:
    """The folder of a bundled model, or `name` itself (a folder or hub id).

    Raises:
        ValueError: the model is bundled but its weights are not installed.
    """
    folder = MODELS.get(str(name))
    if folder is None:
        return str(name)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f'The weights of "{name}" are missing from this installation: reinstall it from a full clone.')
    return str(folder)
