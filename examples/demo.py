"""One reference in three contexts: python examples/demo.py [OUT.png] [MODEL]

Writes one picture: the reference, the guidance mask over the first result, and the three results.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from realcustom import Engine, Request
from realcustom.pictures.opening import open_image
from realcustom.pictures.overlays import overlay
from realcustom.pictures.png import write_png

REFERENCE = Path(__file__).parent / "references" / "rex.png"
WORD = "dog"
PROMPTS = ("a dog on the beach", "a dog in the snow", "a dog under the night sky")
SIDE, MARGIN, LINE = 256, 12, 28


def sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each SIDE x SIDE pixels over its title."""
    step = SIDE + MARGIN
    canvas = Image.new("RGB", (MARGIN + step * len(pictures), MARGIN + SIDE + LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for index, (title, picture) in enumerate(pictures):
        left = MARGIN + step * index
        canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, MARGIN))
        draw.text((left, MARGIN + SIDE + 6), title, fill="black", font=font)
    return canvas


def main(out: Path, model: str) -> None:
    engine = Engine.load(model)
    results = [engine.run(Request(prompt=prompt, subjects={WORD: REFERENCE}, seed=1)) for prompt in PROMPTS]
    first = results[0]
    mask = overlay(first.images[0], first.masks[WORD][-1, 0])
    made = [(prompt, result.images[0]) for prompt, result in zip(PROMPTS, results, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_png(out, sheet([("the reference", open_image(REFERENCE)), (f'mask of "{WORD}"', mask), *made]))
    print(out)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0] if arguments else "outputs/demo.png"), arguments[1] if len(arguments) > 1 else "miniature")
