"""`realcustom data prepare` writes shards from each kind of source and says what it dropped."""

import json

import pytest
from conftest import picture
from typer.testing import CliRunner

from realcustom.cli.data import app


def run(*arguments):
    result = CliRunner().invoke(app, ["prepare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def pictures(tmp_path):
    """Two views each of a dog and a teapot, and one picture that is too small."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("dog", "teapot")):
        (folder / name).mkdir(parents=True)
        for view in range(2):
            picture(seed=10 * number + view, size=80).save(folder / name / f"{view}.png")
    picture(seed=99, size=20).save(folder / "dog" / "tiny.png")
    return folder


def test_views_become_pairs(pictures, tmp_path):
    out = run("views", pictures, "--out", tmp_path / "out", "--size", 64, "--least-side", 64)
    assert "4 of" in out
    assert "picture too small" in out
    assert len(list((tmp_path / "out").glob("real-*.tar"))) == 1


def test_images_and_jsonl(pictures, tmp_path):
    for path in pictures.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a photo of a {path.parent.name} on a table")
    assert "4 of 5 kept" in run("images", pictures, "--out", tmp_path / "a", "--size", 64, "--least-side", 64)
    lines = [{"image": f"dog/{view}.png", "caption": "a dog on the grass", "word": "dog"} for view in range(2)]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    arguments = ("--images", pictures, "--out", tmp_path / "b", "--size", 64, "--least-side", 64)
    assert "2 of 2 kept" in run("jsonl", file, *arguments)
