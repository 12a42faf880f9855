"""Words to token positions: whole words, any case, every occurrence, refusals with a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realcustom.encoders.target_word import (
    agreed_positions,
    check_disjoint,
    check_prompt_length,
    find_phrase,
    target_token_positions,
)


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
    ],
)
def test_find_phrase(prompt, phrase, expected):
    assert [prompt[start:end] for start, end in find_phrase(prompt, phrase)] == expected


@pytest.mark.parametrize("phrase", ["", "   "])
def test_empty_phrase_is_refused(phrase):
    with pytest.raises(ValueError, match="empty"):
        find_phrase("a dog", phrase)


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
    from conftest import CAPTIONS

    from realcustom.miniature.tokenizer import train_tokenizer

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
    from realcustom.miniature.tokenizer import train_tokenizer

    other = train_tokenizer(["on the beach"])
    with pytest.raises(ValueError, match="different tokens"):
        agreed_positions([tokenizer, other], ["a robot and a dog"] * 2, "dog")
