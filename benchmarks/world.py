"""How fast one core composes the sticker world, once its background plates are drawn.

    python benchmarks/world.py SUBJECTS

Prints records and pictures a second of CPU time, first while the plates are still being drawn, then after.
"""

from __future__ import annotations

import argparse
import time

from realcustom.data.world import StickerWorld, WorldSettings


def rates(world: StickerWorld, indices: range) -> tuple[float, float]:
    """Records and pictures (a record's own and its references) a second of CPU time."""
    began = time.process_time()
    pictures = sum(1 + len(world.record(index).references) for index in indices)
    spent = time.process_time() - began
    return len(indices) / spent, pictures / spent


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", help="folder of named cut-outs")
    parser.add_argument("--records", type=int, default=1500, help="to measure")
    parser.add_argument("--before", type=int, default=6000, help="to make first, which draws the plates")
    chosen = parser.parse_args(arguments)
    world = StickerWorld(chosen.subjects, WorldSettings())
    for name, start, count in (("first", 0, chosen.before), ("then", chosen.before, chosen.records)):
        records, pictures = rates(world, range(start, start + count))
        print(f"{name} {count}: {records:.0f} records, {pictures:.0f} pictures of {world.settings.size} px a second")


if __name__ == "__main__":
    main()
