"""Requests check themselves, and travel as JSON."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realcustom.types import MAX_SEED, Request, Subject


def test_importing_the_package_and_its_command_line_loads_no_torch():
    code = "import sys, realcustom, realcustom.cli, realcustom.types; print({'torch', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_every_public_name_can_be_imported():
    import realcustom

    for name in realcustom.__all__:
        assert getattr(realcustom, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = realcustom.nothing


@pytest.mark.parametrize("images", ["rex.png", ["rex.png"], ("rex.png",)])
def test_a_subject_is_made_from_an_image_or_several(images):
    assert Subject.from_any(images).images == ("rex.png",)
    assert Request(prompt="a dog", subjects={"dog": images}).subjects["dog"] == Subject("rex.png")


def test_a_request_survives_json():
    request = Request(
        prompt="a dog and a cat",
        subjects={"dog": Subject(("a.png", "b.png"), strength=0.5, region=(0, 0, 0.5, 1)), "cat": "tom.png"},
        negative_prompt="blurry",
        height=64,
        seed=7,
        num_images=3,
        mask_scope=0.3,
    )
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@given(
    st.builds(
        Request,
        prompt=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50).filter(
            str.strip
        ),
        seed=st.integers(0, MAX_SEED),
        num_images=st.integers(1, 64),
        steps=st.none() | st.integers(1, 1000),
        guidance_scale=st.none() | st.floats(0, 100),
        mask_scope=st.none() | st.floats(0.01, 1),
    )
)
def test_any_request_survives_json(request):
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_one_image_of_a_request_is_a_request_with_its_seed():
    request = Request(prompt="a dog", seed=MAX_SEED, num_images=2)
    assert [request.image_request(index).seed for index in range(2)] == [MAX_SEED, 0]
    assert request.image_request(1).num_images == 1
    with pytest.raises(IndexError):
        request.image_request(2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": 3}, "must be text"),
        ({"prompt": "a" * 2001}, "2001 characters"),
        ({"prompt": "a\0b"}, "null character"),
        ({"prompt": "\ud800"}, "not valid text"),
        ({"steps": 0}, "number of steps must be a whole number from 1 to 1000, not 0"),
        ({"steps": 2.5}, "number of steps"),
        ({"steps": math.inf}, "number of steps"),
        ({"steps": np.True_}, "number of steps"),
        ({"seed": None}, "seed"),
        ({"guidance_scale": 10**400}, "guidance scale"),
        ({"steps": True}, "number of steps"),
        ({"num_images": 65}, "number of images"),
        ({"seed": -2}, "seed must be a whole number from -1 to 4294967295, not -2"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"height": -64}, "height"),
        ({"width": 10**9}, "width"),
        ({"guidance_scale": math.nan}, "guidance scale must be a number from 0 to 100, not nan"),
        ({"image_guidance_scale": math.inf}, "image guidance scale"),
        ({"guidance_scale": "3"}, "guidance scale"),
        ({"mask_scope": 0.0}, "mask scope"),
        ({"mask_scope": 1.5}, "mask scope"),
        ({"subjects": ["dog"]}, "word -> image"),
        ({"subjects": {"": "x.png"}}, "word of a subject is empty"),
        ({"subjects": {"dog": []}}, "at least one reference image"),
        ({"subjects": {"dog": {"images": "x.png", "power": 2}}}, "'power' is no field of a subject"),
        ({"subjects": {str(number): "x.png" for number in range(5)}}, "4 is the most"),
        ({"subjects": {"dog": {"images": "x.png", "strength": math.nan}}}, "strength of a subject"),
        ({"subjects": {"dog": {"images": "x.png", "region": [0, 0, 1]}}}, "box of four numbers"),
        ({"subjects": {"dog": {"images": "x.png", "region": [0.5, 0, 0.5, 1]}}}, "is empty"),
        ({"subjects": {"dog": {"images": "x.png", "region": [0, 0, 2, 1]}}}, "side of the region of a subject"),
        ({"colour": "red"}, "'colour' is no field of a request"),
    ],
)
def test_what_a_request_refuses(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Request.from_dict({"prompt": "a dog", **fields})


@pytest.mark.parametrize("convert", [float, np.int64, np.float32, np.array])
def test_whole_numbers_of_other_types_are_plain_ints(convert):
    request = Request(prompt="a dog", height=convert(64), seed=convert(7), num_images=convert(2), steps=convert(3))
    assert request == Request(prompt="a dog", height=64, seed=7, num_images=2, steps=3)
    assert {type(number) for number in (request.height, request.seed, request.num_images, request.steps)} == {int}


def test_numbers_of_numpy_travel_as_json():
    subject = Subject(("a.png", "b.png"), strength=np.float64(0.5), weights=np.array([0.5, 1.0]))
    request = Request(prompt="a dog", guidance_scale=np.float64(2.5), mask_scope=np.array(0.25))
    assert json.loads(json.dumps(request.to_dict()))["guidance_scale"] == 2.5
    assert (subject.strength, subject.weights, request.mask_scope) == (0.5, (0.5, 1.0), 0.25)


def test_seed_minus_one_is_drawn_once_and_kept():
    requests = [Request(prompt="a dog", seed=-1) for _ in range(4)]
    seeds = [request.seed for request in requests]
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert len(set(seeds)) > 1
    assert [Request.from_dict(request.to_dict()).seed for request in requests] == seeds
    assert [replace(request, steps=2).seed for request in requests] == seeds


def test_an_image_in_memory_has_no_json_form(reference_image):
    with pytest.raises(ValueError, match="no JSON form"):
        Request(prompt="a dog", subjects={"dog": reference_image}).to_dict()


def test_subjects_of_arrays_are_compared_by_what_they_hold():
    picture, region = np.zeros((4, 4, 3), np.uint8), np.ones((2, 2))
    assert Subject((picture,), region=region) == Subject((picture.copy(),), region=region.copy())
    assert Subject((picture,)) != Subject((picture + 1,))
    assert Subject((picture,)) != Subject((np.zeros((5, 4, 3), np.uint8),))
    assert Subject((picture,), region=region) != Subject((picture,))
    assert Subject(("a.png",), strength=0.5) == Subject("a.png", strength=0.5)
    assert Subject(("a.png",)) != "a.png"


def test_pictures_of_a_request_may_be_arrays():
    def request(level):
        mask, photo = np.zeros((4, 4)), np.full((8, 8, 3), level, dtype=np.uint8)
        mask[1:3, 1:3] = 1
        return Request(prompt="a dog", image=photo, hole=mask, feather=1, controls=[photo])

    assert request(3) == request(3)
    assert request(3) != request(4)
    assert request(3) != replace(request(3), hole=(0.0, 0.0, 0.5, 0.5))
    assert request(3) != replace(request(3), controls=())
