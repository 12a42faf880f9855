"""Every field of a request passes every door here and comes back from the image: Python, command line, batch."""

import json
import os
from dataclasses import MISSING, fields

import numpy as np
import pytest
from PIL import Image
from whole_request import REQUEST, SUBJECTS, command_options, write_pictures

from realcustom.engine.engine import Engine
from realcustom.engine.requests import request_from_record
from realcustom.pictures.png import read_metadata, write_png
from realcustom.types import ControlImage, Request, Subject


@pytest.fixture
def pictures(folder):
    write_pictures(folder)
    return folder


def by_python(realcustom, model, net) -> list[str]:
    result = Engine.load(model, controlnet=net).run(Request.from_dict(REQUEST))
    names = [f"python-{index}.png" for index in range(len(result.images))]
    for name, image, metadata in zip(names, result.images, result.metadata, strict=True):
        write_png(name, image, metadata)
    return names


def by_command(realcustom, model, net) -> list[str]:
    options = [*command_options(), "--model", model, "--controlnet", net, "--out", "command.png"]
    done = realcustom("generate", REQUEST["prompt"], *options)
    assert done.code == 0, done.error
    return done.lines


def by_batch(realcustom, model, net) -> list[str]:
    with open("jobs.jsonl", "w") as stream:
        stream.write(json.dumps({"id": "batch", **REQUEST}))
    done = realcustom("batch", "jobs.jsonl", "--out", "jobs", "--model", model, "--controlnet", net)
    assert done.code == 0, done.error
    return [f"jobs/batch-{index}.png" for index in range(2)]


def by_repeat(realcustom, model, net) -> list[str]:
    return [realcustom("repeat", f"command-{index}.png").lines[0] for index in range(2)]


def named(record):
    """A recorded request with the paths of its pictures alone, as it was asked for."""
    if isinstance(record, dict) and "sha256" in record:
        return record["path"]
    if isinstance(record, dict):
        return {name: named(value) for name, value in record.items()}
    return [named(value) for value in record] if isinstance(record, list) else record


def test_the_request_says_something_else_than_the_default_in_every_field():
    for entry in fields(Request):
        assert entry.default is MISSING or REQUEST[entry.name] != entry.default, entry.name
    for control in REQUEST["controls"]:
        assert set(control) == {entry.name for entry in fields(ControlImage)}
    assert set(REQUEST) == {entry.name for entry in fields(Request)}
    for entry in fields(Subject):
        assert any(subject[entry.name] != entry.default for subject in SUBJECTS.values()), entry.name
    assert all(set(subject) == {entry.name for entry in fields(Subject)} for subject in SUBJECTS.values())


def test_every_field_comes_back_from_every_door(realcustom, pictures, tiny_model, tiny_controlnet):
    images = {}
    for door in (by_python, by_command, by_batch, by_repeat):
        for index, name in enumerate(door(realcustom, tiny_model, f"outline={tiny_controlnet}")):
            record = read_metadata(name)
            wanted = {**REQUEST, "seed": REQUEST["seed"] + index, "num_images": 1}
            assert named(record["request"]) == wanted, door.__name__
            assert record["model"]["model"] == os.path.relpath(tiny_model)
            again = request_from_record(record["request"], beside=".").subjects["toy"].region.image
            assert np.asarray(again)[:, 0, 0].tolist() == [0] * 8 + [255] * 8, "the mask is its paint"
            pixels = np.asarray(Image.open(name))
            assert np.array_equal(images.setdefault(index, pixels), pixels), door.__name__
