"""The folder of reference data: tensors and numbers that the authors' released code computed.

`REALCUSTOM_REFERENCE` names another folder of the same format; sizes and cases are always read from its JSON files.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """One NAME.json with the tensors of its NAME.safetensors."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, under the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    default = Path(__file__).parents[1] / "reference"
    return Path(os.environ.get("REALCUSTOM_REFERENCE") or default)


@pytest.fixture(scope="session")
def load_reference(reference_folder: Path) -> Callable[[str], Reference]:
    """`load_reference("uno/loop")` -> the JSON and the tensors of that name; a missing file fails the test."""
    cache: dict[str, Reference] = {}

    def load(name: str) -> Reference:
        if name not in cache:
            file = reference_folder / f"{name}.json"
            meta = json.loads(file.read_text())
            tensors = load_file(file.parent / meta.get("file", f"{file.stem}.safetensors"))
            cache[name] = Reference(meta, tensors)
        return cache[name]

    return load


def max_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of the same shape."""
    assert actual.shape == expected.shape
    return (actual.double() - expected.double()).abs().max().item()


@pytest.fixture(scope="session", name="max_difference")
def max_difference_fixture() -> Callable[[Tensor, Tensor], float]:
    return max_difference


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.parity)
