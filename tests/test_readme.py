"""Every command and every program of the README and of docs/create.md runs, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOT_RUN = "<!-- not run -->"
# These install, or run this test: the clean-clone check runs them itself.
RUN_ELSEWHERE = re.compile(r"\s*(git clone|cd |make (install|test|test-parity|check)\b|\. |source )")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "outputs", "weights", "*.egg-info", ".*_cache", "__pycache__")


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language that no `NOT_RUN` stands before."""
    pattern = rf"(?P<mark>{re.escape(NOT_RUN)}\s*)?^```{language}\n(?P<code>.*?)^```"
    found = re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE)
    return [match["code"] for match in found if not match["mark"]]


def commands(block: str) -> str:
    return "\n".join(line for line in block.splitlines() if not RUN_ELSEWHERE.match(line)).strip()


def readme() -> str:
    return (ROOT / "README.md").read_text()


def create() -> str:
    return (ROOT / "docs" / "create.md").read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("readme") / "copy", ignore=LEFT_OUT))


def run(command: list[str], folder: Path) -> None:
    stamp = folder / ".installed"
    stamp.touch()
    here = {"VENV": sys.prefix, "STAMP": str(stamp)}
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MAKEFLAGS": " ".join(f"{name}={value}" for name, value in here.items()),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", [text for text in map(commands, blocks(readme(), "bash")) if text])
def test_commands_of_the_readme_run(block, copy):
    run(["bash", "-euc", block], copy)


@pytest.mark.parametrize("block", blocks(readme(), "python"))
def test_programs_of_the_readme_run(block, copy):
    run([sys.executable, "-c", block], copy)


def test_the_page_about_creating_runs_from_its_first_command_on(copy):
    run(["bash", "-euc", "\n".join(map(commands, blocks(create(), "bash")))], copy)
    for block in blocks(create(), "python"):
        run([sys.executable, "-c", block], copy)
    scene, made = (np.asarray(Image.open(copy / "outputs" / "create" / name)) for name in ("scene.png", "rex.png"))
    left, top, right, bottom = (round(128 * side) for side in (0.15, 0.3, 0.9, 0.95))
    outside = np.ones(scene.shape[:2], bool)
    outside[top:bottom, left:right] = False
    assert np.array_equal(made[outside], scene[outside])
    assert not np.array_equal(made[~outside], scene[~outside])


def test_blocks_are_found():
    text = (
        f"a\n```bash\none\n```\n{NOT_RUN}\n```bash\ntwo\n```\n```python\nthree\n```\n\n```bash\nfour\nmake test\n```\n"
    )
    assert [commands(block) for block in blocks(text, "bash")] == ["one", "four"]
    assert blocks(text, "python") == ["three\n"]
