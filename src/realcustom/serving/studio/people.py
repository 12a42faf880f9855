"""The studio's page of characters: saved, listed, edited, deleted, used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import ImageDraw

from realcustom.pictures.opening import open_image
from realcustom.pictures.overlays import TINT
from realcustom.serving.faces import crop, find_face
from realcustom.serving.service import Service
from realcustom.serving.studio.form import uploads
from realcustom.serving.studio.look import sentence, sentence_box

SIDES = ("left", "top", "right", "bottom")
MIDDLE = (25, 10, 75, 60)  # percent; where the box begins before a face is found


@dataclass
class People:
    """The fields of the page. `record` is in the order in which handlers get their values."""

    chosen: gr.Dropdown
    gallery: gr.Gallery
    record: list[Any]
    image: gr.Image
    sides: list[gr.Slider]
    error: gr.HTML
    note: gr.HTML
    buttons: dict[str, gr.Button]


def people_fields() -> People:
    """Lay the page out."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gallery = gr.Gallery(
                label="Characters",
                columns=3,
                fit_columns=False,
                height=300,
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id="characters",
            )
            chosen = gr.Dropdown(label="Character", choices=[], elem_id="character-chosen")
            with gr.Row():
                buttons = {
                    name: gr.Button(text, size="sm", min_width=90, elem_id=f"character-{name}", variant=variant)
                    for name, text, variant in (
                        ("use", "Use in prompt", "primary"),
                        ("new", "New", "secondary"),
                        ("delete", "Delete", "stop"),
                    )
                }
        with gr.Column(scale=3, min_width=280):
            record = _record_fields()
            with gr.Accordion("Face", open=False, elem_id="face"):
                image, sides, faces, face_strength = _face_fields(buttons)
            error, note = sentence_box(), gr.HTML(elem_classes="rc-status", elem_id="character-note")
            buttons["save"] = gr.Button("Save character", variant="primary", elem_id="character-save")
    return People(chosen, gallery, [*record, faces, face_strength], image, sides, error, note, buttons)


def _record_fields() -> list[Any]:
    with gr.Row():
        name = gr.Textbox(label="Name", placeholder="rex", max_lines=1, min_width=120, elem_id="character-name")
        word = gr.Textbox(label="Reads as", placeholder="dog", max_lines=1, min_width=120, elem_id="character-word")
    description = gr.Textbox(
        label="Description",
        placeholder="a brown dog with a white chest",
        info="What it is, and what is particular about its looks",
        max_lines=3,
        elem_id="character-description",
    )
    images = gr.Gallery(
        label="Images of the whole subject",
        interactive=True,
        type="filepath",
        format="png",
        columns=4,
        fit_columns=False,
        height=180,
        sources=["upload", "clipboard"],
        object_fit="contain",
        elem_id="character-images",
    )
    strength = gr.Slider(0, 2, value=1, step=0.05, label="Strength of the whole subject", elem_id="character-strength")
    return [name, word, description, images, strength]


def _face_fields(buttons: dict[str, gr.Button]) -> tuple[gr.Image, list[gr.Slider], gr.Gallery, gr.Slider]:
    image = gr.Image(
        label="Box around the face: click two opposite corners, or move the sides",
        interactive=False,
        type="pil",
        format="png",
        height=260,
        buttons=[],
        elem_id="face-image",
    )
    with gr.Row():
        sides = [
            gr.Slider(0, 100, value=value, step=1, label=f"{side.capitalize()} %", min_width=120)
            for side, value in zip(SIDES, MIDDLE, strict=True)
        ]
    with gr.Row():
        buttons["find"] = gr.Button("Find the face", size="sm", min_width=120, elem_id="face-find")
        buttons["crop"] = gr.Button("Add this face", size="sm", min_width=120, elem_id="face-crop")
    faces = gr.Gallery(
        label="Faces", interactive=True, type="filepath", format="png", columns=4, height=150, sources=["upload"]
    )
    return image, sides, faces, gr.Slider(0, 2, value=1, step=0.05, label="Strength of the face")


