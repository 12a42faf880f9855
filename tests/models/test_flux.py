"""The FLUX backbone on a tiny random transformer: what sees what, and what the guidance mask is made of."""

import pytest
import torch
from tiny_flux import build_transformer

from realcustom.guidance.mask import MaskSettings
from realcustom.guidance.recorder import MaskRecorder
from realcustom.models.backbone import Branch, Text
from realcustom.models.flux import FluxBackbone, Sight, SubjectReferences, image_attention, reference_bias
from realcustom.models.uno import grid_ids, reference_tokens, velocity

GRID, TEXT, WIDTH = (3, 4), 6, 32
COUNT = GRID[0] * GRID[1]
SEPARATE = Sight(references_see_references=False, references_see_image=False, text_sees_references=False)
TIME = torch.tensor(600.0)


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    transformer = build_transformer().eval().requires_grad_(False)
    for name, parameter in transformer.named_parameters():
        if "norm" not in name:
            parameter *= 2
    return transformer


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, TEXT, WIDTH, generator=generator)
    added = {"pooled_projections": torch.randn(1, WIDTH, generator=generator), "guidance": torch.tensor([4.0])}
    latents = torch.randn(1, COUNT, 16, generator=generator)
    references = [torch.randn(1, 4, *size, generator=generator) for size in ((4, 4), (6, 4))]
    return latents, Text(embeds=text, added=added), references


def references_of(latents, sight=None, changed=None):
    latents = [one if index != changed else one.flip(-1) + 1 for index, one in enumerate(latents)]
    tokens = reference_tokens(latents, GRID)
    return SubjectReferences(tokens=tokens, shares=torch.eye(len(latents))[None], sight=sight or Sight())


def predict(transformer, inputs, references, masks=None):
    latents, text, _ = inputs
    branch = Branch(text=text, references=references, masks=masks)
    return FluxBackbone(transformer, GRID).predict(latents, TIME, [branch])[0]


def half_masks():
    """Two subjects: the left half and the right half."""
    masks = torch.zeros(1, 2, *GRID)
    masks[:, 0, :, :2], masks[:, 1, :, 2:] = 1, 1
    return masks


def first_attention(transformer, inputs, references, masks, block=0):
    """What the image's tokens (1, N, C) get out of one double block's attention."""
    seen = []
    hook = transformer.transformer_blocks[block].attn.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    predict(transformer, inputs, references, masks)
    hook.remove()
    return seen[0][:, :COUNT]


def test_no_mask_and_full_strength_is_uno_bit_for_bit(transformer, inputs):
    latents, text, references = inputs
    plain = velocity(
        transformer, latents, grid_ids(GRID), TIME.view(1) / 1000, text.embeds, text.added,
        reference_tokens(references, GRID),
    )  # fmt: skip
    for masks in (None, torch.ones(1, 2, *GRID)):
        assert torch.equal(predict(transformer, inputs, references_of(references), masks), plain)


def test_strength_zero_and_empty_masks_are_text_to_image(transformer, inputs):
    text_only = predict(transformer, inputs, None)
    references = references_of(inputs[2])
    assert torch.equal(predict(transformer, inputs, references, torch.zeros(1, 2, *GRID)), text_only)
    one = half_masks()
    one[:, 1] = 0
    both_rows = predict(transformer, inputs, references, one)
    alone = references_of(inputs[2][:1])
    assert torch.equal(both_rows, predict(transformer, inputs, alone, one[:, :1]))
    # Rows of a batch that differ cannot leave the tokens out; nothing sees them there either.
    latents, text, _ = inputs
    added = {"pooled_projections": text.added["pooled_projections"].repeat(2, 1), "guidance": torch.tensor([4.0, 4.0])}
    doubled = Text(embeds=text.embeds.repeat(2, 1, 1), added=added)
    masks = torch.cat([half_masks(), torch.zeros(1, 2, *GRID)])
    branch = Branch(text=doubled, references=references, masks=masks)
    rows = FluxBackbone(transformer, GRID).predict(latents.repeat(2, 1, 1), TIME, [branch])[0]
    assert (rows[1] - text_only[0]).abs().max() <= 1e-5
    assert (rows[0] - text_only[0]).abs().max() > 1e-3


def test_outside_a_binary_mask_the_reference_changes_nothing_in_the_layer(transformer, inputs):
    masks = half_masks()
    inside = masks.flatten(2).bool()
    for changed in (0, 1):
        outputs = [
            first_attention(transformer, inputs, references_of(inputs[2], changed=index), masks)[0]
            for index in (None, changed)
        ]
        difference = (outputs[0] - outputs[1]).abs().amax(dim=-1)
        assert difference[~inside[0, changed]].max() <= 1e-6
        assert difference[inside[0, changed]].min() > 1e-4


