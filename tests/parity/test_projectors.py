"""Projectors against the authors' code: every configuration that projectors.json names."""

import torch

from realcustom.encoders.image import ReferenceFeatures
from realcustom.models.projector import build_projector

KINDS = {"ProjectorHighResMinAttn": "deep", "ProjectorHighResShallowMinAttnV1": "shallow"}


def features_of(reference, case):
    inputs = reference.under(f"{case}/in/")
    shallow = tuple(inputs[name] for name in sorted(inputs) if name.startswith("shallow"))
    return ReferenceFeatures(inputs["deep"], inputs["deep_local"], shallow)


@torch.no_grad()
def test_projector_outputs(load_reference, max_difference):
    reference = load_reference("projectors")
    tolerance = reference.meta["suggested_tolerance_max_abs"]
    assert reference.meta["configs"]
    for case, config in reference.meta["configs"].items():
        projector = build_projector({"kind": KINDS[config["cls"]], **config["params"]})
        projector.load_state_dict(reference.under(f"{case}/weights/"), strict=True)
        difference = max_difference(projector(features_of(reference, case)), reference[f"{case}/out"])
        assert difference <= tolerance, case


@torch.no_grad()
def test_the_released_shallow_variant_drops_its_local_branch(load_reference):
    """The README's statement, and that the projector as described differs exactly there."""
    reference = load_reference("projectors")
    for case, config in reference.meta["configs"].items():
        if KINDS[config["cls"]] != "shallow":
            continue
        weights, features = reference.under(f"{case}/weights/"), features_of(reference, case)
        other = ReferenceFeatures(features.deep, features.local.flip(-1), features.shallow)
        count = features.deep.shape[1]
        released = build_projector({"kind": "shallow", **config["params"]})
        described = build_projector({"kind": "cross-layer-cross-scale", **config["params"]})
        for projector in (released, described):
            projector.load_state_dict(weights, strict=True)
        assert torch.equal(released(features), released(other))
        assert not torch.allclose(described(features), described(other))
        assert torch.equal(described(features)[:, count:], released(features)[:, count:])


@torch.no_grad()
def test_projector_inside_the_unet_checkpoint(load_reference, reference_folder, max_difference):
    """The projector stored in the small UNet's checkpoint, on that UNet's inputs."""
    from safetensors.torch import load_file

    reference = load_reference("unet_small")
    projection = reference.meta["config"]["image_prompt_settings"]["vision_projection_config"]
    prefix = "encoder_hidden_states_vision_projection."
    weights = load_file(reference_folder / "unet_small.weights.safetensors")
    weights = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    projector = build_projector({"kind": KINDS[projection["target"].rpartition(".")[2]], **projection["params"]})
    projector.load_state_dict(weights, strict=True)
    for case in reference.meta["cases"]:
        (name,) = [n for n in reference.tensors if n.startswith(f"{case}/") and "vision_tokens" in n]
        tokens = projector(features_of(reference, case))
        difference = max_difference(tokens, reference[name])
        assert difference <= reference.meta["suggested_tolerance_max_abs"]["vision_tokens"], case
