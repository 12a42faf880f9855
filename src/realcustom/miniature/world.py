"""The part of the sticker world that the miniature's base and adapter have in common."""

from __future__ import annotations

from dataclasses import replace

from realcustom.data.world import WorldSettings

# Poses and sizes that vary less than the world's defaults are learned from fewer samples, and with half of all animals
# mirrored a small model draws heads at both ends; who of two is named first stands on the left, else both places would
# be a mixture of both.
NARROW = WorldSettings(
    no_scene=0.1,
    turn=16.0,
    mirrored=0.05,
    ordered=0.95,
    area=(0.2, 0.5),
    style=0.1,
    two_subjects=0.3,
)

# What the base learns from. Patterns are rarer than by default; what is small, accessories and companions, is shown
# more often. Some colour words contradict the reference, so that the adapter learns to obey them; the more do, the less
# it trusts any reference.
BASE = replace(NARROW, colour_word=0.4, repaint=0.4, patterned=0.2, accessory=0.5, companion=0.15)
