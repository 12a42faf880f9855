"""Single passes of the small FLUX model with UNO's LoRA, block by block, and the LoRA's way there and back."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from realcustom.convert.uno import checked_lora, flux_from_released, load_lora
from realcustom.models.uno import PLACES, reference_ids, velocity
from realcustom.models.uno_lora import released_shapes, released_state

from .flux_small import base_weights, build_flux, build_uno, lora_file, lora_scale, pass_references, small_config

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def uno(reference_folder):
    return build_uno(reference_folder)


def predict(transformer, given, **changes):
    given = {**given, **changes}
    conditions = {"pooled_projections": given["vec"]}
    if transformer.config.guidance_embeds:
        conditions["guidance"] = given["guidance"]
    ids = given["img_ids"][0]
    return velocity(
        transformer, given["img"], ids, given["timesteps"], given["txt"], conditions, pass_references(given)
    )


@torch.no_grad()
def test_passes_with_and_without_the_lora(load_reference, max_difference, uno):
    reference = load_reference("uno/transformer")
    for case in reference.meta["cases"]:
        given = reference.under(f"{case}/in/")
        assert max_difference(predict(uno, given), reference[f"{case}/out/pred"]) <= TOLERANCE, case
        uno.disable_adapters()
        base = predict(uno, given)
        uno.enable_adapters()
        assert max_difference(base, reference[f"{case}/out/pred_base"]) <= TOLERANCE, case


@torch.no_grad()
def test_adapter_weight_is_the_releases_lora_weight(load_reference, max_difference, uno, reference_folder):
    reference = load_reference("uno/transformer")
    cases = [case for case, info in reference.meta["cases"].items() if "lora_weight_case" in info]
    assert cases
    for case in cases:
        uno.set_adapters("uno", reference.meta["cases"][case]["lora_weight_case"])
        prediction = predict(uno, reference.under(f"{case}/in/"))
        uno.set_adapters("uno", lora_scale(reference_folder))
        assert max_difference(prediction, reference[f"{case}/out/pred_lora_weight"]) <= TOLERANCE


@torch.no_grad()
def test_other_times_and_guidances(load_reference, max_difference, uno):
    reference = load_reference("uno/transformer")
    cases = {name.split("/")[0] for name in reference.tensors if "/sweep/" in name}
    assert cases
    for case in cases:
        given, sweep = reference.under(f"{case}/in/"), reference.under(f"{case}/sweep/")
        rows = zip(sweep["timestep"], sweep["guidance"], sweep["pred"], strict=True)
        for times, guidance, expected in rows:
            prediction = predict(uno, given, timesteps=times.view(-1), guidance=guidance.view(-1))
            assert max_difference(prediction, expected.view_as(prediction)) <= TOLERANCE


@torch.no_grad()
def test_every_block(load_reference, max_difference, uno):
    reference = load_reference("uno/transformer")
    traced = {name.split("/")[0] for name in reference.tensors if "/trace/" in name}
    assert traced
    for case in traced:
        trace = reference.under(f"{case}/trace/")
        for name, (text, image) in block_outputs(uno, reference.under(f"{case}/in/")).items():
            if f"{name}.img" in trace:  # double blocks keep the streams apart
                assert max_difference(image, trace[f"{name}.img"]) <= TOLERANCE, name
                assert max_difference(text, trace[f"{name}.txt"]) <= TOLERANCE, name
            else:
                assert max_difference(torch.cat([text, image], dim=1), trace[name]) <= TOLERANCE, name


def block_outputs(transformer, given):
    """Text and image stream after every block, under the reference's names."""
    seen = {}

    def keep(_module, _inputs, out, name):
        seen[name] = out

    stages = (("double", transformer.transformer_blocks), ("single", transformer.single_transformer_blocks))
    hooks = [
        block.register_forward_hook(partial(keep, name=f"{stage}_blocks.{index}"))
        for stage, blocks in stages
        for index, block in enumerate(blocks)
    ]
    predict(transformer, given)
    for hook in hooks:
        hook.remove()
    return seen


