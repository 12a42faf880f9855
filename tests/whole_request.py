"""A request that says something else than the default in every field, for tests of what travels from door to door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import picture
from PIL import Image

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
    "image": "photo.png",
    "denoising": 0.5,
    "hole": "hole.png",
    "feather": 3,
    "padding": 4,
    "controls": [{"image": "outline.png", "name": "outline", "scale": 0.5, "start": 0.25, "end": 1.0}],
    "long_prompt": True,
    "prompt_weights": True,
}
PICTURES = ("subjects", "image", "hole", "controls")  # fields that name pictures
OPTIONS = {
    "negative_prompt": "--negative-prompt",
    "steps": "--steps",
    "seed": "--seed",
    "num_images": "--num-images",
    "guidance_scale": "--guidance-scale",
    "image_guidance_scale": "--image-guidance-scale",
    "mask_scope": "--mask-scope",
    "preset": "--preset",
    "image": "--image",
    "denoising": "--denoising",
    "hole": "--hole",
    "feather": "--feather",
    "padding": "--padding",
}


def write_pictures(folder: Path) -> None:
    """The pictures that it names; two of them have the same file name."""
    for name, number in (("a", 0), ("b", 5)):
        (folder / name).mkdir()
        picture(number).save(folder / name / "rex.png")
    picture(1).save(folder / "tom.png")
    paint = np.full((16, 16, 4), 255, dtype=np.uint8)
    paint[:8, :, 3] = 0
    Image.fromarray(paint).save(folder / "mask.png")
    picture(2, 80).save(folder / "photo.png")
    hole = np.zeros((20, 20), dtype=np.uint8)
    hole[5:15, 2:18] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    picture(3).save(folder / "outline.png")


def command_options() -> list[str]:
    """It as options of `realcustom generate`."""
    options = [f"{OPTIONS[name]}={REQUEST[name]}" for name in OPTIONS]
    for word, subject in SUBJECTS.items():
        region = subject["region"] if isinstance(subject["region"], str) else ",".join(map(str, subject["region"]))
        options += [part for image in subject["images"] for part in ("--subject", f"{word}={image}")]
        options += ["--strength", f"{word}={subject['strength']}", "--region", f"{word}={region}"]
        if subject["weights"]:
            options += ["--weights", f"{word}={','.join(map(str, subject['weights']))}"]
    for control in REQUEST["controls"]:
        numbers = f"{control['scale']},{control['start']},{control['end']}"
        options += ["--control", f"{control['name']}={control['image']}@{numbers}"]
    options += ["--long-prompt", "--prompt-weights"]
    return [*options, "--size", f"{REQUEST['width']}x{REQUEST['height']}"]
