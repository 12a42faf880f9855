"""Every mode of the released mask generation."""

import torch

from realcustom.guidance.attention_maps import WordMaps
from realcustom.guidance.mask import NORMALISATIONS, RULES, MaskSettings, Normalisation, guidance_mask

from .released_self_attention import matrix_spread, max_per_sample, min_max_per_map

NAMES = {"max_norm": "max", "min_max_norm": "min-max", "min_max_per_channel": "min-max-per-layer"}
SELF_NORMALISATIONS = {"selfmap_min_max_per_channel": min_max_per_map, "selfmap_max_norm": max_per_sample}
NONE = Normalisation()  # the release names no normalisation


def normalisation_of(mode):
    """Of a mode of the release, whose name may hold one of the known names."""
    return next((NORMALISATIONS[NAMES[name]] for name in NAMES if name in mode), NONE)


def rule_of(mode):
    """Of a mode of the release."""
    return RULES[("threshold" if "threshold" in mode else "top-share") + ("-binary" if "binary" in mode else "")]


def stored_positions(reference, target):
    """Text positions of the stored columns, read off the sentence that describes the first map."""
    meaning = reference.meta["tensors"][f"{target}/in/crossmap/0"]["meaning"]
    return [int(number) for number in meaning.split("[")[1].split("]")[0].split(",")]


def in_order(tensors):
    return [tensors[key] for key in sorted(tensors, key=int)]


def our_mask(reference, case, crossmaps, selfmaps, grid):
    mode = case["mask_mode"]
    normalisation = normalisation_of(mode)
    stored = stored_positions(reference, case["target"])
    wanted = reference.meta["tokens"][case["tokens"]]
    weights = torch.tensor([float(position in wanted) for position in stored])
    word = WordMaps(weights, tuple(grid), normalisation.layer)
    for maps in crossmaps:
        word.add_maps(torch.einsum("bkthw,t->bhw", maps, weights).unsqueeze(1) / maps.shape[1])
    # The release ignores self maps when no normalisation is named.
    spread = None
    if case["selfmaps"] and normalisation != NONE:
        chosen = next((SELF_NORMALISATIONS[name] for name in SELF_NORMALISATIONS if name in mode), None)
        spread = matrix_spread(selfmaps, grid[0] * grid[1], chosen)
    settings = MaskSettings(scope=case["mask_scope"], normalisation=normalisation, rule=rule_of(mode))
    return guidance_mask(word.mean(), settings, spread)


def test_all_mask_modes(load_reference, max_difference):
    reference = load_reference("masks")
    tolerance = reference.meta["suggested_tolerance_max_abs"]
    worst = {False: 0.0, True: 0.0}
    for case in reference.meta["cases"]:
        target = case["target"]
        crossmaps = in_order(reference.under(f"{target}/in/crossmap/"))
        selfmaps = in_order(reference.under(f"{target}/in/selfmap/"))
        expected = reference[f"{target}/{case['tokens']}/out"][case["index"]]
        mask = our_mask(reference, case, crossmaps, selfmaps, reference.meta["targets"][target])
        assert (mask > 0).sum() == (expected > 0).sum(), case
        worst[case["selfmaps"]] = max(worst[case["selfmaps"]], max_difference(mask, expected))
    assert worst[False] <= tolerance["without_selfmaps"]
    assert worst[True] <= tolerance["with_selfmaps"]
    assert len(reference.meta["cases"]) > 0
