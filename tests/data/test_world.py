"""The sticker world on a handful of cut-outs drawn here, so that the tests need no downloaded files."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from realcustom.data import ALL_WORDS, DEFAULT_WORDS, StickerWorld, WorldSettings, caption_corpus
from realcustom.data.colour import lab_to_rgb, rgb_to_lab
from realcustom.data.identity import Identity, draw_identity, paint
from realcustom.data.poses import Pose, between
from realcustom.data.scenes import SCENES, Backgrounds
from realcustom.data.styles import STYLE_PAINTERS
from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, SCENE_PHRASES, noun_phrase

WORDS = ("dog", "apple", "socks")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two cut-outs per word: a body of one colour with black eyes and a second colour."""
    root = tmp_path_factory.mktemp("cutouts")
    for word in WORDS:
        (root / word).mkdir()
        for style, colour in (("one", (200, 120, 60)), ("two", (90, 140, 210))):
            picture = Image.new("RGBA", (96, 80))
            draw = ImageDraw.Draw(picture)
            draw.ellipse((4, 6, 90, 76), fill=(*colour, 255))
            draw.ellipse((30, 20, 38, 28), fill=(10, 10, 10, 255))
            draw.rectangle((40, 50, 70, 62), fill=(240, 220, 120, 255))
            picture.save(root / word / f"{style}.png")
    return root


def world(folder, **settings):
    return StickerWorld(
        folder, WorldSettings(**{"words": WORDS, "size": 64, "reference_size": 48, "plates": 2, **settings})
    )


def same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.masks, b.masks)
        and a.caption == b.caption
        and a.attributes == b.attributes
        and all(np.array_equal(x, y) for x, y in zip(a.references, b.references, strict=True))
    )


def test_a_record_depends_on_seed_and_index_only(folder):
    first, second = world(folder), world(folder)
    expected = [first.record(index) for index in range(8)]
    for index in reversed(range(8)):
        assert same(second.record(index), expected[index])
    assert not same(world(folder, seed=1).record(0), expected[0])


def test_shapes_words_and_captions(folder):
    made = world(folder, two_subjects=0.5, accessory=0.5, colour_word=0.5, style=0.3)
    for index in range(40):
        record = made.record(index)
        count = len(record.words)
        assert record.image.shape == (64, 64, 3)
        assert record.image.dtype == np.uint8
        assert record.masks.shape == (count, 64, 64)
        assert record.masks.dtype == bool
        assert [reference.shape for reference in record.references] == [(48, 48, 3)] * count
        for word, colour in zip(record.words, record.attributes["colours"], strict=True):
            assert noun_phrase(word, colour) in record.caption
        assert record.attributes["scene_phrase"] in record.caption
        if record.attributes["accessory"]:
            assert ACCESSORY_PHRASES[record.attributes["accessory"]] in record.caption


def test_split_is_by_identity_and_disjoint(folder):
    def twins(split):
        made = world(folder, split=split)
        names = [name for index in range(150) for name in made.record(index).attributes["identities"]]
        return {name.rsplit(":", 1)[0] for name in names}

    train, held_out = twins("train"), twins("held-out")
    assert len(held_out) > 5
    assert not train & held_out
    assert not any(name.endswith(":natural:plain") for name in held_out)


def test_masks_are_the_visible_subject(folder):
    """Where the mask is, the picture differs from its own background; elsewhere it is the background."""
    made = world(folder, two_subjects=0.0, companion=0.0, accessory=0.0, style=0.0)
    for index in range(12):
        record = made.record(index)
        rng = random.Random(f"0-train-{index}")
        plan = made.plan(rng)
        background = np.asarray(made._scene(plan, rng)[0]).astype(int)
        changed = np.abs(record.image.astype(int) - background).max(axis=2) > 0
        mask = record.masks[0]
        assert (changed & ~mask).sum() < 0.35 * mask.sum()
        assert (changed & mask).sum() > 0.9 * mask.sum()
        assert 0.1 < mask.mean() < 0.5


def test_masks_of_two_subjects_do_not_overlap(folder):
    made = world(folder, two_subjects=1.0)
    for index in range(12):
        record = made.record(index)
        assert not (record.masks[0] & record.masks[1]).any()
        assert record.masks.any(axis=(1, 2)).all()


def test_colour_words_are_true(folder):
    """The body's mean colour is nearest to the named one, or within a moderate CIELAB distance of it."""
    made = world(folder, colour_word=1.0, two_subjects=0.0, companion=0.0, accessory=0.0, style=0.0)
    names = tuple(COLOURS)
    shades = rgb_to_lab(np.array([COLOURS[name] for name in names]))
    right = 0
    for index in range(40):
        record = made.record(index)
        lab = rgb_to_lab(record.image[record.masks[0]].astype(float)).mean(axis=0)
        distance = np.linalg.norm(shades - lab, axis=1)
        right += names[int(distance.argmin())] == record.attributes["colours"][0]
    assert right >= 34


def test_difficulty_moves_the_reference_away_from_the_target(folder):
    first = Pose(flip=False, turn=10.0, lean=0.1, area=0.1, x=0.3, y=0.4)
    second = Pose(flip=True, turn=-20.0, lean=-0.1, area=0.4, x=0.6, y=0.5)
    rng = random.Random(0)
    assert between(first, second, 0.0, rng).to_dict() == pytest.approx(first.to_dict())
    assert between(first, second, 1.0, rng).to_dict() == pytest.approx(second.to_dict())
    assert between(first, second, 0.5, rng).area == pytest.approx(0.2)
    made = world(folder)
    assert same(made.record(3), made.record(3, difficulty=1.0))
    assert not np.array_equal(made.record(3).references[0], made.record(3, difficulty=0.0).references[0])
    assert np.array_equal(made.record(3).image, made.record(3, difficulty=0.0).image)


