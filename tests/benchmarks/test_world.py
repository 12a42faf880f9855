"""The sticker world's benchmark counts pictures as pictures."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_reference_counts_as_a_picture(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import world

    class Record:
        references = (1, 2)

    class World:
        def record(self, index):
            sum(range(10_000))
            return Record()

    records, pictures = world.rates(World(), range(50))
    assert records > 0
    assert abs(pictures / records - 3) < 1e-9
