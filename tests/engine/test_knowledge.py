"""A word that a model of a closed world never saw is said by every door, and drawn nevertheless."""

import json

import pytest

from realcustom import Engine, Request
from realcustom.engine.knowledge import read_knowledge, unknown_sentence, unknown_words
from realcustom.hub.bundled import model_folder

KNOWS = {"words": ["dog", "teddy bear"], "scenes": ["on the beach", "under the night sky"], "colours": ["red"]}


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a red dog on the beach", []),
        ("Two DOGS, and a teddy bear's dog", []),
        ("a zebra on the beach at night", ["zebra", "at"]),
        ("a dog-like Zebra and a zebra", ["dog-like", "zebra"]),
        ("\u72d7 on the beach", ["\u72d7"]),
        ("7 & 8!", []),
    ],
)
def test_words_outside_of_all_phrases_are_unknown(prompt, unknown):
    assert unknown_words(prompt, KNOWS) == unknown
    assert unknown_words(prompt, {}) == [], "a model that reads any text knows them all"


def test_the_sentence_names_both():
    assert unknown_sentence("a zebra", KNOWS) == (
        'This model does not know "zebra", and may draw nothing of it; it knows dog, teddy bear.'
    )
    assert unknown_sentence("a dog", KNOWS) is None


def test_the_miniature_knows_what_it_was_shown():
    knows = read_knowledge(model_folder("miniature"))
    for prompt in (
        "a teddy bear wearing a hat in a living room",
        "a lion and a turtle in the mountains",
        "an owl in the forest, watercolor",
        "a blue fish next to a red car, pixel art",
        "a penguin wearing sunglasses in front of a volcano",
    ):
        assert unknown_words(prompt, knows) == []
    assert unknown_words("a zebra in the snow", knows) == ["zebra"]


@pytest.mark.parametrize("text", ["[]", "{", '{"words": "dog"}', '{"words": [1]}'])
def test_a_damaged_file_is_said(tmp_path, text):
    (tmp_path / "knows.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        read_knowledge(tmp_path)


def test_it_is_said_and_stored(tiny_model):
    engine = Engine.load(str(tiny_model), device="cpu")
    engine.knowledge = KNOWS
    (sentence,) = engine.warnings("a zebra")
    result = engine.run(Request(prompt="a zebra", steps=1))
    assert result.metadata[0]["warnings"] == [sentence]
    assert "warnings" not in engine.run(Request(prompt="a dog", steps=1)).metadata[0]
    assert engine.describe()["knows"] == json.loads(json.dumps(KNOWS))
