"""OpenAI's official client against a real server: images, references, words, masks, errors."""

from __future__ import annotations

import base64
import io
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom import Request, Subject
from realcustom.pictures.png import metadata_of
from realcustom.serving.openai_fields import subjects_of
from realcustom.serving.problems import Refusal

from .conftest import data_url, png, until
from .promises import hold, operations
from .servers import Server

openai = pytest.importorskip("openai")
httpx2 = pytest.importorskip("httpx2")

TOKEN = "secret-token"
ASK = {"prompt": "a dog on the beach", "size": "64x64", "extra_body": {"seed": 3, "num_inference_steps": 2}}


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    data = tmp_path_factory.mktemp("openai") / "data"
    server = Server(str(tiny_model), data, "--token", TOKEN, "--batch-size", "4", "--device", "cpu")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    """The client as it is, whose answers are held against the server's document."""
    found = operations(fetch(f"{server.url}/v1/openapi.json").decode())

    def held(response) -> None:
        # Without the body of the request, which a multipart one was asked for only once.
        asked = httpx2.Request(response.request.method, response.request.url)
        plain = httpx2.Response(response.status_code, headers=response.headers, content=response.read(), request=asked)
        plain.elapsed = timedelta()
        hold(found, asked.method, asked.url.path, plain)

    web = openai.DefaultHttpxClient(event_hooks={"response": [held]})
    key = {"base_url": f"{server.url}/v1", "api_key": TOKEN}
    with openai.OpenAI(**key, http_client=web, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(client) -> str:
    (found,) = client.models.list().data
    return found.id


def pixels(entry) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry.b64_json))).convert("RGB"))


def same(data, result) -> bool:
    """Whether images are those of a result; made together they may differ by rounding."""
    pairs = zip(map(pixels, data), map(np.asarray, result.images), strict=True)
    return all(np.abs(one.astype(int) - other.astype(int)).max() <= 1 for one, other in pairs)


def files(*numbers: int) -> list[tuple[str, bytes, str]]:
    return [(f"{number}.png", png(picture(number)), "image/png") for number in numbers]


def fetch(url: str, token: str | None = TOKEN) -> bytes:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read()


def test_the_model_is_listed_and_found(client, model):
    assert model == "tiny", "the name of its folder, not its place"
    found = client.models.retrieve(model)
    assert (found.id, found.object, found.owned_by) == (model, "model", "realcustom")
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("dall-e-3")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_images_of_a_prompt(client, model, engine):
    made = client.images.generate(model=model, n=2, quality="low", user="somebody", **ASK)
    wanted = Request(prompt=ASK["prompt"], num_images=2, seed=3, steps=2, preset="turbo")
    assert same(made.data, engine.run(wanted))
    assert (made.output_format, made.size) == ("png", "64x64")
    settings = metadata_of(base64.b64decode(made.data[1].b64_json), "it")["request"]
    assert (settings["seed"], settings["preset"]) == (4, "turbo")


def test_without_a_seed_every_call_is_another_image(client):
    one, other = (client.images.generate(prompt="a dog", extra_body={"num_inference_steps": 1}) for _ in range(2))
    assert not np.array_equal(pixels(one.data[0]), pixels(other.data[0]))


def test_an_address_is_given_where_it_is_asked_for(client, server):
    made = client.images.generate(response_format="url", **ASK)
    assert made.data[0].b64_json is None
    assert made.data[0].url.startswith(server.url)
    assert metadata_of(fetch(made.data[0].url), "it")["request"]["seed"] == 3
    with pytest.raises(urllib.request.HTTPError, match="401"):
        fetch(made.data[0].url, token=None)


