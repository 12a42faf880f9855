"""Drawn cut-outs, of which the trainings' worlds are made."""

import pytest
from PIL import Image, ImageDraw

from realcustom.data.vocabulary import DEFAULT_WORDS


@pytest.fixture(scope="session")
def cutouts(tmp_path_factory):
    """One drawn cut-out for each default word."""
    root = tmp_path_factory.mktemp("cutouts")
    for number, word in enumerate(DEFAULT_WORDS):
        (root / word).mkdir()
        picture = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(picture).ellipse((4, 4 + number, 60, 60), fill=(10 * number, 250 - 10 * number, 90, 255))
        picture.save(root / word / "one.png")
    return root