def test_separate_subjects_never_meet_but_through_the_image(transformer, inputs):
    """With text and references blind to the references, no token but those of its own mask reads a reference."""
    masks = half_masks()
    inside = masks.flatten(2).bool()
    left = predict(transformer, inputs, references_of(inputs[2], SEPARATE), masks)
    bias = reference_bias(references_of(inputs[2], SEPARATE), masks, TEXT, COUNT)
    start, size = TEXT + COUNT, [4, 6]
    spans = [slice(start, start + size[0]), slice(start + size[0], start + sum(size))]
    for index, span in enumerate(spans):
        readers = (bias[0, 0, :, span] > -torch.inf).all(dim=-1)
        expected = torch.zeros(start + sum(size), dtype=torch.bool)
        expected[TEXT : TEXT + COUNT] = inside[0, index]
        expected[span] = True
        assert torch.equal(readers, expected)
    assert (bias[0, 0, :, :TEXT] == 0).all(), "text is never masked"
    assert (left - predict(transformer, inputs, references_of(inputs[2]), masks)).abs().max() > 1e-4


def test_strength_is_monotone(transformer, inputs):
    """The layer's image attention moves away from that of text alone, the more the stronger the subject is."""
    base = first_attention(transformer, inputs, None, None)
    distances = []
    for strength in (0.1, 0.3, 0.6, 1.0, 1.5, 2.0):
        masks = torch.tensor([strength, 0.0]).view(1, 2, 1, 1).expand(1, 2, *GRID)
        distances.append((first_attention(transformer, inputs, references_of(inputs[2]), masks) - base).norm().item())
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_one_picture_of_two_subjects_is_seen_by_both(transformer, inputs):
    tokens = reference_tokens(inputs[2][:1], GRID)
    shared = SubjectReferences(tokens=tokens, shares=torch.ones(1, 1, 2))
    halves = predict(transformer, inputs, shared, half_masks())
    assert torch.equal(halves, predict(transformer, inputs, references_of(inputs[2][:1]), None))


def recorder(settings, backbone, latents):
    weights = torch.zeros(1, 1, TEXT)
    weights[0, 0, 2] = 1
    levels = (backbone.word_levels, backbone.self_levels)
    return MaskRecorder(weights, backbone.mask_grid(latents), settings, levels=levels)


def test_maps_are_made_of_the_blocks_own_queries_and_keys(transformer, inputs):
    """Recorded from the inputs of a block; compared with the attention the block itself computes."""
    block = transformer.transformer_blocks[1].attn
    kept = {}
    original = block.processor

    def spy(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        import diffusers.models.transformers.transformer_flux as module

        def keep(query, key, value, **kwargs):
            kept["query"], kept["key"] = query, key
            return dispatch(query, key, value, **kwargs)

        dispatch = module.dispatch_attention_fn
        module.dispatch_attention_fn = keep
        try:
            kept["maps"] = image_attention(attn, COUNT, hidden_states, encoder_hidden_states, image_rotary_emb)
            return original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        finally:
            module.dispatch_attention_fn = dispatch

    block.processor = spy
    predict(transformer, inputs, None)
    block.processor = original
    query, key, text_key = kept["maps"]
    assert torch.allclose(query, kept["query"][:, TEXT:].transpose(1, 2), atol=1e-6)
    assert torch.allclose(key, kept["key"][:, TEXT:].transpose(1, 2), atol=1e-6)
    assert torch.allclose(text_key, kept["key"][:, :TEXT].transpose(1, 2), atol=1e-6)


def test_the_guidance_pass_ends_at_its_last_block_and_changes_nothing(transformer, inputs):
    latents, text, _ = inputs
    backbone = FluxBackbone(transformer, GRID)
    settings = MaskSettings(word_levels=(0, 1), spread_levels=(0,))
    ran = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, _o, index=index: ran.append(index))
        for index, block in enumerate(transformer.transformer_blocks)
    ]
    with backbone.installed():
        full = recorder(settings, backbone, latents)
        kept = backbone.predict(latents, TIME, [Branch(text=text, recorder=full)])
        ran.clear()
        short = recorder(settings, backbone, latents)
        assert backbone.predict(latents, TIME, [Branch(text=text, recorder=short)], maps_only=True) == []
        assert ran == [0]
        with pytest.raises(ValueError, match="in the middle of another call"), backbone.installed():
            pass
    for hook in hooks:
        hook.remove()
    assert torch.equal(kept[0], predict(transformer, inputs, None))
    assert torch.equal(full.masks(), short.masks())
    assert all(not block.attn._forward_pre_hooks for block in transformer.transformer_blocks)


def test_a_thinned_pass_is_a_smaller_image(transformer, inputs):
    latents, text, _ = inputs
    backbone = FluxBackbone(transformer, GRID)
    thin = backbone.thinned(latents, 2)
    assert thin.shape == (1, 4, 16)
    assert torch.equal(thin[0, 3], latents[0, 2 * GRID[1] + 2])
    small = FluxBackbone(transformer, (2, 2)).predict(thin, TIME, [Branch(text=text)])[0]
    assert torch.equal(backbone.predict(thin, TIME, [Branch(text=text)])[0], small)