def test_every_field_of_a_request_may_stand_beside_openais(client, engine):
    fields = {"image": data_url(png(picture(4, 64))), "hole": [0.25, 0.25, 0.75, 0.75], "feather": 2, "preset": "fast"}
    more = {"seed": 3.0, "steps": 2, "subjects": {"dog": data_url(png(picture(1)))}, **fields}
    made = client.images.generate(prompt="a dog", n=1, extra_body=more)
    fields |= {"image": picture(4, 64), "subjects": {"dog": picture(1)}}
    assert same(made.data, engine.run(Request(prompt="a dog", seed=3, steps=2, **fields)))


def test_references_with_their_words(client, engine):
    more = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 4.5, "words": ["robot", "dog#2", "robot"]}
    prompt = "a dog, a robot and a dog"
    made = client.images.edit(image=files(1, 2, 3), prompt=prompt, n=2, size="auto", extra_body=more)
    subjects = {"robot": [picture(1), picture(3)], "dog#2": picture(2)}
    wanted = Request(prompt=prompt, subjects=subjects, seed=5, steps=2, guidance_scale=4.5, num_images=2)
    assert same(made.data, engine.run(wanted))
    settings = metadata_of(base64.b64decode(made.data[0].b64_json), "it")["request"]
    assert list(settings["subjects"]) == ["robot", "dog#2"]


@pytest.mark.parametrize("numbers", [(1,), (1, 2)], ids=["one image", "two images"])
def test_the_word_is_found_where_the_prompt_names_one_thing(client, engine, numbers):
    images = files(*numbers)
    made = client.images.edit(image=images[0] if len(images) == 1 else images, **ASK)
    subjects = {"dog": [picture(number) for number in numbers]}
    assert same(made.data, engine.run(Request(prompt=ASK["prompt"], subjects=subjects, seed=3, steps=2)))


@pytest.mark.parametrize(
    ("prompt", "known"),
    [("a dog with a hat", "names dog, hat"), ("swimming quietly", "no word of the prompt is known")],
)
def test_a_word_that_cannot_be_found_is_asked_for(client, prompt, known):
    with pytest.raises(openai.BadRequestError, match=r"Send words\[\], one word for each image\[\]") as error:
        client.images.edit(image=files(1), prompt=prompt)
    assert known in str(error.value)
    assert error.value.param == "words"


def test_of_several_things_the_one_that_the_model_knows_is_meant():
    assert subjects_of("a dog with a hat", ["x"], [], known=["dog", "cat"]) == {"dog": {"images": ["x"]}}
    assert list(subjects_of("two Teddy Bears on a hat", ["x"], [], known=["teddy bear"])) == ["Teddy Bears"]
    assert list(subjects_of("a wug", ["x"], [], known=["dog"])) == ["wug"]
    with pytest.raises(Refusal, match="the prompt names dog, cat"):
        subjects_of("a dog, a cat and a hat", ["x"], [], known=["dog", "cat"])


def test_a_mask_is_transparent_where_the_subject_may_stand(client, engine):
    alpha = Image.new("L", (32, 32), 255)
    alpha.paste(0, (16, 0, 32, 32))
    mask = picture(7, size=32)
    mask.putalpha(alpha)
    made = client.images.edit(image=files(1), mask=("mask.png", png(mask), "image/png"), **ASK)
    region = np.zeros((32, 32), dtype=np.float32)
    region[:, 16:] = 1
    subjects = {"dog": Subject((picture(1),), region=region)}
    assert same(made.data, engine.run(Request(prompt=ASK["prompt"], subjects=subjects, seed=3, steps=2)))
    with pytest.raises(openai.BadRequestError, match="The mask needs transparency"):
        client.images.edit(image=files(1), mask=files(2)[0], **ASK)


def test_an_edit_as_json_with_data_urls(client, engine):
    record = {"prompt": "a dog", "image": [data_url(png(picture(1)))], "seed": 3, "num_inference_steps": 2}
    made = client.post("/images/edits", body=record, cast_to=openai.types.ImagesResponse)
    assert same(made.data, engine.run(Request(prompt="a dog", subjects={"dog": picture(1)}, seed=3, steps=2)))


