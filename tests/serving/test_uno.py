"""FLUX with UNO's LoRA behind the same routes as every model."""

from pathlib import Path

import pytest
from conftest import picture
from tiny_flux import write_flux_files

from .conftest import data_url, png, wait


@pytest.fixture(scope="module")
def engine(tokenizer, tmp_path_factory):
    from realcustom import Engine

    files: Path = write_flux_files(tokenizer, tmp_path_factory.mktemp("flux"))
    return Engine.load(str(files / "base"), adapter=str(files / "uno"), device="cpu")


def test_subjects_over_rest(client, engine):
    subjects = {word: data_url(png(picture(seed))) for word, seed in (("dog", 1), ("cat", 2))}
    body = {"prompt": "a dog and a cat on the sofa", "subjects": subjects, "width": 64, "height": 48, "steps": 2}
    answer = client.post("/v1/generations", json=body)
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"])
    assert (job["state"], job["masks"]) == ("done", ["dog", "cat"])
    again = client.post("/v1/restore", content=client.get(job["images"][0]).content).json()
    assert again["missing"] == []
    assert again["request"] == job["request"]
    refused = client.post("/v1/generations", json={**body, "image": data_url(png())})
    assert refused.status_code == 422
    assert "leave image, hole and controls out" in refused.json()["detail"]
