"""Projectors: shapes, what reaches the output, what is learned and refused. Their numbers are in tests/parity."""

import pytest
import torch

from realcustom.encoders.image import ReferenceFeatures
from realcustom.models.projector import PROJECTORS, CrossLayerCrossScaleProjector, DeepProjector, build_projector

SIZES = {"vision_dim": 24, "out_dim": 10, "dim_head": 8}


def features(count=2, tokens=9, dim=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    deep, *shallow = (torch.randn(count, tokens, dim, generator=generator) for _ in range(4))
    return ReferenceFeatures(deep, torch.randn(count, 4 * tokens, dim, generator=generator), tuple(shallow))


def build(kind, **more):
    torch.manual_seed(1)
    plain = {"vision_dim": 24, "out_dim": 10}
    resampler = {**plain, "hidden_dim": 16, "heads": 2, "depth": 1, "tokens": 4, "dim_head": 8}
    sizes = {"plain": plain, "image-embed": plain, "resampler": resampler}.get(kind, SIZES)
    return build_projector({"kind": kind, **sizes, **more})


@pytest.mark.parametrize(
    ("kind", "tokens"), [("deep", 9), ("shallow", 18), ("cross-layer-cross-scale", 18), ("plain", 9)]
)
def test_shapes(kind, tokens):
    assert build(kind)(features()).shape == (2, tokens, 10)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_references_do_not_mix(kind):
    # One embedding stands for the whole picture there.
    projector, both = build(kind), features(tokens=1 if kind == "image-embed" else 9)
    alone = torch.cat([projector(both.select([index])) for index in range(2)])
    assert torch.allclose(projector(both), alone, atol=1e-5)


def moved_by(projector, name):
    """Whether the named part of the features moves the output."""
    given, other = features(), features(seed=5)
    parts = {"deep": given.deep, "local": given.local, "shallow": given.shallow}
    changed = ReferenceFeatures(**parts | {name: getattr(other, name)})
    return not torch.allclose(projector(given), projector(changed))


@pytest.mark.parametrize(
    ("kind", "used"),
    [
        ("deep", {"deep", "local"}),
        ("shallow", {"deep", "shallow"}),
        ("cross-layer-cross-scale", {"deep", "local", "shallow"}),
        ("plain", {"deep"}),
    ],
)
def test_what_reaches_the_output(kind, used):
    projector = build(kind)
    assert {name for name in ("deep", "local", "shallow") if moved_by(projector, name)} == used


@pytest.mark.parametrize("kind", ["deep", "cross-layer-cross-scale", "plain"])
def test_every_weight_learns(kind):
    projector = build(kind, **({"adaptive_scale": True} if kind == "deep" else {}))
    projector(features()).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in projector.parameters())


def test_local_order_does_not_matter():
    given = features()
    shuffled = ReferenceFeatures(given.deep, given.local[:, torch.randperm(36)], given.shallow)
    projector = build("deep")
    assert torch.allclose(projector(given), projector(shuffled), atol=1e-5)


def test_adaptive_scale_weighs_the_refinement():
    plain, scaled = build("deep"), build("deep", adaptive_scale=True, scale_value=0.25)
    base = plain.projector_base(features().deep)
    expected = base + 0.25 * (plain(features()) - base)
    scaled.load_state_dict({**plain.state_dict(), "scale_value.value": torch.tensor(0.25)}, strict=True)
    assert torch.allclose(scaled(features()), expected, atol=1e-6)


def test_cross_scale_half_is_the_deep_projector():
    both = build("cross-layer-cross-scale")
    assert isinstance(both, CrossLayerCrossScaleProjector)
    deep = DeepProjector(**SIZES)
    deep.load_state_dict({name: both.state_dict()[name] for name in deep.state_dict()}, strict=True)
    assert torch.allclose(both(features())[:, :9], deep(features()), atol=1e-6)


def test_hidden_width():
    assert build("deep").projector[0].out_features == 96
    assert build("deep", hidden_dim=7).projector[0].out_features == 7


def test_refusals():
    deep_only = ReferenceFeatures(features().deep)
    with pytest.raises(ValueError, match="local views"):
        build("deep")(deep_only)
    with pytest.raises(ValueError, match="shallow levels"):
        build("shallow")(deep_only)
    with pytest.raises(ValueError, match="multiple of the head size"):
        DeepProjector(vision_dim=24, out_dim=4, dim_head=7)
    with pytest.raises(ValueError, match="must be one of deep, shallow"):
        build_projector({"vision_dim": 24, "out_dim": 4})
