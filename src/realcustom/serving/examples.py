"""The pictures that the studio offers to begin with."""

from __future__ import annotations

from pathlib import Path


def example_folders() -> list[Path]:
    """Where the example pictures are: in an installed package, or in a checkout of the project."""
    here = Path(__file__).resolve()
    folders = (here.parents[1] / "examples", here.parents[3] / "examples" / "references")
    return [folder for folder in folders if folder.is_dir()]
