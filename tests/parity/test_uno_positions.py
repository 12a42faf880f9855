"""Where tokens stand, how latents are packed, which noise a seed is, and which times are sampled and trained at."""

import pytest
import torch

from realcustom.models.flow import flow_times, image_tokens, released_tokens, shift_exponent
from realcustom.models.uno import PLACES, grid_ids, pack, reference_ids, unpack


@pytest.fixture(scope="module")
def positions(load_reference):
    return load_reference("uno/positions")


def grid(size):
    return tuple(-(-side // 16) for side in size)


def test_ids_of_image_and_references_in_every_mode(positions):
    for case, info in positions.meta["cases"].items():
        image, references = grid(info["size_hw_px"]), [grid(size) for size in info["ref_hw_px"]]
        assert torch.equal(grid_ids(image), positions[f"{case}/img_ids"][0])
        for letter, place in PLACES.items():
            ids = reference_ids(image, references, place)
            assert len(ids) == len(references)
            for index, each in enumerate(ids):
                assert torch.equal(each, positions[f"{case}/{letter}/ref{index}_ids"][0]), (case, letter)


def test_packing_there_and_back(positions):
    packed = 0
    for case, info in positions.meta["packing"].items():
        stored = positions.under(f"packing/{case}/")
        for name in [name for name in stored if name.endswith("latent")]:
            tokens, latent = stored[name.replace("latent", "tokens")], stored[name]
            assert torch.equal(pack(latent), tokens)
            assert torch.equal(unpack(tokens, tuple(side // 2 for side in latent.shape[-2:])), latent)
            packed += 1
        if "size_hw_px" in info:
            assert grid(info["size_hw_px"]) == tuple(side // 2 for side in info["latent_hw"])
    assert packed >= len(positions.meta["packing"])


def test_noise_of_a_seed(positions):
    from diffusers.utils.torch_utils import randn_tensor

    for case, info in positions.meta["noise"].items():
        generator = torch.Generator().manual_seed(info["seed"])
        noise = randn_tensor(tuple(info["shape"]), generator=generator, dtype=torch.float32)
        assert torch.equal(noise, positions[f"noise/{case}/float32"])
        assert torch.equal(noise.bfloat16(), positions[f"noise/{case}/bfloat16"])


def test_schedules_with_the_released_and_the_true_token_count(positions, max_difference):
    for name, info in positions.meta["schedules"].items():
        if "resolution" in info:
            tokens = image_tokens(info["resolution"], info["resolution"])
        else:
            tokens = released_tokens(info["height"], info["width"])
            assert image_tokens(info["height"], info["width"]) == info["true_token_count"]
        assert tokens == info["image_seq_len_passed"]
        assert shift_exponent(tokens) == pytest.approx(info["mu"], abs=1e-9)
        assert max_difference(flow_times(info["steps"], shift_exponent(tokens)), positions[name]) <= 1e-6
    for name in positions.tensors:
        if name.startswith("schedule/unshifted"):
            assert max_difference(flow_times(positions[name].numel() - 1), positions[name]) <= 1e-6
