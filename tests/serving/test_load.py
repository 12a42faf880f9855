"""Many clients at once: each gets an image or a 429, none hangs; memory stays where it is."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.slow
def test_a_crowd_gets_images_or_429s_and_memory_stays_flat(tiny_model):
    spec = importlib.util.spec_from_file_location("serving_load", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = script.measure(str(tiny_model), clients=60, requests=80, every=20)
    assert set(figures["burst"]) <= {"image", "429"}
    assert sum(figures["burst"].values()) == 60
    assert figures["burst"]["image"] >= script.QUEUE
    assert figures["outcomes"] == {"image": 80}
    first, *_, last = [mebibytes for _, mebibytes in figures["memory"]]
    assert last - first < 30, figures["memory"]
