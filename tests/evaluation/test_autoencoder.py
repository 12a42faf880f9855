"""What an autoencoder keeps: figures that know a perfect one from a blurred one, and a whole run of the command."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image, ImageDraw

from realcustom.cli import main
from realcustom.data.vocabulary import DEFAULT_WORDS
from realcustom.evaluation import autoencoder
from realcustom.evaluation.stickers import samples
from realcustom.training.autoencoder import viewed


class Pooling:
    """Latents are the pictures' means over blocks, and decode to blocks: exact where blocks are of one colour."""

    device = torch.device("cpu")

    class Out:
        def __init__(self, **values):
            self.__dict__.update(values)

    def __init__(self, block):
        self.block = block

    def encode(self, pixels):
        return self.Out(latents=torch.nn.functional.avg_pool2d(pixels, self.block))

    def decode(self, latents):
        return self.Out(sample=latents.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3))


@pytest.fixture(scope="module")
def records(world):
    return autoencoder.plain_records(world, 8)


def test_psnr_is_the_error_in_decibels():
    dark = np.full((2, 4, 4, 3), 100, np.uint8)
    off = dark.copy()
    off[0] += 1
    off[1, :2] += 16
    masks = np.zeros((2, 4, 4), bool)
    masks[:, 2:] = True
    assert autoencoder.psnr(dark, off).tolist() == pytest.approx([20 * math.log10(255), 10 * math.log10(255**2 / 128)])
    inside = autoencoder.psnr(dark, off, masks)
    assert inside[0] == pytest.approx(20 * math.log10(255))
    assert inside[1] == pytest.approx(10 * math.log10(255**2 * 48))  # without error: one level in one value


def test_records_have_no_style(world, records):
    assert len(records) == 8
    assert {record.attributes["style"] for record in records} == {None}
    assert world.settings.style > 0


def test_fidelity_tells_how_much_is_lost(records):
    perfect, coarse = (autoencoder.fidelity(Pooling(block), records) for block in (1, 8))
    psnr, mirrored, scaled, inside = perfect
    assert perfect[psnr].mean == perfect[mirrored].mean == pytest.approx(10 * math.log10(255**2 * 128 * 128 * 3))
    assert perfect[scaled].mean > 50
    assert 10 < coarse[inside].mean < coarse[psnr].mean < 30
    assert coarse[mirrored].mean == pytest.approx(coarse[psnr].mean)
    assert coarse[psnr].count == 8


def test_the_judge_sees_no_change_behind_a_perfect_autoencoder(world, judge):
    made = samples(world, 8)
    rows = autoencoder.behind(Pooling(1), judge, made)
    assert {"own reference nearest of 10, judge", "subject's word recognised"} <= {row.name for row in rows}
    assert all(str(row.composites) == str(row.decoded) for row in rows)
    assert all(row.difference.mean == 0 for row in rows)
    assert autoencoder.behind_table(rows)[0][2] == "behind the autoencoder"


def test_grid_has_originals_above_reconstructions(records):
    shown = autoencoder.shown_grid(Pooling(8), records)
    assert shown.shape == (256, 8 * 128, 3)
    assert np.array_equal(shown[:128, :128], records[0].image)
    assert np.array_equal(shown[128:136, :8], np.broadcast_to(shown[128, 0], (8, 8, 3)))


def test_both_kinds_of_autoencoders_are_found(tmp_path):
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(0, 1),
        num_decoder_blocks=(1, 0), latent_channels=3,
    )  # fmt: skip
    kl = AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    tiny.save_pretrained(tmp_path / "own")
    kl.save_pretrained(tmp_path / "model" / "vae")
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    for name in ("own", "model"):
        vae = autoencoder.load_autoencoder(tmp_path / name)
        targets, decoded = autoencoder.reconstruct(vae, pictures, lambda maps: viewed(maps, 0.5))
        assert targets.shape == decoded.shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match="holds no autoencoder"):
        autoencoder.load_autoencoder(tmp_path)


def test_the_command_writes_figures_and_grid(judge, tmp_path, capsys):
    for number, word in enumerate(DEFAULT_WORDS):
        (tmp_path / "subjects" / word).mkdir(parents=True)
        picture = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(picture).ellipse((4, 4 + number, 60, 60), fill=(10 * number, 250 - 10 * number, 90, 255))
        for style in ("one", "two", "three"):
            picture.save(tmp_path / "subjects" / word / f"{style}.png")
    judge.network.save_pretrained(tmp_path / "judge")
    arguments = {"subjects": tmp_path / "subjects", "count": 2, "limit": 8, "weights": tmp_path / "judge"}
    options = [f"--{name}={value}" for name, value in {**arguments, "out": tmp_path / "out"}.items()]
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", "autoencoder", *options])
    printed = capsys.readouterr().out
    assert leaving.value.code == 0, printed
    assert "PSNR inside the subjects" in printed
    assert "behind the autoencoder" in printed
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["fidelity"]["PSNR, dB"]["count"] == 2
    assert Image.open(tmp_path / "out" / "grid.png").size == (8 * 128, 256)
