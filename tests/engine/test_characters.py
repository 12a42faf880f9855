"""Mentions: a character is its own place of the prompt, and what names nobody is refused."""

import pytest

from realcustom.engine.characters import Character, check_mentions, highlighted, read_mentions
from realcustom.engine.requests import check_request
from realcustom.types import Request

CAST = {
    "rex": Character(name="rex", word="dog", images=("rex.png",), description="a brown dog with a hat"),
    "bo": Character(name="bo", word="brown dog", images=("bo.png",)),
    "tom": Character(name="tom", word="dog", images=("tom.png",)),
}


def read(prompt, subjects=(), describe=False):
    plain, together = read_mentions(prompt, dict(subjects), CAST.get, describe)
    check_request(Request(prompt=plain, subjects=together))
    return plain, {key: getattr(subject, "images", (subject,)) for key, subject in together.items()}


@pytest.mark.parametrize(
    ("prompt", "subjects", "plain", "keys"),
    [
        ("@rex on the beach", {}, "dog on the beach", {"dog": "rex.png"}),
        ("@Rex plays with another dog", {}, "dog plays with another dog", {"dog#1": "rex.png"}),
        ("a dog, @rex and @REX", {}, "a dog, dog and dog", {"dog#2#3": "rex.png"}),
        ("@rex and @tom", {}, "dog and dog", {"dog#1": "rex.png", "dog#2": "tom.png"}),
        ("@rex and @bo", {}, "dog and brown dog", {"dog#1": "rex.png", "brown dog": "bo.png"}),
        ("@rex and a dog", {"dog": "x.png"}, "dog and a dog", {"dog#2": "x.png", "dog#1": "rex.png"}),
        ("a dog, @rex, a dog", {"dog#2": "x.png"}, "a dog, dog, a dog", {"dog#3": "x.png", "dog#2": "rex.png"}),
        ("a dog and @bo", {"dog#1": "x.png"}, "a dog and brown dog", {"dog#1": "x.png", "brown dog": "bo.png"}),
        ("a cat#1, @rex", {"cat#1": "x.png"}, "a cat#1, dog", {"cat#1": "x.png", "dog": "rex.png"}),
        ("@rex's hat.@tom", {}, "dog's hat.dog", {"dog#1": "rex.png", "dog#2": "tom.png"}),
    ],
)
def test_a_mention_is_a_place(prompt, subjects, plain, keys):
    assert read(prompt, subjects) == (plain, {key: (image,) for key, image in keys.items()})


def test_words_of_a_description_are_those_of_its_character():
    plain, subjects = read("@rex and a dog with a hat", {"hat": "x.png"}, describe=True)
    assert plain == "dog and a dog with a hat, a brown dog with a hat"
    assert subjects == {"hat#1": ("x.png",), "dog#1#3": ("rex.png",)}


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("@max", "There is no character @max."),
        ("@\u00c9lan runs", "There is no character @\u00e9lan."),
        ("@Re\u0301x", "There is no character @re\u0301x."),
        ("@rex\u00eb", "There is no character @rex\u00eb."),
        ("\u4e00 @\u72d7", "There is no character @\u72d7."),
        ("@_rex", "There is no character @_rex."),
        ("a super-@rex and a dog", "word of its own"),
    ],
)
def test_a_mention_of_nobody_is_refused(prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(prompt)


def test_what_no_door_read_is_refused_and_an_address_is_none():
    with pytest.raises(ValueError, match="No character was read for @R\u00e9x"):
        check_request(Request(prompt="a dog and @R\u00e9x"))
    check_mentions("a letter to me@example.org @ home")


@pytest.mark.parametrize("word", ["dog", "dog#1", "rex"])
def test_a_subject_beside_mentions_stands_in_the_typed_prompt(word):
    with pytest.raises(ValueError, match=f'"{word}" does not stand|word of its own'):
        read("@rex on the beach", {word: "x.png"})


def test_two_subjects_of_one_place_are_refused():
    with pytest.raises(ValueError, match="a place of its own"):
        read("@tom and a dog", {"dog": "x.png", "dog#1": "y.png"})


def test_marked_pieces_are_the_chosen_places():
    pieces = highlighted("@rex and a dog and a dog", {"@rex": "reads as dog", "dog#2": "subject"})
    assert pieces == [("@rex", "reads as dog"), (" and a dog and a ", None), ("dog", "subject")]
