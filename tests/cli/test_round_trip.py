"""Every field of a request passes every door here and comes back from the image: Python, command line, batch."""

import json
import os
from dataclasses import MISSING, fields

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.engine.engine import Engine
from realcustom.engine.requests import request_from_record
from realcustom.pictures.png import read_metadata, write_png
from realcustom.types import Request, Subject

SUBJECTS = {
    "dog, red": {
        "images": ["a/rex.png", "b/rex.png"],
        "strength": 0.75,
        "region": [0.0, 0.0, 0.5, 1.0],
        "weights": [1.0, 0.5],
    },
    "toy": {"images": ["tom.png"], "strength": 1.25, "region": "mask.png", "weights": None},
}
REQUEST = {
    "prompt": 'a dog, red and "wet" \u2603, and a toy',
    "subjects": SUBJECTS,
    "negative_prompt": "a cat",
    "height": 96,
    "width": 64,
    "steps": 2,
    "seed": 7,
    "num_images": 2,
    "guidance_scale": 2.5,
    "image_guidance_scale": 4.5,
    "mask_scope": 0.4,
    "preset": "fast",
}
OPTIONS = {
    "negative_prompt": "--negative-prompt",
    "steps": "--steps",
    "seed": "--seed",
    "num_images": "--num-images",
    "guidance_scale": "--guidance-scale",
    "image_guidance_scale": "--image-guidance-scale",
    "mask_scope": "--mask-scope",
    "preset": "--preset",
}


@pytest.fixture
def pictures(folder):
    for name, number in (("a", 0), ("b", 5)):
        (folder / name).mkdir()
        picture(number).save(folder / name / "rex.png")
    paint = np.full((16, 16, 4), 255, dtype=np.uint8)
    paint[:8, :, 3] = 0
    Image.fromarray(paint).save(folder / "mask.png")
    return folder


def by_python(realcustom, model) -> list[str]:
    result = Engine.load(model).run(Request.from_dict(REQUEST))
    names = [f"python-{index}.png" for index in range(len(result.images))]
    for name, image, metadata in zip(names, result.images, result.metadata, strict=True):
        write_png(name, image, metadata)
    return names


def by_command(realcustom, model) -> list[str]:
    options = [f"{OPTIONS[name]}={REQUEST[name]}" for name in OPTIONS]
    for word, subject in SUBJECTS.items():
        region = subject["region"] if isinstance(subject["region"], str) else ",".join(map(str, subject["region"]))
        options += [part for image in subject["images"] for part in ("--subject", f"{word}={image}")]
        options += ["--strength", f"{word}={subject['strength']}", "--region", f"{word}={region}"]
        if subject["weights"]:
            options += ["--weights", f"{word}={','.join(map(str, subject['weights']))}"]
    size = f"{REQUEST['width']}x{REQUEST['height']}"
    done = realcustom("generate", REQUEST["prompt"], *options, "--size", size, "--model", model, "--out", "command.png")
    assert done.code == 0, done.error
    return done.lines


def by_batch(realcustom, model) -> list[str]:
    with open("jobs.jsonl", "w") as stream:
        stream.write(json.dumps({"id": "batch", **REQUEST}))
    done = realcustom("batch", "jobs.jsonl", "--out", "jobs", "--model", model)
    assert done.code == 0, done.error
    return [f"jobs/batch-{index}.png" for index in range(2)]


def by_repeat(realcustom, model) -> list[str]:
    return [realcustom("repeat", f"command-{index}.png").lines[0] for index in range(2)]


def named(record: dict) -> dict:
    """A recorded request with the paths of its pictures alone, as it was asked for."""

    def path(value):
        return value["path"] if isinstance(value, dict) else value

    subjects = {
        word: {**subject, "images": [path(image) for image in subject["images"]], "region": path(subject["region"])}
        for word, subject in record["subjects"].items()
    }
    return {**record, "subjects": subjects}


def test_the_request_says_something_else_than_the_default_in_every_field():
    for entry in fields(Request):
        assert entry.default is MISSING or REQUEST[entry.name] != entry.default, entry.name
    assert set(REQUEST) == {entry.name for entry in fields(Request)}
    for entry in fields(Subject):
        assert any(subject[entry.name] != entry.default for subject in SUBJECTS.values()), entry.name
    assert all(set(subject) == {entry.name for entry in fields(Subject)} for subject in SUBJECTS.values())


def test_every_field_comes_back_from_every_door(realcustom, pictures, tiny_model):
    images = {}
    for door in (by_python, by_command, by_batch, by_repeat):
        for index, name in enumerate(door(realcustom, tiny_model)):
            record = read_metadata(name)
            wanted = {**REQUEST, "seed": REQUEST["seed"] + index, "num_images": 1}
            assert named(record["request"]) == wanted, door.__name__
            assert record["model"]["model"] == os.path.relpath(tiny_model)
            again = request_from_record(record["request"], beside=".").subjects["toy"].region.image
            assert np.asarray(again)[:, 0, 0].tolist() == [0] * 8 + [255] * 8, "the mask is its paint"
            pixels = np.asarray(Image.open(name))
            assert np.array_equal(images.setdefault(index, pixels), pixels), door.__name__
