"""One self-contained HTML page of a run: tables, picture grids and masks, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from realcustom.pictures.overlays import overlay

from .benchmark import opened
from .generation import Made

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1c1e; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figure img { height: 112px; image-rendering: auto; margin-right: 3px; }
figcaption { font-size: 12px; max-width: 24rem; color: #555; }
.elsewhere { color: #555; } .elsewhere caption { text-align: left; font-style: italic; padding: .3rem 0; }
"""
SHOWN = 60  # pictures of a page; a page of 3,000 would not open


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(lines: Sequence[Sequence[str]], caption: str = "", elsewhere: bool = False) -> str:
    """A table; the first line is the header. elsewhere: numbers that others measured."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in lines[0])
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[1:])
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    kind = ' class="elsewhere"' if elsewhere else ""
    return f"<table{kind}>{told}<tr>{head}</tr>{rows}</table>"


def grid(made: Sequence[Made], beside: Sequence[Made] = (), names: str = "") -> str:
    """References, image, image under its mask and, where given, the same task's image of another run."""
    others = {entry.task.key: entry for entry in beside}
    cells = []
    for entry in made[:SHOWN]:
        pictures = [opened(picture) for subject in entry.task.subjects for picture in subject.images[:1]]
        image = entry.image
        pictures.append(image)
        pictures += [overlay(image, mask) for mask in entry.masks]
        if entry.task.key in others:
            pictures.append(others[entry.task.key].image)
        shown = "".join(f'<img src="{embedded(picture)}" alt="">' for picture in pictures)
        cells.append(f"<figure>{shown}<figcaption>{html.escape(entry.task.prompt)}</figcaption></figure>")
    told = f"<p>{html.escape(names)}</p>" if names else ""
    left = f"<p>{len(made) - SHOWN} more are in the folder.</p>" if len(made) > SHOWN else ""
    return f'{told}<div class="grid">{"".join(cells)}</div>{left}'


def embedded(picture: Image.Image, side: int = 256) -> str:
    """The picture as a data URI, at most `side` pixels."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def write_page(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
