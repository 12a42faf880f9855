"""`realcustom characters`, and @name in the prompts of `generate` and `batch`."""

import json

import numpy as np
from PIL import Image

from realcustom.pictures.png import read_metadata
from realcustom.serving.store import Store

REX = ("characters", "add", "rex", "--word", "dog", "--image", "rex.png", "--description", "a dog with a red collar")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_character_is_listed_changed_and_removed(realcustom, folder):
    assert realcustom(*REX).lines == ["@rex"]
    faced = ("characters", "add", "tom", "--word", "cat", "--image", "tom.png", "--face", "rex.png")
    assert realcustom(*faced, "--face-strength", 0.5).lines == ["@tom"]
    assert realcustom("characters", "list").lines == [
        "@rex: dog, 1 picture at 1. a dog with a red collar",
        "@tom: cat, 1 picture at 1, 1 of the face at 0.5.",
    ]
    assert "There is a character @rex already" in realcustom(*REX).error
    assert realcustom(*REX, "--strength", 0.7, "--replace").code == 0
    assert realcustom("characters", "list").lines[0] == "@rex: dog, 1 picture at 0.7. a dog with a red collar"
    assert realcustom("characters", "remove", "@rex").code == 0
    assert len(realcustom("characters", "list").lines) == 1
    gone = realcustom("characters", "remove", "rex")
    assert (gone.code, gone.error) == (2, "realcustom: There is no character @rex.\n")


def test_a_prompt_with_a_name_is_the_prompt_with_its_word_and_pictures(realcustom, folder, tiny_model):
    realcustom(*REX, "--strength", 0.7)
    options = ("--model", tiny_model, "--steps", 2)
    realcustom("generate", "a dog on the beach", "--subject", "dog=rex.png", "--strength", "dog=0.7", *options)
    wanted = pixels("out.png")
    done = realcustom("generate", "a @rex on the beach", *options, "--out", "named.png")
    assert done.code == 0, done.error
    assert np.array_equal(pixels("named.png"), wanted)
    assert read_metadata("named.png")["request"]["prompt"] == "a dog on the beach"
    assert np.array_equal(pixels(realcustom("repeat", "named.png").lines[0]), wanted)
    lines = [
        {"id": "one", "prompt": "a @rex on the beach", "steps": 2},
        {"id": "told", "prompt": "a @rex on the beach", "steps": 2, "describe_characters": True},
    ]
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model).code == 0
    assert np.array_equal(pixels("out/one.png"), wanted)
    assert read_metadata("out/told.png")["request"]["prompt"] == "a dog on the beach, a dog with a red collar"


def test_a_mention_and_another_dog_are_two_places_in_every_door(realcustom, folder, tiny_model):
    realcustom(*REX, "--strength", 0.7)
    options = ("--model", tiny_model, "--steps", 2)
    plain = ("--subject", "dog#2=tom.png", "--subject", "dog#1=rex.png", "--strength", "dog#1=0.7", "--save-masks")
    done = realcustom("generate", "dog and a dog", *plain, *options)
    assert done.code == 0, done.error
    assert done.lines[1:] == [f"out.mask.dog-{place}{kind}.png" for place in (2, 1) for kind in ("", ".overlay")]
    wanted = pixels("out.png")
    assert realcustom("generate", "@rex and a dog", "--subject", "dog=tom.png", *options, "--out", "b.png").code == 0
    line = {"id": "one", "prompt": "@rex and a dog", "steps": 2, "subjects": {"dog": "tom.png"}}
    (folder / "jobs.jsonl").write_text(json.dumps(line))
    assert realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model).code == 0
    for made in ("b.png", "out/one.png", realcustom("repeat", "out/one.png").lines[0]):
        assert np.array_equal(pixels(made), wanted)
        assert list(read_metadata(made)["request"]["subjects"]) == ["dog#2", "dog#1"]


def test_what_cannot_be_used_is_one_sentence(realcustom, folder, tiny_model):
    realcustom(*REX)
    for command, sentence in (
        (("generate", "a @max on the beach"), "There is no character @max."),
        (("generate", "@rex on a beach", "--subject", "dog=tom.png"), '"dog" does not stand in the prompt "@rex on'),
        (("characters", "add", "no/name", "--word", "dog", "--image", "rex.png"), "The name of a character has 1 to"),
        (("characters", "add", "max", "--word", "dog", "--image", "max.png"), "There is no picture max.png."),
    ):
        refused = realcustom(*command, *(("--model", tiny_model) if command[0] == "generate" else ()))
        assert refused.code == 2
        assert sentence in refused.error
    (folder / "jobs.jsonl").write_text('{"id": "a", "prompt": "@max on the beach"}')
    refused = realcustom("batch", "jobs.jsonl", "--out", "out", "--model", tiny_model)
    assert refused.code == 2
    assert "jobs.jsonl, line 1: There is no character @max." in refused.error


def test_characters_can_be_read_while_a_server_has_the_folder(realcustom, folder):
    realcustom(*REX)
    store = Store("outputs/serve")
    try:
        assert len(realcustom("characters", "list").lines) == 1
        refused = realcustom("characters", "remove", "rex")
        assert refused.code == 2
        assert "Another server uses the data folder" in refused.error
    finally:
        store.close()
