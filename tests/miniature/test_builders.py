"""The miniature's tokenizer and networks: known words, no unknown text, sizes and shapes."""

import pytest
import torch
from transformers import CLIPTokenizer

from realcustom.data.vocabulary import ACCESSORY_PHRASES, ALL_WORDS, SCENE_PHRASES, caption_corpus
from realcustom.encoders.target_word import target_token_positions
from realcustom.hub.bundled import MODELS
from realcustom.miniature import builders
from realcustom.miniature.tokenizer import is_known, train_tokenizer
from realcustom.models.adapter import RealCustomAdapter


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(caption_corpus(2000))


def test_every_word_of_the_world_is_one_token_a_part(tokenizer):
    assert len(tokenizer) < 1500
    phrases = [*ALL_WORDS, *SCENE_PHRASES.values(), *ACCESSORY_PHRASES.values()]
    assert [phrase for phrase in phrases if not is_known(tokenizer, phrase)] == []
    assert target_token_positions(tokenizer, "a red Teddy Bear on the beach", "teddy bear") == (3, 4)


def test_any_text_is_read(tokenizer):
    text = "Zorblax's caf\u00e9, 42 \u732b \U0001f600 {}|~"
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.bos_token_id not in tokens[1:]
    assert tokenizer.eos_token_id not in tokens[:-1]
    assert not is_known(tokenizer, "zorblax")
    padded = tokenizer([text, "dog"], padding="max_length", truncation=True)["input_ids"]
    assert {len(row) for row in padded} == {32}


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a dragon wearing a crown in the forest, watercolor"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.model_max_length, loaded.pad_token_id) == (32, tokenizer.eos_token_id)


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="without words"):
        train_tokenizer(["", " "])


@torch.no_grad()
def test_shapes_and_sizes(tokenizer):
    unet, vae, text_encoder = builders.build_unet(), builders.build_vae(), builders.build_text_encoder(tokenizer)
    encoder = builders.build_reference_encoder()
    adapter = builders.build_adapter(unet, encoder)
    weights = sum(module.num_parameters() for module in (unet, vae, text_encoder, encoder, adapter))
    assert 2 * weights < 60e6  # bytes in float16
    assert vae.encode(torch.zeros(1, 3, 128, 128)).latents.shape == (1, 8, 16, 16)
    assert vae.decode(torch.zeros(1, 8, 16, 16)).sample.shape == (1, 3, 128, 128)
    text = text_encoder(
        input_ids=torch.tensor([tokenizer("a dog", padding="max_length")["input_ids"]])
    ).last_hidden_state
    assert text.shape == (1, 32, builders.TEXT_WIDTH)
    assert unet(torch.zeros(1, 8, 16, 16), 1, encoder_hidden_states=text).sample.shape == (1, 8, 16, 16)
    layers = adapter(encoder.negative(1))
    assert layers[0][0].shape[:2] == (1, 2 * encoder.tokens)
    assert len(layers) == 7


def test_the_shipped_adapter_is_what_the_builder_makes():
    new = builders.build_adapter(builders.build_unet(), builders.build_reference_encoder()).config
    shipped = RealCustomAdapter.load_config(MODELS["miniature"] / "adapter")
    for name in ("guidance", "scope", "layers", "token_dim", "projector_config", "scoring_config"):
        value = new[name]
        assert shipped[name] == (list(value) if isinstance(value, tuple) else value), name


@torch.no_grad()
def test_scoring_adapter_fits_the_unet():
    unet, encoder = builders.build_unet(), builders.build_reference_encoder()
    adapter = builders.build_scoring_adapter(unet, encoder)
    assert adapter.scoring is not None
    assert torch.equal(
        adapter.to_k[0].weight, unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k").weight
    )