@pytest.mark.parametrize("company", [{"two_subjects": 1.0}, {"two_subjects": 0.0, "companion": 1.0}])
def test_who_is_named_first_stands_on_the_left_as_often_as_asked(folder, company):
    def lefts(ordered):
        made = world(folder, ordered=ordered, **company)
        plans = [made.plan(random.Random(seed)) for seed in range(60)]
        seconds = [plan.companion[1] if plan.companion else plan.poses[1] for plan in plans]
        return np.mean([plan.poses[0].x < second.x for plan, second in zip(plans, seconds, strict=True)])

    assert lefts(1.0) == 1
    assert 0.3 < lefts(0.0) < 0.7


def test_mirrored_poses_are_as_frequent_as_asked(folder):
    def flips(mirrored):
        made = world(folder, mirrored=mirrored, two_subjects=0.5)
        return [pose["flip"] for index in range(40) for pose in made.record(index).attributes["poses"]]

    assert not any(flips(0.0))
    assert all(flips(1.0))
    assert 0.3 < np.mean(flips(0.5)) < 0.7


def test_reconstruction_uses_the_picture_itself(folder):
    record = world(folder, two_subjects=1.0).record(0, reconstruct=True)
    assert all(np.array_equal(reference, record.image) for reference in record.references)
    assert record.attributes["reconstruction"]


def test_repaint_changes_only_the_reference_colour(folder):
    made = world(folder, repaint=1.0, colour_word=1.0, style=0.0)
    record = made.record(0)
    for target, reference, colour in zip(
        record.attributes["identities"],
        record.attributes["reference_identities"],
        record.attributes["colours"],
        strict=True,
    ):
        assert target.split(":")[0] == reference.split(":")[0]
        assert target.split(":")[1] == colour != reference.split(":")[1]


def test_an_identity_keeps_its_looks_and_differs_from_others(folder):
    cutouts = world(folder).cutouts
    cutout = cutouts.load("dog", "dog/one")
    red = Identity(word="dog", cutout="dog/one", colour="red", pattern="stripes", number=3)
    assert np.array_equal(paint(cutout, red), paint(cutout, red))
    other = draw_identity(random.Random(1), "dog", cutouts.names("dog"), split="train", colours=("blue",), natural=0.0)
    assert np.abs(paint(cutout, red).astype(int) - paint(cutout, other).astype(int)).mean() > 10


def test_unnamed_colours_are_any_and_split_like_the_named_one_beside_them(folder):
    names = world(folder).cutouts.names("dog")
    rng = random.Random(2)
    drawn = [draw_identity(rng, "dog", names, split="held-out", natural=0.0, unnamed=1.0) for _ in range(40)]
    assert len({identity.colour for identity in drawn}) == 40
    assert all(identity.split == "held-out" for identity in drawn)
    assert all(identity.painted(identity.shade).split == "held-out" for identity in drawn)
    assert Identity(word="dog", cutout="dog/one", colour="#d42a2c", pattern="solid", number=0).shade == "red"
    cutout = world(folder).cutouts.load("dog", "dog/one")
    vivid, dull = (
        paint(cutout, Identity(word="dog", cutout="dog/one", colour=colour, pattern="solid", number=0))
        for colour in ("#00ff80", "#605850")
    )
    assert np.abs(vivid.astype(int) - dull).mean() > 10


def test_scenes_and_styles_have_the_named_size():
    backgrounds = Backgrounds(32, 0, plates=1)
    assert set(SCENES) == set(SCENE_PHRASES)
    for scene in SCENES:
        view = backgrounds.background(scene, random.Random(0))
        assert view.size == (32, 32)
        assert np.asarray(view).std() > 4
    for painter in STYLE_PAINTERS.values():
        assert painter(view).size == (32, 32)


def test_lab_round_trip():
    colours = np.random.default_rng(0).integers(0, 256, (100, 3)).astype(float)
    assert np.abs(lab_to_rgb(rgb_to_lab(colours)) - colours).max() < 0.1


def test_corpus_covers_the_whole_vocabulary():
    text = "\n".join(caption_corpus(2000))
    assert len(ALL_WORDS) == 180
    assert set(DEFAULT_WORDS) <= set(ALL_WORDS)
    for part in (*ALL_WORDS, *SCENE_PHRASES.values(), *ACCESSORY_PHRASES.values(), *COLOURS, *STYLE_PAINTERS):
        assert part in text
    assert list(caption_corpus(5)) == text.split("\n")[:5]


def test_articles():
    assert noun_phrase("umbrella") == "an umbrella"
    assert noun_phrase("unicorn") == "a unicorn"
    assert noun_phrase("socks", "red") == "red socks"
    assert noun_phrase("apple", "green") == "a green apple"
    assert noun_phrase("car", "orange") == "an orange car"


def test_mistakes_are_told(folder, tmp_path):
    with pytest.raises(ValueError, match="no cut-outs of 'zeppelin'"):
        world(folder, words=("zeppelin",))
    with pytest.raises(ValueError, match="split"):
        WorldSettings(split="test")
    with pytest.raises(ValueError, match="Unknown scenes"):
        WorldSettings(scenes=("moonbase",))
    with pytest.raises(ValueError, match="photographs"):
        world(folder, photograph=0.5)
    with pytest.raises(ValueError, match="holds no cut-outs"):
        StickerWorld(tmp_path)
