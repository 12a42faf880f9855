"""Shards hold exactly what the world made, and writing resumes."""

import numpy as np
import pytest
from PIL import Image

from realcustom.data import StickerWorld, WorldSettings
from realcustom.data.shards import record_of, write_shards
from realcustom.data.sheet import contact_sheet

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("cutouts")
    for number, word in enumerate(("cat", "car")):
        (root / word).mkdir()
        picture = np.zeros((40, 50, 4), dtype=np.uint8)
        picture[5:35, 5:45] = (200 - 90 * number, 120, 60, 255)
        Image.fromarray(picture).save(root / word / "a.png")
    return StickerWorld(
        root, WorldSettings(words=("cat", "car"), size=32, reference_size=32, plates=1, two_subjects=0.5)
    )


def test_round_trip_and_resume(world, tmp_path):
    paths = write_shards(world, range(10, 17), tmp_path, per_shard=3)
    assert [path.name for path in paths] == [f"stickers-{k:06d}.tar" for k in range(3)]
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    assert write_shards(world, range(10, 17), tmp_path, per_shard=3) == paths
    assert [path.read_bytes() for path in paths] == before

    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert [int(sample["__key__"]) for sample in samples] == list(range(10, 17))
    for sample in samples:
        read, made = record_of(sample), world.record(int(sample["__key__"]))
        assert read.caption == made.caption
        assert read.words == made.words
        assert read.attributes == made.attributes
        assert np.array_equal(read.image, made.image)
        assert np.array_equal(read.masks, made.masks)
        assert all(np.array_equal(a, b) for a, b in zip(read.references, made.references, strict=True))


def test_contact_sheet(world):
    sheet = contact_sheet([world.record(index) for index in range(5)], columns=2, side=32)
    assert sheet.size == (2 * 88, 3 * 50)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
