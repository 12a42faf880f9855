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


def write_pictures(folder: Path) -> None:
    """The pictures that it names; two of them have the same file name."""
    for name, number in (("a", 0), ("b", 5)):
        (folder / name).mkdir()
        picture(number).save(folder / name / "rex.png")
    picture(1).save(folder / "tom.png")
    paint = np.full((16, 16, 4), 255, dtype=np.uint8)
    paint[:8, :, 3] = 0
    Image.fromarray(paint).save(folder / "mask.png")


def command_options() -> list[str]:
    """It as options of `realcustom generate`."""
    options = [f"{OPTIONS[name]}={REQUEST[name]}" for name in OPTIONS]
    for word, subject in SUBJECTS.items():
        region = subject["region"] if isinstance(subject["region"], str) else ",".join(map(str, subject["region"]))
        options += [part for image in subject["images"] for part in ("--subject", f"{word}={image}")]
        options += ["--strength", f"{word}={subject['strength']}", "--region", f"{word}={region}"]
        if subject["weights"]:
            options += ["--weights", f"{word}={','.join(map(str, subject['weights']))}"]
    return [*options, "--size", f"{REQUEST['width']}x{REQUEST['height']}"]
