"""Words to token positions: whole words, any case, every occurrence or chosen ones, refusals with a sentence."""

import unicodedata

import pytest
import torch
from conftest import CAPTIONS
from hypothesis import given
from hypothesis import strategies as st

from realcustom.encoders.target_word import (
    agreed_positions,
    check_disjoint,
    check_prompt_length,
    find_phrase,
    find_target,
    occurrence,
    target_key,
    target_spans,
    target_token_positions,
)
from realcustom.miniature.tokenizer import train_tokenizer


def tokens_at(tokenizer, prompt, positions):
    ids = tokenizer(prompt)["input_ids"]
    return tokenizer.decode([ids[position] for position in positions]).replace(" ", "")


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a dog on the beach", "dog", ["dog"]),
        ("A DOG and a dog", "Dog", ["DOG", "dog"]),
        ("a category of cats", "cat", []),
        ("a dog-like cat", "dog", []),
        ("the dog's hat", "dog", ["dog"]),
        ("a dog  with the\npink hat", "dog with the pink hat", ["dog  with the\npink hat"]),
        ("a dog.", "dog", ["dog"]),
        ("a c++ toy", "c++", ["c++"]),
        ("dog dog dog", "dog dog", ["dog dog"]),
        ("xdog dog dog", "dog dog", ["dog dog"]),
        ("a dog\u2011like cat and a dog", "dog", ["dog"]),
        ("a \u2011dog", "dog", []),
        ("a cafe\u0301 and a caf\u00e9", "caf\u00e9", ["cafe\u0301", "caf\u00e9"]),
        ("a caf\u00e9", "cafe\u0301", ["caf\u00e9"]),
        ("a cafe\u0301", "cafe", []),
        ("\u0915\u0941\u0924\u094d\u0924\u093e", "\u0915", []),  # Hindi: a vowel sign is no border
        ("\u1112\u1161\u11ab \u1100\u1162", "\uac1c", ["\u1100\u1162"]),  # Korean: decomposed syllables
        ("\u4e00\u53ea\u72d7\u5728\u6d77\u6ee9\u4e0a", "\u72d7", ["\u72d7"]),  # Chinese: a dog on the beach
        ("\u72ac\u304c\u6d77\u8fba\u3067\u8d70\u308b", "\u6d77\u8fba", ["\u6d77\u8fba"]),  # Japanese
        ("\u4e00\u53eadog\u5728", "dog", ["dog"]),
    ],
)
def test_find_phrase(prompt, phrase, expected):
    assert [prompt[start:end] for start, end in find_phrase(prompt, phrase)] == expected


@pytest.mark.parametrize("phrase", ["", "   "])
def test_empty_phrase_is_refused(phrase):
    with pytest.raises(ValueError, match="empty"):
        find_phrase("a dog", phrase)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("dog", ("dog", ())),
        ("dog#2", ("dog", (2,))),
        ("red dog#3#1", ("red dog", (1, 3))),
        ("dog#0", ("dog#0", ())),
        ("#1", ("#1", ())),
        ("dog#2 hat", ("dog#2 hat", ())),
    ],
)
def test_the_places_of_a_key(key, found):
    assert occurrence(key) == found


@pytest.mark.parametrize(
    ("prompt", "key", "starts"),
    [
        ("a dog and a Dog", "dog#2", [12]),
        ("a dog, a dog, a dog", "dog#1#3", [2, 16]),
        ("agent dog#2 meets a dog", "dog#2", [6]),  # the literal word wins
        ("a dog", "dog#2", []),
        ("a cat", "dog#1", []),
        ("\u72d7\u548c\u72d7", "\u72d7#2", [2]),
    ],
)
def test_a_chosen_place(prompt, key, starts):
    assert [start for start, _ in find_target(prompt, key)] == starts


def test_a_place_that_is_not_there_is_told_apart_from_an_absent_word():
    with pytest.raises(ValueError, match='"dog#3" asks for place 3 of "dog", which has 2'):
        target_spans("a dog and a dog", "dog#3")
    with pytest.raises(ValueError, match='"cat#1" does not stand'):
        target_spans("a dog", "cat#1")


def test_a_key_for_given_places():
    assert target_key("a dog and a dog", "dog", [(0, 5), (12, 15)]) == "dog"
    assert target_key("a dog and a dog", "dog", [(12, 15)]) == "dog#2"
    for prompt, place in (("a super-dog", (8, 11)), ("dog#1 and a dog", (0, 3))):
        with pytest.raises(ValueError, match="word of its own"):
            target_key(prompt, "dog", [place])


