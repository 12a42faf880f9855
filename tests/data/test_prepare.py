"""Preparation of real data on pictures made here: sources, filters, masks, resume, Ray."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from realcustom.data import prepare as prepare_module
from realcustom.data.prepare import PrepareSettings, prepare
from realcustom.data.shards import raw_samples, record_of
from realcustom.data.sources import coco, image_folder, jsonl_captions, multi_view, rows, shards, synthesised

pytest.importorskip("webdataset")
SMALL = PrepareSettings(size=32, per_shard=2, least_side=24)


def picture(seed, size=(48, 40)):
    """Blocks of random colour: different pictures have different hashes."""
    values = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def records(report):
    return [record_of(sample) for path in report.shards for sample in raw_samples(str(path))]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for number, (name, caption) in enumerate(
        [
            ("a", "a dog on the grass"),
            ("b", "a cat in a box"),
            ("c", "nothing here"),
            ("d", "a red car"),
            ("e", "a bird"),
        ]
    ):
        root.mkdir(exist_ok=True)
        picture(number).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(caption)
    return root


def test_folder_with_captions(folder, tmp_path):
    (folder / "small.png").write_bytes(encoded(picture(9, (12, 12))))
    (folder / "small.txt").write_text("a small dog")
    (folder / "twin.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "twin.txt").write_text("a dog again")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a broken dog")
    Image.new("RGB", (40, 40), "red").save(folder / "plain.png")
    (folder / "plain.txt").write_text("a red dog")
    report = prepare(image_folder(folder), tmp_path / "out", SMALL)
    assert report.kept == 4
    assert report.dropped == {
        "no target word": 1,
        "picture too small": 1,
        "picture seen before": 1,
        "unreadable picture": 1,
        "picture of one colour": 1,
    }
    made = records(report)
    assert [record.words for record in made] == [("dog",), ("cat", "box"), ("car",), ("bird",)]
    for record in made:
        assert record.image.shape == (32, 32, 3)
        assert all(np.array_equal(reference, record.image) for reference in record.references)
        assert record.attributes["reconstruction"]
        assert not record.masks.any()
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == {
        "real-000-000000.tar": 2,
        "real-000-000001.tar": 2,
    }


def test_killed_and_resumed_equals_uninterrupted(folder, tmp_path, monkeypatch):
    whole = prepare(image_folder(folder), tmp_path / "whole", SMALL)
    calls = {"count": 0}
    original = prepare_module.sample_from

    def dies(example, settings):
        calls["count"] += 1
        if calls["count"] == 4:
            raise KeyboardInterrupt
        return original(example, settings)

    monkeypatch.setattr(prepare_module, "sample_from", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(image_folder(folder), tmp_path / "cut", SMALL)
    assert sorted(path.suffix for path in (tmp_path / "cut").iterdir()) == [".json", ".tar"]
    monkeypatch.undo()
    resumed = prepare(image_folder(folder), tmp_path / "cut", SMALL)
    assert [path.read_bytes() for path in resumed.shards] == [path.read_bytes() for path in whole.shards]
    assert (resumed.consumed, resumed.kept, resumed.dropped) == (whole.consumed, whole.kept, whole.dropped)
    again = prepare(image_folder(folder), tmp_path / "cut", SMALL)
    assert again.kept == whole.kept


def test_parts_share_the_work(folder, tmp_path):
    reports = [
        prepare(image_folder(folder), tmp_path, PrepareSettings(size=32, least_side=24, part=part, parts=2))
        for part in range(2)
    ]
    assert sum(report.kept for report in reports) == 4
    assert [report.consumed for report in reports] == [3, 2]


def test_multi_view_pairs(tmp_path):
    views = tmp_path / "images"
    for subject in ("dog2", "vase"):
        (views / subject).mkdir(parents=True)
        for number in range(3):
            picture(10 * len(subject) + number).save(views / subject / f"{number:02d}.png")
    (views / "vase" / "00.txt").write_text("a blue vase on a table")
    pairs = list(multi_view(views, pairs=2))
    assert len(pairs) == 12
    assert {pair.word for pair in pairs} == {"dog", "vase"}
    assert all(pair.image != pair.reference and pair.image.parent == pair.reference.parent for pair in pairs)
    (tmp_path / "subjects.json").write_text(json.dumps({"subjects": [{"subject": "dog2", "class_word": "puppy"}]}))
    assert {pair.word for pair in multi_view(views)} == {"puppy", "vase"}
    made = records(prepare(multi_view(views, pairs=1), tmp_path / "out", SMALL))
    assert [record.caption for record in made][3] == "a blue vase on a table"
    for record in made:
        assert not record.attributes["reconstruction"]
        assert not np.array_equal(record.references[0], record.image)


def test_coco_boxes_and_polygons_become_masks(tmp_path):
    picture(0, (64, 32)).save(tmp_path / "one.png")
    captions = {
        "images": [{"id": 7, "file_name": "one.png"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A bench beside a dog and two cats"}],
    }
    instances = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {
                "image_id": 7,
                "category_id": 1,
                "bbox": [16, 0, 16, 32],
                "segmentation": [[16, 0, 32, 0, 32, 32, 16, 32]],
            },
            {"image_id": 7, "category_id": 2, "bbox": [32, 16, 16, 16]},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    source = coco(tmp_path / "captions.json", tmp_path, tmp_path / "instances.json")
    (record,) = records(prepare(source, tmp_path / "out", SMALL))
    assert record.words == ("dog", "cats")
    assert record.attributes["mask_source"] == "box+segmentation"
    assert record.masks[0][:, :15].all()
    assert not record.masks[0][:, 18:].any()
    assert record.masks[1][17:, 17:31].all()
    assert record.masks[1].mean() == pytest.approx(0.25, abs=0.05)


def test_jsonl_rows_shards_and_synthesis(folder, tmp_path):
    lines = [
        {"image": "a.png", "caption": "a dog", "word": "dog", "reference": "b.png"},
        {"image": "d.png", "text": "a car"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = prepare(jsonl_captions(tmp_path / "captions.jsonl", folder), tmp_path / "out", SMALL)
    assert [record.attributes["reconstruction"] for record in records(report)] == [False, True]

    again = list(shards(str(path) for path in report.shards))
    assert [example.caption for example in again] == ["a dog", "a car"]

    table = [
        {"image": picture(1), "caption": ["a dog", "a hound"]},
        {"image": {"bytes": encoded(picture(2))}, "caption": "a cat"},
    ]
    assert [example.caption for example in rows(table)] == ["a dog", "a cat"]
    assert prepare(rows(table), tmp_path / "rows", SMALL).kept == 2

    made = list(synthesised(lambda prompt, seed: picture(seed, (96, 48)), [("dog", "a brown dog")], ("on the beach",)))
    assert made[0].caption == "a dog on the beach"
    assert made[0].image.size == made[0].reference.size == (48, 48)


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"image": "a.png"}')
    with pytest.raises(ValueError, match=r'Line 1 .* needs "image" and "caption"'):
        list(jsonl_captions(tmp_path / "x.jsonl", tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        list(image_folder(tmp_path / "none"))


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(folder, tmp_path):
    ray = pytest.importorskip("ray")
    from realcustom.data.prepare_ray import prepare_with_ray

    one = records(prepare(image_folder(folder), tmp_path / "one", SMALL))
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        report = prepare_with_ray(image_folder(folder), tmp_path / "ray", SMALL, cpus=0.5)
        again = prepare_with_ray(image_folder(folder), tmp_path / "ray", SMALL, cpus=0.5)
    finally:
        ray.shutdown()
    assert report.kept == again.kept == 4
    many = records(report)
    assert [record.caption for record in many] == [record.caption for record in one]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, many, strict=True))


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
