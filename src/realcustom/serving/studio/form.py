"""The form of the studio: its fields, what they ask for, and the sentences beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from realcustom.encoders.target_word import find_target
from realcustom.engine.characters import highlighted, mentions
from realcustom.serving.service import Service
from realcustom.serving.studio.look import sentence, sentence_box
from realcustom.types import MAX_SUBJECTS, RANDOM_SEED, Request, Subject

SETTINGS = (
    "negative_prompt",
    "seed",
    "num_images",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "image_guidance_scale",
    "mask_scope",
)
# How the sentences about settings begin; whatever else is wrong with a checked form concerns the prompt.
ABOUT_SETTINGS = (
    "The height",
    "The width",
    "The number",
    "The seed",
    "The guidance",
    "The image guidance",
    "The mask scope",
)
ABOUT_SIZE = ("One generation makes", "too large for this model")


@dataclass
class SubjectRow:
    """One subject: the words it is, what it looks like, how much it acts."""

    box: gr.Column
    words: gr.Textbox
    images: gr.Gallery
    strength: gr.Slider
    remove: gr.Button
    error: gr.HTML


@dataclass
class Form:
    """All fields. `inputs` are in the order in which handlers get their values: prompt, describe, settings, rows."""

    prompt: gr.Textbox
    prompt_error: gr.HTML
    marked: gr.HighlightedText
    describe: gr.Checkbox
    settings: dict[str, Any]
    settings_error: gr.HTML
    rows: list[SubjectRow] = field(default_factory=list)
    shown: gr.State | None = None

    @property
    def inputs(self) -> list[Any]:
        parts = [part for row in self.rows for part in (row.words, row.images, row.strength)]
        return [self.prompt, self.describe, *self.settings.values(), *parts]

    @property
    def errors(self) -> list[gr.HTML]:
        return [self.prompt_error, self.settings_error, *(row.error for row in self.rows)]

    @property
    def boxes(self) -> list[gr.Column]:
        return [row.box for row in self.rows]


def subject_row(index: int) -> SubjectRow:
    """The fields of one subject; all but the first are hidden until they are asked for."""
    with gr.Column(visible=index == 0, elem_classes="rc-subject", elem_id=f"subject-{index}") as box:
        images = gr.Gallery(
            label="Reference images" if index == 0 else f"Reference images of subject {index + 1}",
            interactive=True,
            type="filepath",
            format="png",
            columns=3,
            fit_columns=False,
            height=220,
            sources=["upload", "clipboard"],
            object_fit="contain",
            buttons=["fullscreen"],
            elem_id=f"images-{index}",
        )
        with gr.Row():
            words = gr.Textbox(
                label="Its word in the prompt",
                info="Several words for one image: dog, hat",
                placeholder="dog",
                max_lines=1,
                min_width=140,
                elem_id=f"words-{index}",
            )
            strength = gr.Slider(0, 2, value=1, step=0.05, label="Strength", min_width=140, elem_id=f"strength-{index}")
        error = sentence_box()
        remove = gr.Button("Remove this subject", size="sm", visible=index > 0)
    return SubjectRow(box, words, images, strength, remove, error)


def settings_fields(service: Service) -> dict[str, Any]:
    """The fields of the accordion, filled with the model's own defaults."""
    own = service.engine.describe()
    width, height = map(int, own["size"].split("x"))
    fields = {
        "negative_prompt": gr.Textbox(label="Negative prompt", placeholder="what the image does not show", max_lines=2)
    }
    with gr.Row():
        fields["seed"] = gr.Number(0, label="Seed", precision=0, minimum=RANDOM_SEED, min_width=100, elem_id="seed")
        fields["num_images"] = gr.Number(1, label="Images", precision=0, min_width=100, elem_id="num-images")
    with gr.Row():
        fields["width"] = gr.Number(
            width, label="Width", precision=0, min_width=100, step=own["size_grid"], elem_id="width"
        )
        fields["height"] = gr.Number(height, label="Height", precision=0, min_width=100, step=own["size_grid"])
    fields["steps"] = gr.Number(own["steps"], label="Steps", precision=0, elem_id="steps")
    with gr.Row():
        fields["guidance_scale"] = gr.Number(own["guidance_scale"], label="Guidance", step=0.5, min_width=100)
        fields["image_guidance_scale"] = gr.Number(
            own["image_guidance_scale"],
            label="Image guidance",
            info="Empty: one scale for both",
            step=0.5,
            min_width=100,
        )
    fields["mask_scope"] = gr.Slider(
        0.05, 1, value=own["mask_scope"], step=0.05, label="Scope", info="Share of the image that the subject may fill"
    )
    return {name: fields[name] for name in SETTINGS}


