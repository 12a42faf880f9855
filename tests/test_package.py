"""The wheel that `make dist` builds works by itself: in an empty environment, away from the sources."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built with the command of the Makefile."""
    out = tmp_path_factory.mktemp("dist")
    (command,) = re.findall(r"^\t\$\(BIN\)/python (-m pip wheel .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = command.replace("--wheel-dir dist", f"--wheel-dir {out}").split()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    (built,) = out.iterdir()
    return built


def test_the_wheel_holds_package_weights_and_references(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "realcustom/__init__.py",
        "realcustom/miniature/weights/unet/diffusion_pytorch_model.safetensors",
        "realcustom/examples/rex.png",
    ):
        assert name in names
    assert not [name for name in names if name.startswith("tests/")]


def test_it_works_in_an_empty_environment(wheel, tmp_path):
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # Its dependencies are those of this environment, as a path: what is under test comes from the wheel alone.
    purelib = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    ).stdout.decode()
    (Path(purelib.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    realcustom = str(environment / "bin" / "realcustom")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    where = run(str(python), "-c", "import realcustom; print(realcustom.__file__)")
    assert where.startswith(str(environment))
    reference = Path(where).parent / "examples" / "rex.png"
    made = run(realcustom, "generate", "a dog", "--subject", f"dog={reference}", "--steps", "1", "--out", "dog.png")
    assert made == "dog.png"
    assert (tmp_path / "dog.png").read_bytes()[:4] == b"\x89PNG"
