"""Extractors on small random models in exactly the formats of the real ones."""

import json

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from transformers import BertTokenizer, Dinov2Config, Dinov2Model, SamConfig, SamModel

from realcustom.evaluation.extractors import ClipExtractor, VitExtractor, load_extractors
from realcustom.evaluation.image_reward import MEAN, STD, ImageReward, reward_head
from realcustom.evaluation.preprocessing import Preprocessing, clip_preprocessing, imagenet_preprocessing
from realcustom.evaluation.segment import SamSegmenter, box_of, on_white
from realcustom.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("extractors")
    write_tiny(root)
    return root


def test_preprocessing_is_resize_crop_and_normalise():
    plain = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    values = plain([Image.new("RGB", (30, 10), (255, 0, 51))])
    assert values.shape == (1, 3, 8, 8)
    assert values[0, :, 3, 3].tolist() == pytest.approx([1, 0, 0.2])
    assert (clip_preprocessing(224).resize, clip_preprocessing(224).crop) == (224, 224)
    assert (imagenet_preprocessing(224).resize, imagenet_preprocessing(224).crop) == (256, 224)


def test_the_centre_is_what_remains():
    wide = Image.new("RGB", (24, 8))
    wide.paste((255, 255, 255), (8, 0, 16, 8))
    assert Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))([wide]).min() == 1


def test_clip_features_are_the_models_own(folder):
    clip = ClipExtractor.load(folder / "clip")
    pictures, texts = [picture(0), picture(1)], ["a dog", "a red cat with the dog"]
    images, words = clip.images(pictures), clip.texts(texts)
    assert images.shape == words.shape == (2, 16)
    encoded = clip.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    whole = clip.model(
        input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, pixel_values=clip.preprocess(pictures)
    )
    assert clip.scores(pictures, texts) == pytest.approx(whole.logits_per_image.diagonal().detach().numpy(), rel=1e-4)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    assert np.allclose(unit, whole.image_embeds.detach().numpy(), atol=1e-5)


def test_features_do_not_depend_on_the_batch(folder):
    clip = ClipExtractor.load(folder / "clip")
    pictures = [picture(seed) for seed in range(3)]
    together = clip.images(pictures)
    clip.batch_size = 1
    assert np.allclose(together, clip.images(pictures), atol=1e-5)


def test_dino_and_dinov2(folder):
    dino = VitExtractor.load(folder / "dino")
    assert dino.images([picture(0)]).shape == (1, 32)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
    dinov2 = VitExtractor(Dinov2Model(config), size=28)
    assert dinov2.images([picture(0)]).shape == (1, 32)


def test_tiny_extractors_are_the_same_every_time():
    first, second = load_extractors("tests-tiny"), load_extractors("tests-tiny")
    assert np.array_equal(first.clip.images([picture(0)]), second.clip.images([picture(0)]))
    assert set(first.preferences) == {"pickscore"}
    assert np.isfinite(first.preferences["pickscore"].scores([picture(0)], ["a dog"])).all()


def test_unknown_extractors_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="names no extractors"):
        load_extractors(str(tmp_path))


@pytest.fixture
def reward_folder(tmp_path):
    """A small checkpoint with the published one's keys."""
    torch.manual_seed(0)
    width, text, layers = 64, 32, 2
    weights = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 17, width),
        "patch_embed.proj.weight": torch.randn(width, 3, 8, 8) / 14,
        "patch_embed.proj.bias": torch.zeros(width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    for index in range(layers):
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (96, width), "mlp.fc2": (width, 96)}
        for name, shape in shapes.items():
            weights[f"blocks.{index}.{name}.weight"] = torch.randn(shape) / 8
            weights[f"blocks.{index}.{name}.bias"] = torch.zeros(shape[0])
        for name in ("norm1", "norm2"):
            weights[f"blocks.{index}.{name}.weight"] = torch.ones(width)
            weights[f"blocks.{index}.{name}.bias"] = torch.zeros(width)
    weights = {f"blip.visual_encoder.{name}": value for name, value in weights.items()}
    from transformers import BlipTextConfig, BlipTextModel

    med = {"hidden_size": text, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    med |= {"max_position_embeddings": 40, "layer_norm_eps": 1e-12}
    bert = BlipTextModel(
        BlipTextConfig(vocab_size=12, encoder_hidden_size=width, is_decoder=True, **med), add_pooling_layer=False
    )
    weights |= {f"blip.text_encoder.{name}": value for name, value in bert.state_dict().items()}
    weights |= {f"mlp.layers.{name}": value for name, value in reward_head(text).state_dict().items()}
    torch.save(weights, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(med))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "red", "on", "the", "in"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer.from_pretrained(tmp_path)
    return tmp_path


def test_image_reward_from_the_published_layout(reward_folder):
    reward = ImageReward.load(reward_folder)
    pictures, texts = [picture(0), picture(1)], ["a dog", "the red cat"]
    scores = reward.scores(pictures, texts)
    assert scores.shape == (2,)
    assert scores[0] != scores[1]
    reward.batch_size = 1
    assert reward.scores(pictures, texts) == pytest.approx(scores, abs=1e-4)
    # The prompt and the picture both count.
    assert abs(reward.scores(pictures[:1], texts[1:])[0] - scores[0]) > 1e-6
    assert abs(reward.scores(pictures[1:], texts[:1])[0] - scores[0]) > 1e-6
    assert pytest.approx((0.16717, 1.03334), abs=1e-5) == (MEAN, STD)


def test_image_reward_refuses_other_weights(reward_folder):
    weights = torch.load(reward_folder / "ImageReward.pt", weights_only=True)
    del weights["mlp.layers.0.weight"]
    torch.save(weights, reward_folder / "ImageReward.pt")
    with pytest.raises(ValueError, match="does not fit"):
        ImageReward.load(reward_folder)


def test_the_head_has_the_published_keys():
    assert set(reward_head(768).state_dict()) == {f"{i}.{part}" for i in (0, 2, 4, 6, 7) for part in ("weight", "bias")}
    assert reward_head(768)[0].weight.shape == (1024, 768)


def test_segmenting_by_a_given_mask():
    mask = np.zeros((4, 4))
    mask[:2, :2] = 0.8
    cut = np.asarray(on_white(Image.new("RGB", (64, 64), (9, 9, 9)), mask))
    assert tuple(cut[5, 5]) == (9, 9, 9)
    assert tuple(cut[60, 60]) == (255, 255, 255)
    assert box_of(mask) == (0, 0, 0.5, 0.5)


def test_segmenting_by_sam():
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    vision |= {"output_channels": 32, "mlp_dim": 32, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 16}
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "image_embedding_size": 4}
    decoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    decoder |= {"iou_head_hidden_dim": 32}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    mask = SamSegmenter(model)(picture(0, 48).resize((48, 32)), np.eye(4))
    assert mask.shape == (32, 48)
    assert mask.dtype == bool