@given(st.text(max_size=40))
def test_composed_and_decomposed_texts_have_the_same_words(text):
    forms = [unicodedata.normalize(form, f"{text} caf\u00e9 {text}") for form in ("NFC", "NFD")]
    found = [find_phrase(form, "caf\u00e9") for form in forms]
    assert len(found[0]) == len(found[1]) >= 1
    assert all(unicodedata.normalize("NFC", forms[1][slice(*span)]).lower() == "caf\u00e9" for span in found[1])


def test_a_chosen_place_has_its_own_tokens(tokenizer):
    prompt = "a dog and a dog"
    first, second = (target_token_positions(tokenizer, prompt, key) for key in ("dog#1", "dog#2"))
    assert sorted(first + second) == sorted(target_token_positions(tokenizer, prompt, "dog"))
    assert first < second


@pytest.mark.parametrize(
    ("prompt", "key"),
    [("\u4e00\u53ea\u72d7\u5728\u6d77\u6ee9", "\u72d7"), ("a cafe\u0301 and a dog", "caf\u00e9")],
)
def test_positions_of_words_beyond_ascii(tokenizer, prompt, key):
    """The tokens' own offsets are of the text before its normalisation."""
    positions = target_token_positions(tokenizer, prompt, key)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    (span,) = find_phrase(prompt, key)
    inside = {index for index, (start, end) in enumerate(offsets) if end > start and span[0] < end and start < span[1]}
    assert set(positions) == inside
    assert len(inside) > 1


def test_all_vectors_of_a_textual_inversion_are_target_tokens(tiny_pipeline):
    width = tiny_pipeline.text_encoder.config.hidden_size
    tiny_pipeline.tokenizer = train_tokenizer(CAPTIONS)
    tiny_pipeline.load_textual_inversion(torch.randn(3, width), token="<rex>")
    (prompt,) = tiny_pipeline.texts_for("a <rex> and a <rex>", tiny_pipeline.tokenizer)
    vectors = ["<rex>", "<rex>_1", "<rex>_2"]
    for key, wanted in (("<rex>", 2 * vectors), ("<rex>#2", vectors)):
        positions = target_token_positions(tiny_pipeline.tokenizer, prompt, key)
        ids = tiny_pipeline.tokenizer(prompt)["input_ids"]
        assert tiny_pipeline.tokenizer.convert_ids_to_tokens([ids[index] for index in positions]) == wanted
    assert positions[0] > 5


def test_positions_cover_the_phrase_and_nothing_else(tokenizer):
    prompt = "a robot and a dog with the pink hat in the snow"
    positions = target_token_positions(tokenizer, prompt, "dog with the pink hat")
    assert tokens_at(tokenizer, prompt, positions) == "dogwiththepinkhat"
    assert positions == tuple(range(positions[0], positions[-1] + 1))


def test_a_word_of_several_tokens_gives_them_all(tokenizer):
    prompt = "a zxqwv on the beach"
    positions = target_token_positions(tokenizer, prompt, "zxqwv")
    assert len(positions) > 1
    assert tokens_at(tokenizer, prompt, positions) == "zxqwv"


def test_every_occurrence_counts(tokenizer):
    positions = target_token_positions(tokenizer, "a dog and a dog", "dog")
    assert len(positions) == 2


@given(st.lists(st.sampled_from(["a", "dog", "cat", "red", "beach", "category"]), min_size=1, max_size=12))
def test_positions_are_those_of_the_whole_words(words):
    tokenizer = test_positions_are_those_of_the_whole_words.__dict__.setdefault(
        "tokenizer", train_tokenizer([*CAPTIONS, "cat category dog"])
    )
    prompt = " ".join(words)
    if "cat" not in words:
        with pytest.raises(ValueError, match="does not stand"):
            target_token_positions(tokenizer, prompt, "cat")
    else:
        positions = target_token_positions(tokenizer, prompt, "cat")
        assert tokens_at(tokenizer, prompt, positions) == "cat" * words.count("cat")


def test_absent_word_names_the_words_of_the_prompt(tokenizer):
    with pytest.raises(ValueError, match='"cat" does not stand in the prompt "a dog"; its words are: a, dog'):
        target_token_positions(tokenizer, "a dog", "cat")


def test_cut_off_word_and_long_prompt(tokenizer):
    prompt = "a robot " * 60 + "dog"
    with pytest.raises(ValueError, match=f"beyond the {tokenizer.model_max_length} tokens"):
        target_token_positions(tokenizer, prompt, "dog")
    with pytest.raises(ValueError, match="shorten it by"):
        check_prompt_length(tokenizer, prompt)


def test_overlap_and_disagreement(tokenizer):
    with pytest.raises(ValueError, match='"dog" and "red dog"'):
        check_disjoint({"dog": (2,), "red dog": (1, 2)}, "red dog")
    other = train_tokenizer(["on the beach"])
    with pytest.raises(ValueError, match="different tokens"):
        agreed_positions([tokenizer, other], ["a robot and a dog"] * 2, "dog")
