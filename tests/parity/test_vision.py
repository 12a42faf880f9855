"""The reference encoder against the authors' code around two small timm ViTs."""

import pytest
import torch
from einops import rearrange

from realcustom.convert.timm import dino_config_from_timm, dino_from_timm, siglip_config_from_timm, siglip_from_timm
from realcustom.encoders.image import HALF, IMAGENET, ReferenceEncoder, normalise, to_views


@pytest.fixture(scope="module")
def vision(load_reference):
    return load_reference("vision")


def build(vision, levels):
    """Our encoder with the stored timm weights; `levels` is a key of the JSON's feature_index."""
    size, layers = vision.meta["image_size"], vision.meta["feature_index"][levels]
    siglip, dino = vision.under("weights/siglip/"), vision.under("weights/dino/")
    heads = {name: model["overrides"]["num_heads"] for name, model in vision.meta["models"].items()}
    encoder = ReferenceEncoder(
        siglip_config_from_timm(siglip, heads["siglip"]),
        dino_config_from_timm(dino, heads["dino"]),
        siglip_layers=layers,
        dino_layers=layers,
        image_size=size,
    )
    encoder.siglip.load_state_dict(siglip_from_timm(siglip, size), strict=True)
    encoder.dino.load_state_dict(dino_from_timm(dino, size), strict=True)
    return encoder.eval()


def test_views_are_equal_to_the_last_bit(vision):
    views = to_views(vision["in/image"])
    for name, view in zip(("global", "local"), views, strict=True):
        pixels = rearrange((view * 255).round().to(torch.uint8), "b c h w -> b h w c")
        assert torch.equal(pixels, vision[f"pre/{name}_u8"])


def test_normalised_views(vision, max_difference):
    tolerance = vision.meta["suggested_tolerance_max_abs"]["pre_normalised"]
    views = to_views(vision["in/image"])
    for name, view in zip(("global", "local"), views, strict=True):
        assert max_difference(normalise(view, HALF), vision[f"pre/siglip_{name}"]) <= tolerance
        assert max_difference(normalise(view, IMAGENET), vision[f"pre/dino_{name}"]) <= tolerance


@torch.no_grad()
@pytest.mark.parametrize("levels", ["deep", "shallow"])
def test_features(vision, max_difference, levels):
    tolerance = vision.meta["suggested_tolerance_max_abs"]["out"]
    encoder = build(vision, levels)
    features = encoder(vision["in/image"])
    out = vision.under(f"out_{levels}/")
    expected_local = out.pop("deep_local")
    expected = [out[name] for name in sorted(out, key=lambda name: (len(name), name))]
    assert len(features.shallow) == len(expected) - 1
    for actual, wanted in zip((*features.shallow, features.deep), expected, strict=True):
        assert max_difference(actual, wanted) <= tolerance
    assert max_difference(features.local, expected_local) <= tolerance
    assert encoder.tokens == vision.meta["grid"] ** 2 == features.deep.shape[1]
    assert encoder.feature_dim == features.deep.shape[2]
