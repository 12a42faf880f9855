"""The three passes of the released U-Net: guidance, generation with mask, generation without mask."""

import pytest
import torch
from einops import rearrange

from realcustom.encoders.image import ReferenceFeatures
from realcustom.guidance.attention_maps import word_maps
from realcustom.models.attention import cross_attention_names, installed

from .released_unet import load_released, released_resize

TOLERANCE = 5e-5
MAP_TOLERANCE = 5e-6
TOKEN_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def released(reference_folder):
    return load_released(reference_folder)


class LayerMaps:
    """Records every layer's map of single text positions, (B, positions, h, w)."""

    def __init__(self, token_weights):
        self.token_weights = token_weights
        self.maps = []

    def add(self, query, key, scale, size, level):
        maps = word_maps(query, key, self.token_weights, scale)
        self.maps.append(rearrange(maps, "b s (h w) -> b s h w", h=size[0]))


def run(unet, reference, case, attention):
    given = reference.under(f"{case}/in/")
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    return unet(given["latent"], given["timestep"], given["text"], added_cond_kwargs=added, return_dict=False)[0]


def test_number_of_layers_and_parameters(load_reference, released):
    meta = load_reference("unet_small").meta
    unet, _adapter = released
    assert len(cross_attention_names(unet)) == meta["cross_attention_layers"]
    assert sum(p.numel() for model in released for p in model.parameters()) == meta["parameters"]


@torch.no_grad()
def test_three_passes(load_reference, max_difference, released):
    reference = load_reference("unet_small")
    unet, adapter = released
    for case in reference.meta["cases"]:
        given = reference.under(f"{case}/in/")
        processors = dict(unet.attn_processors)
        with installed(unet, tuple(given["latent"].shape[-2:])) as attention:
            attention.resize_mask = released_resize
            batch = given["latent"].shape[0]
            weights = torch.zeros(batch, len(reference.meta["tokens_stored"]), given["text"].shape[1])
            for row, position in enumerate(reference.meta["tokens_stored"]):
                weights[:, row, position] = 1
            attention.word_maps = recorder = LayerMaps(weights)
            sample = run(unet, reference, case, attention)
            assert max_difference(sample, reference[f"{case}/guidance/sample"]) <= TOLERANCE
            for index, maps in enumerate(recorder.maps):
                assert max_difference(maps, reference[f"{case}/guidance/map/{index:02d}"]) <= MAP_TOLERANCE
            attention.text_only()

            tokens = adapter.tokens(ReferenceFeatures(given["deep"], given["deep_local"]))
            assert max_difference(tokens, reference[f"{case}/vision_tokens"]) <= TOKEN_TOLERANCE
            attention.reference = adapter.keys_values(tokens.unsqueeze(1))
            for name, mask in (("gen_mask", "mask"), ("gen_nomask", None), ("gen_mask_per_layer", "mask_per_layer")):
                if f"{case}/{name}/sample" in reference.tensors:
                    attention.masks = None if mask is None else given[mask]
                    sample = run(unet, reference, case, attention)
                    assert max_difference(sample, reference[f"{case}/{name}/sample"]) <= TOLERANCE, (case, name)
        assert unet.attn_processors == processors
