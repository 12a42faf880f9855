"""The three passes of the released U-Net: guidance, generation with mask, generation without mask."""

import pytest
import torch
from einops import rearrange

from realcustom.encoders.image import ReferenceFeatures
from realcustom.guidance.attention_maps import word_maps
from realcustom.models import unet as unet_module
from realcustom.models.attention import VisualKeysValues
from realcustom.models.backbone import Branch, Text
from realcustom.models.unet import UNetBackbone, cross_attention_names

from .released_unet import load_released, released_resize

TOLERANCE = 5e-5
MAP_TOLERANCE = 5e-6
TOKEN_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def released(reference_folder):
    return load_released(reference_folder)


class LayerMaps:
    """Records every layer's map of single text positions, (B, positions, h, w)."""

    self_levels = frozenset()

    def __init__(self, token_weights):
        self.token_weights, self.words, self.maps = token_weights, self, []

    def add(self, query, key, scale, size, level):
        maps = word_maps(query, key, self.token_weights, scale)
        self.maps.append(rearrange(maps, "b s (h w) -> b s h w", h=size[0]))


class LayerMasks:
    """In the place of the backbone's masks, which are the same for all layers: one for each, (B, S, layers, G, g)."""

    def __init__(self, branch):
        self.masks, self.layer = branch.masks, -1

    def at(self, size):
        self.layer += 1
        return rearrange(released_resize(self.masks[:, :, self.layer], size), "b s h w -> b s (h w) 1")


def test_number_of_layers_and_parameters(load_reference, released):
    meta = load_reference("unet_small").meta
    unet, _adapter = released
    assert len(cross_attention_names(unet)) == meta["cross_attention_layers"]
    assert sum(p.numel() for model in released for p in model.parameters()) == meta["parameters"]


@torch.no_grad()
def test_three_passes(load_reference, max_difference, released, monkeypatch):
    monkeypatch.setattr(unet_module, "resize", released_resize)
    reference = load_reference("unet_small")
    unet, adapter = released
    for case in reference.meta["cases"]:
        given = reference.under(f"{case}/in/")
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        text = Text(embeds=given["text"], added=added)
        processors, backbone = dict(unet.attn_processors), UNetBackbone(unet)
        batch = given["latent"].shape[0]
        weights = torch.zeros(batch, len(reference.meta["tokens_stored"]), given["text"].shape[1])
        for row, position in enumerate(reference.meta["tokens_stored"]):
            weights[:, row, position] = 1
        recorder = LayerMaps(weights)
        tokens = adapter.tokens(ReferenceFeatures(given["deep"], given["deep_local"]))
        assert max_difference(tokens, reference[f"{case}/vision_tokens"]) <= TOKEN_TOLERANCE
        references = VisualKeysValues(adapter.keys_values(tokens.unsqueeze(1)))
        with backbone.installed():

            def sample(case=case, given=given, backbone=backbone, **branch):
                return backbone.predict(given["latent"], given["timestep"], [Branch(**branch)])[0]

            out = sample(text=text, recorder=recorder)
            assert max_difference(out, reference[f"{case}/guidance/sample"]) <= TOLERANCE
            for index, maps in enumerate(recorder.maps):
                assert max_difference(maps, reference[f"{case}/guidance/map/{index:02d}"]) <= MAP_TOLERANCE
            for name, mask in (("gen_mask", "mask"), ("gen_nomask", None)):
                out = sample(text=text, references=references, masks=None if mask is None else given[mask])
                assert max_difference(out, reference[f"{case}/{name}/sample"]) <= TOLERANCE, (case, name)
            name = f"{case}/gen_mask_per_layer/sample"
            if name in reference.tensors:
                with monkeypatch.context() as patch:
                    patch.setattr(unet_module, "_LayerMasks", LayerMasks)
                    out = sample(text=text, references=references, masks=given["mask_per_layer"])
                assert max_difference(out, reference[name]) <= TOLERANCE, name
        assert unet.attn_processors == processors
