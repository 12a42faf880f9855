"""Into a picture, with a layout, in an outline: python examples/create.py [FOLDER] [MODEL]

Draws a scene, a hole and an outline into FOLDER (outputs/create), makes pictures with them and puts those on a sheet.
With --inputs it stops after the drawing.
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from realcustom import Engine, Request, Subject
from realcustom.data.outlines import outline
from realcustom.data.scenes import Backgrounds
from realcustom.pictures.png import write_png

REFERENCES = Path(__file__).parent / "references"
SIDE = 128
SEATED = (0.25, 0.2, 0.8, 0.95)
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
    ImageDraw.Draw(hole).ellipse([round(side * SIDE) for side in SEATED], fill=255)
    lines = Image.fromarray(outline(silhouette()))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("scene", scene), ("hole", hole), ("outline", lines)):
        write_png(folder / f"{name}.png", picture)


def requests(folder: Path) -> dict[str, Request]:
    """What is made, by its title."""
    rex, tom, teddy = (REFERENCES / f"{name}.png" for name in ("rex", "tom", "teddy"))
    scene = folder / "scene.png"
    control = [{"image": folder / "outline.png"}]
    boxes = {"dog": Subject(rex, region=LEFT), "cat": Subject(tom, region=RIGHT)}
    return {
        "rex in a hole": Request(
            prompt="a dog in a meadow", subjects={"dog": rex}, image=scene, hole=folder / "hole.png", feather=4, seed=2
        ),
        "tom instead": Request(
            prompt="a cat in a meadow", subjects={"cat": tom}, image=scene, hole=folder / "hole.png", feather=4, seed=2
        ),
        "0.7 of the steps": Request(
            prompt="a dog in the snow", subjects={"dog": rex}, image=scene, denoising=0.7, seed=2
        ),
        "two boxes": Request(prompt="a dog and a cat on the beach", subjects=boxes, seed=3),
        "changed places": Request(
            prompt="a dog and a cat on the beach",
            subjects={"dog": Subject(rex, region=RIGHT), "cat": Subject(tom, region=LEFT)},
            seed=3,
        ),
        "rex in the outline": Request(prompt="a dog in a meadow", subjects={"dog": rex}, controls=control, seed=1),
        "tom in it": Request(prompt="a cat in a meadow", subjects={"cat": tom}, controls=control, seed=1),
        "teddy in it": Request(
            prompt="a teddy bear in a meadow", subjects={"teddy bear": teddy}, controls=control, seed=1
        ),
    }


def main(folder: Path, model: str) -> None:
    from demo import sheet

    draw_inputs(folder)
    engine = Engine.load(model, controlnet="miniature-outline")
    made = {title: engine.run(request).images[0] for title, request in requests(folder).items()}
    inputs = [(name, Image.open(folder / f"{name}.png").convert("RGB")) for name in ("scene", "outline")]
    rows = [*inputs[:1], *list(made.items())[:3]], [*list(made.items())[3:5]], [*inputs[1:], *list(made.items())[5:]]
    strips = [sheet(row) for row in rows]
    canvas = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        canvas.paste(strip, (0, top))
        top += strip.height
    write_png(folder / "create.png", canvas)
    print(folder / "create.png")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--inputs"]
    place = Path(arguments[0] if arguments else "outputs/create")
    if "--inputs" in sys.argv:
        draw_inputs(place)
    else:
        main(place, arguments[1] if len(arguments) > 1 else "miniature")