def read_form(service: Service, values: Sequence[Any]) -> tuple[dict[str, Any], list[str | None]]:
    """What the form asks for, as fields of `Service.submit`, and the sentence beside each place of `Form.errors`."""
    prompt, describe, *rest = values
    settings = {name: value for name, value in zip(SETTINGS, rest, strict=False) if value not in (None, "")}
    prompt_error = _refusal(prompt=prompt)
    settings_error = next(
        filter(None, (_refusal(prompt="x", **{name: value}) for name, value in settings.items())), None
    )
    subjects: dict[str, Any] = {}
    row_errors: list[str | None] = []
    parts = rest[len(SETTINGS) :]
    for index in range(MAX_SUBJECTS):
        words, images, strength = parts[3 * index : 3 * index + 3]
        try:
            row_errors.append(None)
            subjects |= _read_row(service, words, images, strength, subjects)
        except ValueError as error:
            row_errors[-1] = str(error)
    fields = {"prompt": prompt, "describe_characters": bool(describe), "subjects": subjects, **settings}
    return fields, [prompt_error, settings_error, *row_errors]


def place_of(text: str) -> int:
    """The index in `Form.errors` of a sentence about a form whose fields are right one by one."""
    about_settings = text.startswith(ABOUT_SETTINGS) or any(part in text for part in ABOUT_SIZE)
    return 1 if about_settings else 0


def show_sentences(texts: Sequence[str | None]) -> list[Any]:
    """Updates of `Form.errors`."""
    return [sentence(text) for text in texts]


def mark(service: Service, prompt: str, *words: str) -> tuple[list[tuple[str, str | None]], Any]:
    """The prompt with its subjects marked, and a sentence about those that it lacks."""
    labels: dict[str, str] = {}
    for name in mentions(prompt or ""):
        character = service.cast.find(name)
        if character is None:
            return [(prompt, None)], sentence(f"There is no character @{name}.")
        labels[f"@{name}"] = f"reads as {character.word}"
    named = [word for text in words for word in split_words(text)]
    labels |= dict.fromkeys(named, "subject")
    missing = next((word for word in named if prompt and not find_target(prompt, word)), None)
    text = missing and f'"{missing}" does not stand in the prompt.'
    return highlighted(prompt or "", labels) or [("", None)], sentence(text)


def split_words(text: str | None) -> list[str]:
    """ "dog, pink hat" as its words."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def fill(service: Service, fields: Mapping[str, Any]) -> list[Any]:
    """Updates of `Form.inputs` and `Form.boxes` that show these fields; subjects with the same images share a row."""
    rows: dict[tuple, tuple[list[str], Mapping[str, Any]]] = {}
    for word, subject in (fields.get("subjects") or {}).items():
        rows.setdefault((*subject["images"], subject["strength"]), ([], subject))[0].append(word)
    updates: list[Any] = [fields["prompt"], False, *(fields.get(name) for name in SETTINGS)]
    shown = list(rows.values())
    for index in range(MAX_SUBJECTS):
        words, subject = shown[index] if index < len(shown) else ([], {"images": [], "strength": 1.0})
        kept = service.store.pictures
        paths = [str(kept.path(name)) for name in subject["images"] if kept.has(name)]
        updates += [", ".join(words), paths, subject["strength"]]
    boxes = [gr.Column(visible=index < max(1, len(shown))) for index in range(MAX_SUBJECTS)]
    return updates + boxes


def uploads(service: Service, images: Sequence[Any] | None) -> list[str]:
    """The pictures of a gallery field as ids; ValueError with a sentence for one that is no usable picture."""
    paths = [Path(item[0] if isinstance(item, (tuple, list)) else item) for item in images or ()]
    return [service.store.add_upload(path.read_bytes(), service.limits)["id"] for path in paths]


def _read_row(service: Service, text: str, images: Any, strength: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    words = split_words(text)
    if not words and not images:
        return {}
    if not words:
        raise ValueError("Name the word of the prompt that this picture shows.")
    names = uploads(service, images)
    Subject(tuple(names), strength=strength)
    again = next((word for word in words if word in others or words.count(word) > 1), None)
    if again is not None:
        raise ValueError(f'The word "{again}" is given twice.')
    return {word: {"images": names, "strength": strength} for word in words}


def _refusal(**fields: Any) -> str | None:
    try:
        Request(**fields)
    except ValueError as error:
        return str(error)
    return None
