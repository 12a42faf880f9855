"""Reference encoders at small sizes: views, levels, saving, training, backbones in transformers' format."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from realcustom.encoders.image import (
    ClipReferenceEncoder,
    ReferenceEncoder,
    ReferenceFeatures,
    cat_features,
    to_pixels,
    to_views,
)

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
    "hidden_act": "gelu",
}
DINO = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "mlp_ratio": 2, "patch_size": 8}
CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ReferenceEncoder(SIGLIP, DINO, siglip_layers=(0, 1), dino_layers=(0, 2), image_size=32).eval()


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return ClipReferenceEncoder(CLIP, layer=1, image_size=32).eval()


def picture(seed=0, size=(40, 25)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_shapes_and_numbers(encoder):
    features = encoder.encode([picture(0), picture(1, (7, 90)), picture(2).convert("RGBA")])
    assert (encoder.pixel_size, encoder.tokens, encoder.feature_dim) == (64, 16, 40)
    assert features.deep.shape == (3, 16, 40)
    assert features.local.shape == (3, 64, 40)
    assert [level.shape for level in features.shallow] == [(3, 16, 40)]
    assert not features.deep.requires_grad


@torch.no_grad()
def test_levels_are_transformers_hidden_states_without_final_norm(encoder):
    pixels = torch.rand(2, 3, 64, 64)
    features = encoder(pixels)
    global_view, local_views = to_views(pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def hidden_states(view):
        siglip = encoder.siglip((view - 0.5) / 0.5, output_hidden_states=True).hidden_states
        imagenet = (view - mean[:, None, None]) / std[:, None, None]
        dino = encoder.dino(imagenet, output_hidden_states=True).hidden_states
        return torch.cat([siglip[1], dino[1][:, 5:]], -1), torch.cat([siglip[2], dino[3][:, 5:]], -1)

    shallow, deep = hidden_states(global_view)
    assert torch.allclose(features.shallow[0], shallow, atol=1e-5)
    assert torch.allclose(features.deep, deep, atol=1e-5)
    for i in range(2):
        for j in range(2):  # local view (i, j) of reference 1 is at every fourth token, from 2i + j
            _, local = hidden_states(local_views[4 + 2 * i + j][None])
            assert torch.allclose(features.local[1, 2 * i + j :: 4], local[0], atol=1e-5)


def test_views():
    pixels = torch.rand(2, 3, 64, 64)
    global_view, local_views = to_views(pixels)
    assert global_view.shape == (2, 3, 32, 32)
    assert torch.equal(local_views[5], (pixels[1, :, 0::2, 1::2] * 255).floor() / 255)
    assert torch.equal(global_view[..., 0, 0], (pixels[..., 0, 0] * 255).floor() / 255)
    assert torch.equal(global_view[..., -1, -1], (pixels[..., -1, -1] * 255).floor() / 255)


def test_squashing_is_bilinear_with_half_pixel_centres():
    image = np.zeros((1, 2, 3), dtype=np.uint8)
    image[0, 1] = 255
    pixels = to_pixels(image, 4)
    assert torch.allclose(pixels[0, 2], torch.tensor([0.0, 0.25, 0.75, 1.0]))


@pytest.mark.parametrize("name", ["encoder", "clip"])
def test_negative_is_the_black_image(name, request):
    encoder = request.getfixturevalue(name)
    negative, black = encoder.negative(3), encoder.encode([Image.new("RGB", (9, 9))])
    assert negative.deep.shape[0] == 3
    assert torch.equal(negative.deep[2], black.deep[0])


@pytest.mark.parametrize("name", ["encoder", "clip"])
def test_batches_equal_single_images(name, request):
    encoder = request.getfixturevalue(name)
    images = [picture(index) for index in range(3)]
    together, alone = encoder.encode(images), cat_features([encoder.encode([image]) for image in images])
    assert torch.allclose(together.deep, alone.deep, atol=1e-5)
    assert (together.local is None) == (alone.local is None)


@pytest.mark.parametrize("name", ["encoder", "clip"])
def test_saved_and_loaded_bit_equal(name, request, tmp_path):
    encoder = request.getfixturevalue(name)
    encoder.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    loaded = type(encoder).from_pretrained(tmp_path)
    assert torch.equal(loaded.encode([picture()]).deep, encoder.encode([picture()]).deep)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in encoder.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("name", ["encoder", "clip"])
def test_trains(name, request):
    encoder = request.getfixturevalue(name).train()
    features = encoder(torch.rand(2, 3, encoder.pixel_size, encoder.pixel_size))
    sum(t.pow(3).sum() for t in (features.deep, features.local, *features.shallow) if t is not None).backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    frozen = [n for n, p in encoder.named_parameters() if not p.requires_grad]
    assert any("layernorm" in n for n in frozen)


def test_half_precision(encoder):
    assert encoder.to(torch.bfloat16).encode([picture()]).deep.dtype == torch.bfloat16


def test_attention_is_sdpa(encoder, clip):
    for model in (encoder.siglip, encoder.dino, clip.clip):
        assert model.config._attn_implementation == "sdpa"


def test_patch_14_leaves_a_rest():
    siglip, dino = {**SIGLIP, "patch_size": 14}, {**DINO, "patch_size": 14}
    encoder = ReferenceEncoder(siglip, dino, (2,), (3,), image_size=45)
    assert encoder.encode([picture()]).deep.shape == (1, 9, 40)
    assert encoder.encode([picture()]).shallow == ()


@pytest.fixture
def backbones(tmp_path):
    """Small backbones saved in transformers' format; DINOv2 with a larger grid than the encoder wants."""
    torch.manual_seed(2)
    siglip = SiglipVisionModel(SiglipVisionConfig(**SIGLIP, image_size=32))
    dino = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, image_size=48))
    siglip.save_pretrained(tmp_path / "siglip")
    dino.save_pretrained(tmp_path / "dino")
    return siglip.eval(), dino.eval()