def listing(service: Service, chosen: str | None = None) -> tuple[Any, Any]:
    """Updates of the drop-down and the gallery."""
    characters = service.cast.list()
    names = [character.name for character in characters]
    shown = [
        (str(service.store.pictures.path(character.images[0])), f"@{character.name} - {character.word}")
        for character in characters
    ]
    choice = gr.Dropdown(choices=[(f"@{name}", name) for name in names], value=chosen if chosen in names else None)
    return choice, gr.Gallery(shown, selected_index=None)


def save(service: Service, editing: str | None, *values: Any) -> tuple[str | None, str | None]:
    """Keep the character of the form; its name, or a sentence about what is wrong with it."""
    name, word, description, images, strength, faces, face_strength = values
    try:
        record = {
            "name": name or "",
            "word": word or "",
            "description": description or "",
            "images": uploads(service, images),
            "faces": uploads(service, faces),
            "strength": strength,
            "face_strength": face_strength,
        }
        return service.save_character(record, editing).name, None
    except (ValueError, LookupError) as error:
        return None, str(error)


def load(service: Service, name: str | None) -> list[Any]:
    """Values of `People.record` for a character, or for a new one."""
    character = service.cast.find(name) if name else None
    if character is None:
        return ["", "", "", [], 1.0, [], 1.0]
    images, faces = (
        [str(service.store.pictures.path(picture)) for picture in pictures]
        for pictures in (character.images, character.faces)
    )
    return [
        character.name,
        character.word,
        character.description,
        images,
        character.strength,
        faces,
        character.face_strength,
    ]


def boxed(images: Any, *sides: float) -> Any:
    """The first image with the box around its face drawn in."""
    picture = _first(images)
    if picture is None:
        return None
    picture = picture.copy()
    picture.thumbnail((800, 800))
    left, top, right, bottom = (side / 100 for side in sides)
    corners = [(left * picture.width, top * picture.height), (right * picture.width, bottom * picture.height)]
    if corners[0][0] < corners[1][0] and corners[0][1] < corners[1][1]:
        ImageDraw.Draw(picture).rectangle([*corners[0], *corners[1]], outline=TINT, width=max(2, picture.width // 120))
    return picture


def found_face(images: Any) -> tuple[list[float] | None, str | None]:
    """Sides in percent of the largest face of the first image, or a sentence."""
    try:
        picture = _first(images)
        if picture is None:
            return None, "Give an image of the whole subject first."
        box = find_face(picture)
    except ValueError as error:
        return None, str(error)
    if box is None:
        return None, "No human face was found: draw the box yourself."
    return [round(100 * side) for side in box], None


def with_crop(service: Service, images: Any, faces: Any, *sides: float) -> tuple[Any, Any]:
    """Updates of the gallery of faces, with the boxed part added, and of the sentence."""
    try:
        picture = _first(images)
        if picture is None:
            raise ValueError("Give an image of the whole subject first.")
        face = service.store.add_picture(crop(picture, tuple(side / 100 for side in sides)))
        kept = [*uploads(service, faces), face["id"]]
    except ValueError as error:
        return gr.skip(), sentence(str(error))
    return [str(service.store.pictures.path(name)) for name in dict.fromkeys(kept)], sentence(None)


def corner(first: list[float] | None, images: Any, event: gr.SelectData) -> tuple[list[float] | None, list[Any]]:
    """A click on the picture: the first corner is kept, the second one gives the four sides in percent."""
    picture = _first(images)
    if picture is None:
        return None, [gr.skip()] * 4
    picture.thumbnail((800, 800))
    point = [100 * event.index[0] / picture.width, 100 * event.index[1] / picture.height]
    if first is None:
        return point, [gr.skip()] * 4
    low, high = (
        [min(pair) for pair in zip(first, point, strict=True)],
        [max(pair) for pair in zip(first, point, strict=True)],
    )
    return None, [round(side) for side in (*low, *high)]


def _first(images: Any):
    if not images:
        return None
    item = images[0]
    with open(item[0] if isinstance(item, (tuple, list)) else item, "rb") as stream:
        return open_image(stream.read())
