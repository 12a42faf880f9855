"""The page: reference and prompt on the left, results on the right, gallery and characters beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from realcustom.serving.examples import example_folders
from realcustom.serving.service import Service
from realcustom.serving.studio.events import connect
from realcustom.serving.studio.form import Form, settings_fields, subject_row
from realcustom.serving.studio.look import sentence_box
from realcustom.serving.studio.people import People, people_fields
from realcustom.serving.studio.results import NOTHING
from realcustom.types import MAX_SUBJECTS

EXAMPLES = (
    ("rex.png", "dog", "a dog on the beach"),
    ("tom.png", "cat", "a cat in the snow"),
    ("robot.png", "robot", "a robot in the forest"),
    ("teddy.png", "teddy bear", "a teddy bear under the night sky"),
)


@dataclass
class Results:
    """The right side of the page."""

    image: gr.Image
    thumbnails: gr.Gallery
    status: gr.HTML
    show_mask: gr.Checkbox
    word: gr.Radio
    step: gr.Slider
    download: gr.DownloadButton
    reuse: gr.Button
    keep: gr.Button
    state: gr.State


@dataclass
class Collection:
    """The page of what was made so far."""

    gallery: gr.Gallery
    restore: gr.Button
    reuse: gr.Button
    download: gr.DownloadButton
    places: gr.State
    chosen: gr.State


@dataclass
class Page:
    """Everything on it."""

    form: Form
    make: gr.Button
    cancel: gr.Button
    add: gr.Button
    new_seed: gr.Button
    dropped: gr.File
    dropped_error: gr.HTML
    results: Results
    collection: Collection
    people: People
    editing: gr.State
    first_corner: gr.State
    job: gr.State
    tabs: gr.Tabs


def build_studio(service: Service) -> gr.Blocks:
    """The studio on a service; it is mounted, not launched."""
    with gr.Blocks(title="realcustom", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            "<h1>realcustom</h1><p>Your own subject in new images: a reference picture and a word of the prompt.</p>",
            elem_classes="rc-title",
            padding=False,
        )
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"), gr.Row():
                left = _left(service)
                results = _right()
            with gr.Tab("Gallery", id="gallery"):
                collection = _collection()
            with gr.Tab("Characters", id="characters"):
                people = people_fields()
        states = {"editing": gr.State(None), "first_corner": gr.State(None), "job": gr.State(None)}
        page = Page(**left, results=results, collection=collection, people=people, tabs=tabs, **states)
        connect(blocks, page, service)
    return blocks


def _left(service: Service) -> dict[str, Any]:
    with gr.Column(scale=5, min_width=300):
        rows = [subject_row(0)]
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="a dog on the beach, or @rex on the beach",
            lines=1,
            max_lines=4,
            elem_id="prompt",
        )
        prompt_error = sentence_box()
        marked = gr.HighlightedText(
            label="Read as", combine_adjacent=False, show_inline_category=True, elem_id="marked", visible=False
        )
        rows += [subject_row(index) for index in range(1, MAX_SUBJECTS)]
        with gr.Row():
            make = gr.Button("Generate", variant="primary", min_width=130, elem_id="generate")
            cancel = gr.Button("Cancel", interactive=False, min_width=90, elem_id="cancel")
            add = gr.Button("Add a subject", min_width=110, elem_id="add-subject")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            settings = settings_fields(service)
            settings_error = sentence_box()
            with gr.Row():
                new_seed = gr.Button("New seed", size="sm", min_width=100, elem_id="new-seed")
            describe = gr.Checkbox(label="Add the descriptions of @characters to the prompt")
        form = Form(prompt, prompt_error, marked, describe, settings, settings_error, rows)
        found = [(folder / name, word, text) for name, word, text in EXAMPLES for folder in example_folders()]
        samples = [[[str(path)], word, text] for path, word, text in found if path.is_file()]
        if samples:
            gr.Examples(
                samples,
                [rows[0].images, rows[0].words, prompt],
                label="Examples",
                elem_id="examples",
                cache_examples=False,
                example_labels=[text for *_, text in samples],
            )
        with gr.Accordion("Restore the settings of an image", open=False):
            dropped = gr.File(label="Drop a PNG that was made here", file_types=[".png"], height=110, elem_id="restore")
        dropped_error = sentence_box()
    return {
        "form": form,
        "make": make,
        "cancel": cancel,
        "add": add,
        "new_seed": new_seed,
        "dropped": dropped,
        "dropped_error": dropped_error,
    }


def _right() -> Results:
    with gr.Column(scale=6, min_width=300):
        status = gr.HTML(elem_classes="rc-status", elem_id="status")
        image = gr.Image(
            label="Result",
            interactive=False,
            type="filepath",
            format="png",
            height=460,
            buttons=["fullscreen"],
            elem_id="result",
            elem_classes="rc-result",
        )
        thumbnails = gr.Gallery(
            label="Images", columns=4, height=130, visible=False, allow_preview=False, interactive=False, buttons=[]
        )
        show_mask = gr.Checkbox(label="Show where the reference acts (guidance mask)", elem_id="show-mask")
        word = gr.Radio(label="Mask of", choices=[], visible=False)
        step = gr.Slider(1, 2, value=1, step=1, label="Mask at step", visible=False, elem_id="mask-step")
        with gr.Row():
            reuse = gr.Button(
                "Use this result as the next reference", min_width=160, elem_id="reuse", interactive=False
            )
            keep = gr.Button("Save as character", min_width=130, elem_id="keep", interactive=False)
            download = gr.DownloadButton("Download PNG", min_width=130, elem_id="download", interactive=False)
    return Results(image, thumbnails, status, show_mask, word, step, download, reuse, keep, gr.State(dict(NOTHING)))


def _collection() -> Collection:
    gallery = gr.Gallery(
        label="Made so far",
        columns=5,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="gallery",
    )
    with gr.Row():
        restore = gr.Button("Restore its settings", min_width=140, interactive=False)
        reuse = gr.Button("Use as reference", min_width=140, interactive=False)
        download = gr.DownloadButton("Download PNG", min_width=140, interactive=False)
    return Collection(gallery, restore, reuse, download, gr.State([]), gr.State(None))
