"""Requests that start from a picture: what stays, how many steps run, in which size, and that it is made again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture
from diffusers import ControlNetModel
from PIL import Image

from realcustom import Engine, Request, Subject
from realcustom.engine.requests import request_from_record
from realcustom.pictures.holes import hole_mask

PROMPT = "a dog on the beach"
BOX = (0.25, 0.2, 0.75, 0.9)
CORNERS = ((0.1, 0.1), (0.9, 0.2), (0.5, 0.9))


def paint() -> Image.Image:
    """A hole painted on a transparent ground, of another size than the picture."""
    mask = Image.new("RGBA", (30, 20))
    mask.paste((200, 10, 10, 255), (5, 5, 20, 15))
    return mask


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    engine = Engine.load(str(tiny_model), device="cpu")
    torch.manual_seed(4)
    network = ControlNetModel.from_unet(engine.pipeline.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    engine.controls["outline"] = network.eval()
    return engine


@pytest.fixture
def request_of(reference_image):
    shared = {"prompt": PROMPT, "steps": 4, "seed": 3, "image": picture(7, 64)}
    return lambda **fields: Request(**{**shared, "subjects": {"dog": reference_image}, **fields})


def arrays(result) -> list[np.ndarray]:
    return [np.asarray(image) for image in result.images]


@pytest.mark.parametrize("subjects", [True, False])
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize("hole", [BOX, CORNERS, paint()], ids=["box", "polygon", "mask"])
def test_outside_the_hole_every_pixel_stays(engine, request_of, hole, feather, padding, subjects):
    photo = picture(7, 90)  # drawn smaller than it is
    request = request_of(image=photo, hole=hole, feather=feather, padding=padding)
    request = request if subjects else replace(request, subjects={})
    (made,) = arrays(engine.run(request))
    inside = hole_mask(hole, photo.size)
    assert made.shape == (90, 90, 3)
    np.testing.assert_array_equal(made[~inside], np.asarray(photo)[~inside])
    assert (made[inside] != np.asarray(photo)[inside]).mean() > 0.5


def test_images_of_one_request_are_those_of_their_seeds(engine, request_of):
    request = request_of(hole=BOX, num_images=3, feather=2, controls=[{"image": picture(2, 64), "scale": 0.7}])
    together = arrays(Engine(engine.pipeline, batch_size=3, controls=engine.controls).run(request))
    alone = arrays(engine.run(request))
    single = arrays(engine.run(replace(request, seed=4, num_images=1)))
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    np.testing.assert_array_equal(single[0], alone[1])
    assert not np.array_equal(alone[0], alone[1])


def test_requests_with_pictures_of_their_own_are_made_side_by_side(engine, request_of):
    requests = [
        request_of(hole=BOX),
        request_of(image=picture(9, 64), denoising=0.5),
        request_of(image=None, controls=[picture(2, 64)]),
        request_of(image=None),
    ]
    together = Engine(engine.pipeline, batch_size=4, controls=engine.controls).run_many(requests)
    for request, result in zip(requests, together, strict=True):
        np.testing.assert_array_equal(arrays(result)[0], arrays(engine.run(request))[0])


@pytest.mark.parametrize(("denoising", "steps"), [(0.5, 5), (1.0, 10), (0.19, 1), (None, 8)])
def test_the_share_says_how_many_steps_run(engine, request_of, denoising, steps):
    told = []
    result = engine.run(request_of(steps=10, num_images=2, denoising=denoising), progress=told.append)
    assert [now.step for now in told] == list(range(1, 2 * steps + 1))
    assert {now.steps for now in told} == {2 * steps}
    assert len(result.masks["dog"]) == steps
    assert result.request.denoising == (0.8 if denoising is None else denoising)


@pytest.mark.parametrize(
    ("fields", "drawn", "made"),
    [
        ({"image": picture(1, 64)}, (64, 64), (64, 64)),
        ({"image": picture(1, 200)}, (64, 64), (64, 64)),
        ({"image": picture(1, 40).resize((80, 40))}, (80, 40), (80, 40)),
        ({"image": picture(1, 200).resize((200, 100)), "hole": BOX}, (88, 48), (200, 100)),
        ({"image": picture(1, 200).resize((200, 100)), "hole": BOX, "padding": 4}, (64, 64), (200, 100)),
        ({"image": picture(1, 200), "width": 96, "height": 64}, (96, 64), (96, 64)),
    ],
)
def test_sizes_follow_the_stated_rule(engine, request_of, fields, drawn, made):
    result = engine.run(request_of(steps=2, **fields))
    assert (result.request.width, result.request.height) == drawn
    assert result.images[0].size == made


def test_the_subject_stands_in_the_hole_unless_it_has_a_region(engine, request_of, reference_image):
    masks = engine.run(request_of(hole=(0.0, 0.0, 0.5, 1.0))).masks["dog"]
    half = masks.shape[-1] // 2
    assert masks[..., :half].max() > 0
    assert masks[..., half:].max() == 0
    elsewhere = {"dog": Subject(reference_image, region=(0.5, 0.0, 1.0, 1.0))}
    masks = engine.run(request_of(hole=(0.0, 0.0, 1.0, 0.9), subjects=elsewhere)).masks["dog"]
    assert masks[..., :half].max() == 0
    assert masks[..., half:].max() > 0


def test_an_image_is_made_again_from_its_settings(engine, request_of, tmp_path, reference_file):
    pictures = {"photo": picture(7, 64), "hole": paint(), "outline": picture(2, 64)}
    paths = {name: tmp_path / f"{name}.png" for name in pictures}
    for name, image in pictures.items():
        image.save(paths[name])
    controls = [{"image": str(paths["outline"]), "name": "outline", "scale": 0.6, "end": 0.8}]
    fields = {"image": str(paths["photo"]), "hole": str(paths["hole"]), "controls": controls}
    request = request_of(subjects={"dog": str(reference_file)}, denoising=0.9, feather=2, padding=3, **fields)
    first = engine.run(replace(request, num_images=2))
    record = first.metadata[1]["request"]
    for entry in (record["image"], record["hole"], record["controls"][0]["image"]):
        assert len(entry["sha256"]) == 64
    np.testing.assert_array_equal(arrays(engine.run(request_from_record(record)))[0], arrays(first)[1])
    paths["photo"].unlink()
    with pytest.raises(ValueError, match="The start picture is missing"):
        request_from_record(record)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"denoising": 0.1}, "leaves none"),
        ({"hole": (0.0, 0.0, 1.0, 1.0)}, "whole picture"),
        ({"hole": (0.5, 0.5, 0.501, 0.501)}, "smaller than a pixel"),
        ({"controls": [{"image": picture(2), "name": "depth"}]}, 'no ControlNet "depth"'),
    ],
)
def test_what_cannot_be_done_is_said_before_a_step_is_made(engine, request_of, fields, sentence):
    told = []
    with pytest.raises(ValueError, match=sentence):
        engine.run(request_of(**fields), progress=told.append)
    assert not told


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"denoising": 0}, "above 0"),
        ({"denoising": 1.2}, "from 0 to 1"),
        ({"image": None, "hole": BOX}, "hole needs image"),
        ({"feather": 3}, "feather needs hole"),
        ({"hole": (0.5, 0.2, 0.5, 0.9)}, "is empty"),
        ({"hole": ((0, 0), (1, 1))}, "corners"),
        ({"controls": [{"image": "a.png", "start": 0.8, "end": 0.2}]}, "end after its start"),
    ],
)
def test_a_request_checks_its_own_fields(request_of, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        request_of(**fields)


def test_the_miniatures_controlnet_is_loaded_by_its_name(tiny_model):
    engine = Engine.load("miniature", controlnet=["outline=miniature-outline"], device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in engine.controls["outline"].parameters()} == {torch.bfloat16}
    assert engine.source["controlnet"] == ["outline=miniature-outline"]
    with pytest.raises(ValueError, match="another family"):
        Engine.load(str(tiny_model), controlnet="miniature-outline", device="cpu")
