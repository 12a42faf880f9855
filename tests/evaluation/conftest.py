"""A small sticker world on cut-outs drawn here, and judges with random weights."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

WORDS = ("dog", "cat", "robot")
CAPTIONS = tuple(
    f"{text} {place}"
    for text in ("a red dog wearing a hat and a cat next to a robot", "a blue robot wearing a scarf", "a green cat")
    for place in ("on the beach", "in the forest", "in space", "in the snow, watercolor")
)


@pytest.fixture(scope="session")
def cutouts(tmp_path_factory):
    """Two cut-outs per word."""
    root = tmp_path_factory.mktemp("subjects")
    for number, word in enumerate(WORDS):
        (root / word).mkdir()
        for style, colour in (("one", (200, 120, 60)), ("two", (90, 140, 210))):
            picture = Image.new("RGBA", (96, 80 + 20 * number))
            draw = ImageDraw.Draw(picture)
            draw.ellipse((4, 6, 90, 76 + 20 * number), fill=(*colour, 255))
            draw.ellipse((30, 20, 38, 28), fill=(10, 10, 10, 255))
            draw.rectangle((40, 50, 70, 62), fill=(240, 220, 120, 255))
            picture.save(root / word / f"{style}.png")
    return root


@pytest.fixture(scope="session")
def world(cutouts):
    from realcustom.data.world import StickerWorld, WorldSettings

    settings = WorldSettings(
        words=WORDS, scenes=("beach", "forest", "space"), plates=1, split="held-out", seed=5, accessory=0.4, style=0.2
    )
    return StickerWorld(cutouts, settings)


@pytest.fixture(scope="session")
def judge():
    """Random weights of a few thousand parameters."""
    import torch

    from realcustom.evaluation.judge import Judge
    from realcustom.evaluation.judge_network import StickerJudge

    torch.manual_seed(0)
    return Judge(StickerJudge(widths=(8, 8, 8, 16), name_widths=(8, 8, 8, 16), crop_widths=(8, 8, 16), identity_dim=16))


@pytest.fixture(scope="session")
def sticker_model(world, tmp_path_factory):
    """A folder with a saved tiny pipeline whose tokenizer knows the world's words."""
    from conftest import build_components

    from realcustom import RealCustomPipeline
    from realcustom.miniature.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "stickers"
    RealCustomPipeline(**build_components(train_tokenizer(CAPTIONS))).save_pretrained(folder)
    return folder
