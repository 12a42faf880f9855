import pytest

from realcustom.data import caption_corpus
from realcustom.data.nouns import find_target_words, singular


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a small red dog on the beach", ["dog"]),
        ("A photo of two cats and a teddy bear", ["cats", "teddy bear"]),
        ("an old man riding his bicycle down the street", ["man", "bicycle"]),
        ("a dog wearing a crown in the forest, pencil sketch", ["dog", "crown"]),
        ("the corner of a room at night", []),
        ("a zorblax next to the fire truck", ["zorblax", "fire truck"]),
        ("category theory lectures", []),
        ("a dog and another dog", ["dog"]),
        ("an orange and an orange cat", ["orange", "cat"]),
        ("cherries in the snow", ["cherries"]),
    ],
)
def test_target_words(caption, words):
    found = find_target_words(caption)
    assert [word.text for word in found] == words
    assert all(caption[word.start : word.end] == word.text for word in found)


def test_every_generated_caption_has_a_target_word():
    for caption in caption_corpus(400):
        assert find_target_words(caption), caption


def test_singular():
    assert [singular(word) for word in ("dogs", "cherries", "benches", "boxes", "glass", "bus")] == [
        "dog", "cherry", "bench", "box", "glass", "bus",
    ]  # fmt: skip


def test_limit():
    assert len(find_target_words("a dog, a cat and a bird", limit=2)) == 2