def test_positions_of_the_passes(load_reference):
    reference = load_reference("uno/transformer")
    for case, info in reference.meta["cases"].items():
        image, *references = [tuple(s // 2 for s in size) for size in [info["latent_hw"], *info["ref_latent_hw"]]]
        ids = reference_ids(image, references, PLACES[info["pe"]])
        for index, each in enumerate(ids):
            assert torch.equal(each, reference[f"{case}/in/ref{index}_ids"][0]), case


def test_counts_of_both_sizes(reference_folder):
    from diffusers import FluxTransformer2DModel

    meta = small_config(reference_folder)
    small = build_flux(reference_folder)
    assert sum(p.numel() for p in small.parameters()) == meta["parameters"]["base"]
    official = meta["official_size"]
    with torch.device("meta"):
        large = FluxTransformer2DModel.from_config(_diffusers_config(official["config"]))
    assert sum(p.numel() for p in large.parameters()) == official["base_parameters"]
    patterns = meta["official_lora_keys"]
    rank = next(iter(patterns.values()))["shape"][0]
    shapes = released_shapes(large, rank)
    for name, shape in shapes.items():
        assert list(shape) == patterns[re.sub(r"\d+", "N", name, count=1)]["shape"]
    assert len(shapes) == official["lora_tensors"]
    assert sum(rows * columns for rows, columns in shapes.values()) == official[f"lora_parameters_rank{rank}"]


def _diffusers_config(config):
    return {
        "in_channels": config["in_channels"],
        "num_layers": config["depth"],
        "num_single_layers": config["depth_single_blocks"],
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["hidden_size"] // config["num_heads"],
        "joint_attention_dim": config["context_in_dim"],
        "pooled_projection_dim": config["vec_in_dim"],
        "guidance_embeds": config["guidance_embed"],
        "axes_dims_rope": config["axes_dim"],
    }


def test_lora_round_trip_is_exact(reference_folder):
    """Release file -> diffusers' loader -> release file."""
    transformer = build_uno(reference_folder)
    stored = load_file(lora_file(reference_folder))
    exported = released_state(transformer)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], stored[name]) for name in stored)


@torch.no_grad()
def test_downs_trained_apart_fit_the_layout_at_three_times_the_rank(load_reference, max_difference, reference_folder):
    apart = build_uno(reference_folder)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in apart.named_parameters():
        if "lora_A" in name:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    state = released_state(apart)
    rank = next(iter(load_file(lora_file(reference_folder)).values())).shape[0]
    assert {tensor.shape[0] for name, tensor in state.items() if ".down." in name} == {3 * rank}

    again = build_flux(reference_folder)
    load_lora(again, state)
    reference = load_reference("uno/transformer")
    for case in list(reference.meta["cases"])[:2]:
        given = reference.under(f"{case}/in/")
        assert max_difference(predict(again, given), predict(apart, given)) <= TOLERANCE


def test_files_are_read_strictly(reference_folder):
    meta = small_config(reference_folder)
    transformer = build_flux(reference_folder)
    weights = base_weights(reference_folder, meta)
    stored = load_file(lora_file(reference_folder))
    name = next(iter(weights))
    with pytest.raises(ValueError, match="missing"):
        flux_from_released({key: value for key, value in weights.items() if key != name}, transformer)
    with pytest.raises(ValueError, match="unknown: img_out"):
        flux_from_released({**weights, "img_out.weight": torch.zeros(2)}, transformer)
    name = next(key for key in stored if "qkv_lora1.up" in key)
    with pytest.raises(ValueError, match="misshapen"):
        checked_lora({**stored, name: stored[name][:-1]}, transformer)
    with pytest.raises(ValueError, match="missing"):
        checked_lora({key: value for key, value in stored.items() if key != name}, transformer)
