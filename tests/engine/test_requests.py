"""References, their records, and files that are whole or absent."""

import json

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.engine.requests import open_reference, open_request, read_mask, request_from_record, request_record
from realcustom.pictures.overlays import mask_image, overlay
from realcustom.pictures.png import read_metadata, write_png
from realcustom.types import Request, Subject


def test_equal_pictures_have_equal_hashes_whatever_the_file(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.bmp")
    picture(1).save(tmp_path / "c.png")
    hashes = [open_reference(tmp_path / name).sha256 for name in ("a.png", "b.bmp", "c.png")]
    assert hashes[0] == hashes[1] == open_reference(picture(0)).sha256
    assert hashes[0] != hashes[2]


def record_of(tmp_path) -> dict:
    picture(0).save(tmp_path / "rex.png")
    picture(1).save(tmp_path / "region.png")
    subject = Subject(tmp_path / "rex.png", strength=0.5, region=tmp_path / "region.png")
    request = open_request(Request(prompt="a dog", subjects={"dog": subject}))
    return json.loads(json.dumps(request_record(request)))


def test_a_request_is_found_again_from_its_record(tmp_path):
    record = record_of(tmp_path)
    again = request_from_record(record)
    assert request_record(again) == record
    assert again.subjects["dog"].strength == 0.5
    assert np.array_equal(np.asarray(again.subjects["dog"].region.image), np.asarray(read_mask(picture(1))))


def test_a_moved_reference_is_found_beside_the_image(tmp_path):
    record = record_of(tmp_path)
    (tmp_path / "moved").mkdir()
    for name in ("rex.png", "region.png"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert request_from_record(record, beside=tmp_path / "moved").subjects["dog"].images[0].image.size == (48, 48)
    with pytest.raises(ValueError, match='reference of "dog" is missing'):
        request_from_record(record)


def test_a_changed_reference_is_refused(tmp_path):
    record = record_of(tmp_path)
    picture(3).save(tmp_path / "rex.png")
    with pytest.raises(ValueError, match='reference of "dog" has changed'):
        request_from_record(record)


def test_a_reference_in_memory_cannot_be_found_again():
    record = request_record(open_request(Request(prompt="a dog", subjects={"dog": picture(0)})))
    with pytest.raises(ValueError, match="given in memory"):
        request_from_record(record)


@pytest.mark.parametrize(
    "damaged", [[], {"subjects": []}, {"subjects": {"dog": 3}}, {"subjects": {"dog": {"images": 3}}}]
)
def test_damaged_records_are_refused(damaged):
    with pytest.raises(ValueError, match="damaged"):
        request_from_record(damaged)


def test_settings_survive_the_file(tmp_path):
    settings = {"request": {"prompt": 'a "dog" \u2603 on the beach'}, "model": {"model": "miniature"}}
    write_png(tmp_path / "a.png", picture(0), settings)
    assert read_metadata(tmp_path / "a.png") == settings
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture(0)))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_png(tmp_path / "a.png", picture(0))
    before = (tmp_path / "a.png").read_bytes()

    class Broken:
        def save(self, stream, **options):
            stream.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_png(tmp_path / "a.png", Broken())
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_files_without_settings_are_refused(tmp_path):
    picture(0).save(tmp_path / "plain.png")
    picture(0).save(tmp_path / "photo.jpg")
    write_png(tmp_path / "odd.png", picture(0), {"something": "else"})
    for name, sentence in (
        ("plain.png", "carries no settings"),
        ("photo.jpg", "not a PNG"),
        ("odd.png", "damaged"),
        ("missing.png", "There is no file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_metadata(tmp_path / name)


def test_masks_as_pictures():
    mask = np.zeros((4, 8), dtype=np.float32)
    mask[:, 4:] = 1
    grey = np.asarray(mask_image(mask, (64, 32)))
    assert grey.shape == (32, 64)
    assert (grey[:, :24] == 0).all()
    assert (grey[:, 40:] == 255).all()
    laid = np.asarray(overlay(Image.new("RGB", (64, 32), (100, 100, 100)), mask))
    assert tuple(laid[0, 0]) == (50, 50, 50)
    assert tuple(laid[0, 63]) == (162, 86, 112)