@torch.no_grad()
def test_from_backbones(backbones, tmp_path):
    siglip, dino = backbones
    layers = {"siglip_layers": (2,), "dino_layers": (3,)}
    encoder = ReferenceEncoder.from_backbones(tmp_path / "siglip", tmp_path / "dino", **layers, image_size=32)
    view = torch.rand(1, 3, 32, 32)
    (level,) = encoder.levels(view)
    expected = siglip((view - 0.5) / 0.5, output_hidden_states=True).hidden_states[3]
    assert torch.allclose(level[..., :16], expected, atol=1e-5)
    # transformers resamples the 6 x 6 table to 4 x 4 at run time; here it happened once, at loading.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    imagenet = (view - mean[:, None, None]) / std[:, None, None]
    expected = dino(imagenet, output_hidden_states=True).hidden_states[4][:, 5:]
    assert torch.allclose(level[..., 16:], expected, atol=1e-5)
    assert encoder.dino.embeddings.position_embeddings.shape[1] == 17


def test_backbones_keep_their_dtype(backbones, tmp_path):
    encoder = ReferenceEncoder.from_backbones(
        tmp_path / "siglip", tmp_path / "dino", siglip_layers=(2,), dino_layers=(3,), image_size=32, dtype="bfloat16"
    )
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}


def test_backbones_refused(backbones, tmp_path):
    Dinov2Model(Dinov2Config(**DINO, image_size=32)).save_pretrained(tmp_path / "without_registers")
    arguments = {"siglip_layers": (2,), "dino_layers": (3,), "image_size": 32}
    with pytest.raises(ValueError, match="register_tokens"):
        ReferenceEncoder.from_backbones(tmp_path / "siglip", tmp_path / "without_registers", **arguments)
    with pytest.raises(ValueError, match="cannot be loaded as a SiglipVisionModel"):
        ReferenceEncoder.from_backbones(tmp_path / "nowhere", tmp_path / "dino", **arguments)


@torch.no_grad()
def test_clip_from_backbone(tmp_path):
    torch.manual_seed(3)
    model = CLIPVisionModel(CLIPVisionConfig(**CLIP, image_size=32)).eval()
    model.save_pretrained(tmp_path)
    encoder = ClipReferenceEncoder.from_backbone(tmp_path)
    pixels = torch.rand(1, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    expected = model((pixels - mean) / std, output_hidden_states=True).hidden_states[2][:, 1:]
    features = encoder(pixels)
    assert torch.allclose(features.deep, expected, atol=1e-5)
    assert (features.local, features.shallow) == (None, ())
    assert (encoder.layer, encoder.tokens, encoder.feature_dim) == (1, 16, 16)


@pytest.mark.parametrize(
    ("siglip", "dino", "siglip_layers", "dino_layers", "words"),
    [
        (SIGLIP, DINO, (3,), (3,), "siglip_layers"),
        (SIGLIP, DINO, (1, 0), (0, 1), "ascending"),
        (SIGLIP, DINO, (0, 1), (3,), "equally many"),
        (SIGLIP, DINO, (), (), "siglip_layers"),
        (SIGLIP, {**DINO, "patch_size": 16}, (0,), (0,), "patches"),
    ],
)
def test_constructions_refused(siglip, dino, siglip_layers, dino_layers, words):
    with pytest.raises(ValueError, match=words):
        ReferenceEncoder(siglip, dino, siglip_layers, dino_layers, image_size=32)


def test_inputs_refused(encoder):
    with pytest.raises(ValueError, match="no reference images"):
        encoder.encode([])
    with pytest.raises(ValueError, match="must be"):
        encoder(torch.rand(1, 3, 32, 32))


def test_features_joined_selected_and_moved(encoder):
    features = encoder.encode([picture(0), picture(1)])
    assert len(features) == 2
    twice = cat_features([features, features.select([1])])
    assert torch.equal(twice.local[2], features.local[1])
    assert torch.equal(twice.shallow[0][2], features.shallow[0][1])
    assert features.to("cpu", torch.float16).shallow[0].dtype == torch.float16
    with pytest.raises(ValueError, match="one and the same"):
        cat_features([features, ReferenceFeatures(features.deep)])
    with pytest.raises(ValueError, match="no reference features"):
        cat_features([])
