"""The locks: exact versions from any registry, torch for every machine, and never torchvision."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("-r ")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert all(found), f"{name} holds a line that is no exact version from a registry"
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_exact_versions_and_no_torchvision(lock):
    assert "torchvision" not in pins(lock)


def test_torch_is_pinned_without_a_local_version():
    assert pins("requirements.lock")["torch"] == "2.13.0"


def test_every_declared_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked = pins("requirements.lock")
    for lock, wanted in (
        ("requirements.lock", [*project["dependencies"], *extras["dev"]]),
        ("requirements-serve.lock", extras["serve"]),
        ("requirements-serve-test.lock", extras["serve-test"]),
        ("requirements-ray.lock", extras["ray"]),
        ("requirements-heic.lock", extras["heic"]),
    ):
        names = [re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted]
        assert [name for name in names if name not in locked | pins(lock)] == []
