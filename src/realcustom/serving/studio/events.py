"""What happens on the page: which event runs which function, and where its values go."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import gradio as gr

from realcustom.serving.service import Service
from realcustom.serving.studio import people as characters
from realcustom.serving.studio.form import fill, mark, show_sentences, split_words
from realcustom.serving.studio.look import sentence, status
from realcustom.serving.studio.results import generate, made_so_far, mask_controls, thumbnails, view
from realcustom.types import MAX_SEED, MAX_SUBJECTS

if TYPE_CHECKING:
    from realcustom.serving.studio.page import Page

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Small things: not queued behind generations.
AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
LAST: dict[str, Any] = {**AT_ONCE, "trigger_mode": "always_last"}


def connect(blocks: gr.Blocks, page: Page, service: Service) -> None:
    """Connect every field of the page with what it does."""
    _connect_form(page, service)
    _connect_making(page, service)
    _connect_results(page, service)
    _connect_collection(blocks, page, service)
    _connect_people(blocks, page, service)
    _connect_faces(page, service)


def _connect_form(page: Page, service: Service) -> None:
    form = page.form
    words = [row.words for row in form.rows]

    def marked(prompt: str, *texts: str):
        pieces, error = mark(service, prompt, *texts)
        return gr.HighlightedText(pieces, visible=any(label for _, label in pieces)), error

    # One after the other, so that the answer to the last change is the one that stays.
    changes = [part.change for part in (form.prompt, *words)]
    gr.on(changes, marked, [form.prompt, *words], [form.marked, form.prompt_error], **LAST)
    shown = gr.State([True] + [False] * (MAX_SUBJECTS - 1))
    form.shown = shown

    def add(seen: list[bool]):
        first = seen.index(False) if False in seen else MAX_SUBJECTS - 1
        seen = [is_shown or index == first for index, is_shown in enumerate(seen)]
        return seen, *[gr.Column(visible=is_shown) for is_shown in seen]

    page.add.click(add, shown, [shown, *form.boxes], **AT_ONCE)
    for index, row in enumerate(form.rows):

        def remove(seen: list[bool], index: int = index):
            seen = [is_shown and other != index for other, is_shown in enumerate(seen)]
            return seen, gr.Column(visible=False), "", [], 1.0, sentence(None)

        cleared = [shown, row.box, row.words, row.images, row.strength, row.error]
        row.remove.click(remove, shown, cleared, **AT_ONCE)
    page.new_seed.click(lambda: secrets.randbelow(MAX_SEED + 1), None, form.settings["seed"], **AT_ONCE)

    def restored(path: str | None):
        if path is None:
            return [gr.skip()] * (len(form.inputs) + MAX_SUBJECTS + 3)
        try:
            found = service.restore(path)
            updates = fill(service, found.fields)
        except (ValueError, LookupError) as error:
            return [*[gr.skip()] * (len(form.inputs) + MAX_SUBJECTS), gr.skip(), None, sentence(str(error))]
        told = " ".join([*(entry.sentence for entry in found.missing), *found.notes])
        return [*updates, [box.visible for box in updates[-MAX_SUBJECTS:]], None, sentence(told or None)]

    targets = [*form.inputs, *form.boxes, shown, page.dropped, page.dropped_error]
    page.dropped.upload(restored, page.dropped, targets, **QUIET)


def _connect_making(page: Page, service: Service) -> None:
    form, results = page.form, page.results
    shown = [results.status, results.image, results.thumbnails, results.word, results.step, results.state]
    actions = [results.reuse, results.keep, results.download]
    outputs = [*form.errors, *shown, page.job, page.make, page.cancel, *actions]

    def made(show_mask: bool, *values: Any):
        busy = {page.make: gr.Button(interactive=False)}
        for news in generate(service, show_mask, list(values)):
            updates: dict[Any, Any] = dict(busy)
            if "errors" in news:
                updates |= dict(zip(form.errors, show_sentences(news["errors"]), strict=True))
            if "status" in news:
                updates[results.status] = news["status"]
            if "job" in news:
                updates |= {page.job: news["job"], page.cancel: gr.Button(interactive=True)}
            if "image" in news:
                updates[results.image] = news["image"]
            if "done" in news:
                updates |= _finished(page, service, news["done"], show_mask)
            yield updates
        yield {page.make: gr.Button(interactive=True), page.cancel: gr.Button(interactive=False)}

    inputs = [results.show_mask, *form.inputs]
    for trigger in (page.make.click, form.prompt.submit):
        run = trigger(made, inputs, outputs, concurrency_limit=None, **QUIET)
        run.then(lambda: made_so_far(service), None, [page.collection.gallery, page.collection.places], **QUIET)

    def cancelled(name: str | None):
        if name is not None:
            service.runner.cancel(name)
        return status("It stops after this step ...")

    page.cancel.click(cancelled, page.job, results.status, **AT_ONCE)


def _finished(page: Page, service: Service, job, show_mask: bool) -> dict[Any, Any]:
    results, state = page.results, {"job": job.id, "index": 0}
    word, step = mask_controls(service, job)
    path = str(service.store.pictures.path(job.images[0]))
    return {
        results.state: state,
        results.image: view(service, state, show_mask, None, None),
        results.thumbnails: thumbnails(service, job),
        results.word: word,
        results.step: step,
        results.reuse: gr.Button(interactive=True),
        results.keep: gr.Button(interactive=True),
        results.download: gr.DownloadButton(value=path, interactive=True),
    }


def _connect_results(page: Page, service: Service) -> None:
    results, form = page.results, page.form

    def look(state, show_mask, word, step):
        return view(service, state, show_mask, word, step)

    inputs = [results.state, results.show_mask, results.word, results.step]
    for part in (results.show_mask, results.word, results.step):
        part.input(look, inputs, results.image, trigger_mode="always_last", **AT_ONCE)

    def choose(state, show_mask, word, step, event: gr.SelectData):
        state = {**state, "index": event.index}
        path = view(service, state, False, None, None)
        return state, view(service, state, show_mask, word, step), gr.DownloadButton(value=path)

    results.thumbnails.select(choose, inputs, [results.state, results.image, results.download], **AT_ONCE)

    def reuse(state):
        path = view(service, state, False, None, None)
        return [path] if path else gr.skip(), status(
            "This result is the reference now: change the prompt and generate."
        )

    results.reuse.click(reuse, results.state, [form.rows[0].images, results.status], **AT_ONCE)

    def keep(state, words):
        path = view(service, state, False, None, None)
        record = ["", next(iter(split_words(words)), ""), "", [path] if path else [], 1.0, [], 1.0]
        return [*record, None, sentence(None), "", gr.Tabs(selected="characters")]

    people = page.people
    targets = [*people.record, page.editing, people.error, people.note, page.tabs]
    results.keep.click(keep, [results.state, form.rows[0].words], targets, **AT_ONCE)


def _connect_collection(blocks: gr.Blocks, page: Page, service: Service) -> None:
    collection, form = page.collection, page.form
    blocks.load(lambda: made_so_far(service), None, [collection.gallery, collection.places], **AT_ONCE)

    def choose(places, event: gr.SelectData):
        place = places[event.index] if event.index < len(places) else None
        if place is None:
            return (
                None,
                gr.Button(interactive=False),
                gr.Button(interactive=False),
                gr.DownloadButton(interactive=False),
            )
        path = view(service, place, False, None, None)
        enabled = gr.Button(interactive=True)
        return place, enabled, enabled, gr.DownloadButton(value=path, interactive=True)

    targets = [collection.chosen, collection.restore, collection.reuse, collection.download]
    collection.gallery.select(choose, collection.places, targets, **AT_ONCE)

    def restore(place):
        job = service.jobs.get(place["job"])
        seed = (job.request["seed"] + place["index"]) % (MAX_SEED + 1)
        updates = fill(service, {**job.request, "seed": seed, "num_images": 1})
        return [*updates, [box.visible for box in updates[-MAX_SUBJECTS:]], gr.Tabs(selected="create")]

    shown = [*form.inputs, *form.boxes, form.shown, page.tabs]
    collection.restore.click(restore, collection.chosen, shown, **AT_ONCE)

    def reuse(place):
        return [view(service, place, False, None, None)], gr.Tabs(selected="create")

    collection.reuse.click(reuse, collection.chosen, [form.rows[0].images, page.tabs], **AT_ONCE)


def _connect_people(blocks: gr.Blocks, page: Page, service: Service) -> None:
    people = page.people
    lists = [people.chosen, people.gallery]
    blocks.load(lambda: characters.listing(service), None, lists, **AT_ONCE)

    def saved(editing, *values):
        name, error = characters.save(service, editing, *values)
        if error is not None:
            return [gr.skip(), gr.skip(), editing, sentence(error), ""]
        note = status(f"@{name} is saved: write @{name} in a prompt.")
        return [*characters.listing(service, name), name, sentence(None), note]

    inputs = [page.editing, *people.record]
    people.buttons["save"].click(saved, inputs, [*lists, page.editing, people.error, people.note], **AT_ONCE)

    def opened(name):
        return [name, *characters.load(service, name), sentence(None), ""]

    targets = [page.editing, *people.record, people.error, people.note]
    people.chosen.input(opened, people.chosen, targets, **AT_ONCE)
    people.buttons["new"].click(lambda: [None, *opened(None)], None, [people.chosen, *targets], **AT_ONCE)

    def picked(event: gr.SelectData):
        names = [character.name for character in service.cast.list()]
        name = names[event.index] if event.index < len(names) else None
        return [name, *opened(name)]

    people.gallery.select(picked, None, [people.chosen, *targets], **AT_ONCE)

    def deleted(name):
        if name is None:
            return [*characters.listing(service), *opened(None)[:-2], sentence("Choose a character first."), ""]
        if service.cast.find(name) is not None:
            service.cast.remove(name)
        return [*characters.listing(service), *opened(None)[:-1], status(f"@{name} is deleted.")]

    people.buttons["delete"].click(deleted, people.chosen, [*lists, *targets], **AT_ONCE)

    def used(name, prompt):
        if name is None:
            return gr.skip(), gr.skip(), sentence("Choose a character first.")
        text = prompt if prompt and f"@{name}" in prompt else f"{prompt or ''} @{name}".strip()
        return text, gr.Tabs(selected="create"), sentence(None)

    targets = [page.form.prompt, page.tabs, people.error]
    people.buttons["use"].click(used, [people.chosen, page.form.prompt], targets, **AT_ONCE)


def _connect_faces(page: Page, service: Service) -> None:
    people = page.people
    images, faces = people.record[3], people.record[5]
    changes = [part.change for part in (images, *people.sides)]
    gr.on(changes, characters.boxed, [images, *people.sides], people.image, **LAST)

    def found(pictures):
        sides, error = characters.found_face(pictures)
        return [*(sides or [gr.skip()] * 4), sentence(error)]

    people.buttons["find"].click(found, images, [*people.sides, people.error], **QUIET)

    def cropped(pictures, kept, *sides):
        return characters.with_crop(service, pictures, kept, *sides)

    people.buttons["crop"].click(cropped, [images, faces, *people.sides], [faces, people.error], **QUIET)

    def clicked(first, pictures, event: gr.SelectData):
        kept, sides = characters.corner(first, pictures, event)
        return [kept, *sides]

    people.image.select(clicked, [page.first_corner, images], [page.first_corner, *people.sides], **AT_ONCE)
