"""UNO's lists of training pictures: JSON rows of a prompt, references and the picture to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realcustom.data.buckets import stretched
from realcustom.encoders.reference_latents import pixels
from realcustom.pictures.opening import open_image


@dataclass(frozen=True)
class UnoRow:
    """One sample: the prompt, the references of its subjects in order, the target."""

    prompt: str
    references: tuple[Path, ...]
    target: Path


def read_rows(file: Path | str) -> list[UnoRow]:
    """The rows of a list in the release's format, their paths relative to the file.

    Raises:
        ValueError: the file is no such list, a row lacks its target, or rows have different numbers of references:
            those of a batch must have equally many, so each stage has a file of its own.
    """
    file = Path(file)
    try:
        records = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no readable JSON list of training rows.") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} is no JSON list of training rows.")
    rows = [_row(record, number, file) for number, record in enumerate(records)]
    counts = sorted({len(row.references) for row in rows})
    if len(counts) > 1:
        raise ValueError(f"The rows of {file} have {counts} references: make a file for each number.")
    return rows


def _row(record: Any, number: int, file: Path) -> UnoRow:
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f"Row {number} of {file} has no prompt.")
    if not record.get("image_tgt_path"):
        raise ValueError(f"Row {number} of {file} has no image_tgt_path: it is made for evaluation, not for training.")
    paths = record.get("image_paths") or [record.get("image_path")]
    if not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"Row {number} of {file} has no image_paths.")
    references = tuple(file.parent / path for path in paths)
    return UnoRow(record["prompt"], references, file.parent / record["image_tgt_path"])


class UnoRows:
    """A source of batches: rows of one list, their pictures stretched to common buckets.

    Args:
        file: the list.
        tokenizers: by name a function from prompts to token numbers (N, T).
        resolution: side in pixels of the square bucket, of targets and of references.
    """

    def __init__(self, file: Path | str, tokenizers: dict[str, Callable[[list[str]], np.ndarray]], resolution: int):
        self.rows, self.tokenizers, self.resolution = read_rows(file), tokenizers, resolution
        self.size: int | None = len(self.rows)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """images (B, 3, H, W), reference_0, reference_1 ... (B, 3, h, w), in [-1, 1]; tokens (B, T) by tokenizer."""
        rows = [self.rows[index] for index in map(int, indices)]
        batch = {"images": self._pictures([row.target for row in rows])}
        for slot in range(len(rows[0].references)):
            batch[f"reference_{slot}"] = self._pictures([row.references[slot] for row in rows])
        for name, tokenize in self.tokenizers.items():
            batch[name] = torch.from_numpy(tokenize([row.prompt for row in rows])).long()
        return batch

    def _pictures(self, paths: list[Path]) -> torch.Tensor:
        return stretched([pixels(open_image(path))[0] for path in paths], self.resolution)
