"""Weights of words, and where the tokens of a long prompt stand."""

import pytest
import torch

from realcustom.encoders.chunks import token_chunks
from realcustom.encoders.prompts import place_in_chunks, read_weights
from realcustom.encoders.target_word import target_token_positions


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a dog", "a dog", {"dog": 1.0}),
        ("a (dog)", "a dog", {"a": 1.0, "dog": 1.1}),
        ("a (dog:1.5) and [cat]", "a dog and cat", {"dog": 1.5, "and": 1.0, "cat": 1 / 1.1}),
        ("a ((red) dog:2)", "a red dog", {"red": 2.2, "dog": 2.0}),
        (r"a \(dog\): 7:30 (big: .5)", "a (dog): 7:30 big", {"dog": 1.0, "30": 1.0, "big": 0.5}),
        ("[[dog]]", "dog", {"dog": 1 / 1.21}),
        ("(a dog:0)", "a dog", {"dog": 0.0}),
        ("a:b (c:d:2)", "a:b c:d", {"b": 1.0, "d": 2.0}),
    ],
)
def test_weights_are_read_and_their_marks_are_not_text(prompt, text, weights):
    read = read_weights(prompt)
    assert read.text == text
    assert len(read.weights) == len(text)
    for word, weight in weights.items():
        start = read.text.index(word)
        assert read.weights[start : start + len(word)] == pytest.approx([weight] * len(word))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a (dog", r'"\(" is not closed'),
        ("a dog)", r'"\)" closes nothing'),
        ("a (dog]", r'"]" closes nothing'),
        ("[dog:1.2)", r'"\[" is not closed'),
        ("(dog:11)", "A weight in the prompt must be a number from 0 to 10"),
        ("(" * 20 + "dog" + ")" * 20, "nested too deeply"),
    ],
)
def test_marks_that_do_not_fit_are_said(prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_weights(prompt)


def test_places_in_chunks(tokenizer):
    length = tokenizer.model_max_length
    words = ["red"] * (length - 2) + ["a", "dog"] + ["red"] * (length - 2) + ["toy"]
    prompt = " ".join(words)
    assert target_token_positions(tokenizer, prompt, "dog", chunked=True) == (length + 2,)
    assert target_token_positions(tokenizer, prompt, "toy", chunked=True) == (2 * length + 3,)
    assert [place_in_chunks(index, 77) for index in (1, 75, 76, 150, 151)] == [1, 75, 78, 152, 155]
    ids, _ = token_chunks(tokenizer, prompt, [1.0] * len(prompt), 3)
    assert ids.shape == (3, length)
    assert ids[1, 2] == tokenizer("dog", add_special_tokens=False)["input_ids"][0]
    assert torch.equal(ids[:, 0], torch.full((3,), tokenizer.bos_token_id))
    with pytest.raises(ValueError, match="lies beyond"):
        target_token_positions(tokenizer, prompt, "dog")