@pytest.mark.parametrize(
    ("change", "sentence", "param"),
    [
        ({"prompt": " "}, "The prompt is empty.", None),
        ({"size": "large"}, "size must look like 1024x1024", "size"),
        ({"size": "65x64"}, "The width must be a multiple of", None),
        ({"n": 20}, "at most 16 images", None),
        ({"quality": "finest"}, "quality must be one of auto", "quality"),
        ({"output_format": "webp"}, 'output_format must be "png" here', "output_format"),
        ({"background": "transparent"}, 'background must be "auto" or "opaque" here', "background"),
        ({"extra_body": {"colour": "red"}}, "Unknown parameter: 'colour'", "colour"),
        ({"extra_body": {"steps": 2, "num_inference_steps": 2}}, "given twice", None),
        ({"extra_body": {"preset": "fast"}, "quality": "high"}, "Give either quality or preset", "quality"),
        ({"extra_body": {"guidance_scale": "much"}}, "The guidance scale must be a number", None),
    ],
)
def test_what_is_wrong_is_said_in_openais_shape(client, change, sentence, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(**{**ASK, **change})
    assert sentence in error.value.body["message"]
    assert error.value.type == "invalid_request_error"
    assert param is None or error.value.param == param


@pytest.mark.parametrize(
    ("images", "change", "sentence"),
    [
        ((1, 2), {"extra_body": {"words": ["dog"]}}, "one word for each image[]: 2, not 1"),
        ((1,), {"extra_body": {"words": ["cat"]}}, '"cat" does not stand in the prompt'),
        ((1,), {"extra_body": {"seed": "many"}}, "seed cannot be read"),
        (tuple(range(17)), {}, "1 to 16 pictures, not 17"),
    ],
)
def test_what_is_wrong_with_an_edit_is_said(client, images, change, sentence):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=files(*images), prompt="a dog", **change)
    assert sentence in error.value.body["message"]


@pytest.mark.parametrize("path", ["/images/generations", "/images/edits"])
@pytest.mark.parametrize("content", [b'"text"', b"{", b"[1]"])
def test_a_body_that_is_no_record_is_refused(client, path, content):
    with pytest.raises(openai.BadRequestError, match=r"record of fields|valid JSON"):
        client.post(path, content=content, cast_to=object, options={"headers": {"content-type": "application/json"}})


def test_a_file_that_is_no_picture_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="is not an image that can be read"):
        client.images.edit(image=("rex.png", b"nothing", "image/png"), prompt="a dog")


def test_another_model_and_another_token_are_refused(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(model="gpt-image-2", **ASK)
    assert error.value.code == "model_not_found"
    stranger = client.with_options(api_key="wrong-token")
    with pytest.raises(openai.AuthenticationError) as error:
        stranger.images.generate(**ASK)
    assert (error.value.code, error.value.body["message"]) == ("invalid_api_key", "The token is wrong.")


def runs(server) -> int:
    text = fetch(f"{server.url}/v1/metrics").decode()
    return int(float(text.split("realcustom_run_seconds_count ")[1].split()[0]))


def test_calls_at_one_time_are_made_in_batches_with_all_else(client, server, engine):
    before = runs(server)

    def make(seed: int):
        more = {"seed": seed, "num_inference_steps": 20}
        return client.images.generate(prompt="a dog", extra_body=more).data

    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(make, range(12)))
    for seed in (0, 7):
        assert same(made[seed], engine.run(Request(prompt="a dog", seed=seed, steps=20)))
    assert runs(server) - before < 12, "fewer runs than calls"


def test_a_client_that_leaves_takes_its_generation_along(client, server):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).images.generate(prompt="a dog", extra_body={"num_inference_steps": 1000})
    until(lambda: b'"state":"cancelled"' in fetch(f"{server.url}/v1/generations?state=cancelled"))
