"""Into a picture, with a layout, in an outline: python examples/create.py [FOLDER] [MODEL]

Draws a scene, a hole and an outline into FOLDER (outputs/create), makes pictures with them and puts those on sheets.
With --inputs it stops after the drawing.
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from demo import sheet
from PIL import Image, ImageDraw

from realcustom import Engine, Request, Subject
from realcustom.data.outlines import outline
from realcustom.data.scenes import Backgrounds
from realcustom.pictures.opening import open_image
from realcustom.pictures.png import write_png

REFERENCES = Path(__file__).parent / "references"
REX, TOM, TEDDY = (REFERENCES / f"{name}.png" for name in ("rex", "tom", "teddy"))
SIDE = 128
HOLE = (0.15, 0.3, 0.9, 0.95)
LEFT, RIGHT = (0.0, 0.2, 0.5, 1.0), (0.5, 0.2, 1.0, 1.0)


def silhouette() -> np.ndarray:
    """A four-legged animal seen from the side, bool (1, SIDE, SIDE)."""
    canvas = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((38, 52, 104, 92), fill=255)  # body
    draw.ellipse((18, 30, 60, 70), fill=255)  # head
    draw.polygon(((22, 40), (20, 16), (36, 34)), fill=255)
    draw.polygon(((44, 34), (56, 16), (58, 42)), fill=255)
    for left in (42, 56, 82, 93):
        draw.rounded_rectangle((left, 76, left + 10, 116), 4, fill=255)
    draw.line(((100, 64), (112, 50), (114, 34)), fill=255, width=7, joint="curve")
    return np.asarray(canvas)[None] > 0


def draw_inputs(folder: Path) -> None:
    """scene.png, hole.png (white is the hole) and outline.png."""
    scene = Backgrounds(SIDE, seed=3).background("meadow", random.Random(1))
    hole = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(hole).rectangle([round(side * SIDE) for side in HOLE], fill=255)
    lines = Image.fromarray(outline(silhouette()))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("scene", scene), ("hole", hole), ("outline", lines)):
        write_png(folder / f"{name}.png", picture)


def into_a_picture(engine: Engine, folder: Path) -> list[tuple[str, Image.Image]]:
    """Two subjects in one hole of one scene."""
    scene = open_image(folder / "scene.png")
    shared = {"image": scene, "hole": folder / "hole.png", "feather": 4, "seed": 1}
    rex = Request(prompt="a dog in a meadow", subjects={"dog": REX}, **shared)
    tom = Request(prompt="a cat in a meadow", subjects={"cat": TOM}, **shared)
    return [("a scene", scene), ("rex in its hole", drawn(engine, rex)), ("tom in its hole", drawn(engine, tom))]


def from_a_picture(engine: Engine) -> list[tuple[str, Image.Image]]:
    """A picture of tom, and what becomes of it when rex is drawn on it for a share of the steps."""
    start = drawn(engine, Request(prompt="a cat on the beach", subjects={"cat": TOM}, seed=1))
    rex = Request(prompt="a dog on the beach", subjects={"dog": REX}, image=start, seed=1)
    shares = [(f"rex, {share:g} of the steps", drawn(engine, replace(rex, denoising=share))) for share in (0.6, 0.9)]
    return [("tom", start), *shares]


def in_boxes(engine: Engine) -> list[tuple[str, Image.Image]]:
    """Two subjects in a box each, and with their boxes changed."""
    made = []
    for title, dog, cat in (("rex left, tom right", LEFT, RIGHT), ("rex right, tom left", RIGHT, LEFT)):
        subjects = {"dog": Subject(REX, region=dog), "cat": Subject(TOM, region=cat)}
        made.append((title, drawn(engine, Request(prompt="a dog and a cat on the beach", subjects=subjects, seed=3))))
    return made


def in_an_outline(engine: Engine, folder: Path) -> list[tuple[str, Image.Image]]:
    """Three identities in one outline."""
    made = [("an outline", open_image(folder / "outline.png"))]
    for name, word, reference in (("rex", "dog", REX), ("tom", "cat", TOM), ("teddy", "teddy bear", TEDDY)):
        request = Request(
            prompt=f"a {word} in a meadow",
            subjects={word: reference},
            controls=[{"image": folder / "outline.png"}],
            seed=4,
        )
        made.append((f"{name} in it", drawn(engine, request)))
    return made


def drawn(engine: Engine, request: Request) -> Image.Image:
    return engine.run(request).images[0]


def main(folder: Path, model: str) -> None:
    draw_inputs(folder)
    engine = Engine.load(model, controlnet="miniature-outline")
    sheets = {
        "hole": into_a_picture(engine, folder),
        "picture": from_a_picture(engine),
        "boxes": in_boxes(engine),
        "outlines": in_an_outline(engine, folder),
    }
    for name, pictures in sheets.items():
        write_png(folder / f"{name}_sheet.png", sheet(pictures))
        print(folder / f"{name}_sheet.png")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--inputs"]
    place = Path(arguments[0] if arguments else "outputs/create")
    if "--inputs" in sys.argv:
        draw_inputs(place)
    else:
        main(place, arguments[1] if len(arguments) > 1 else "miniature")
