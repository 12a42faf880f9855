"""The part of the sticker world that the miniature's base and adapter have in common."""

from __future__ import annotations

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
    style=0.06,
    two_subjects=0.3,
)
