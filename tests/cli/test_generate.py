"""`realcustom generate` and `repeat`: files, settings, and one sentence for whatever cannot be used."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.cli.options import read_size, read_subjects
from realcustom.cli.results import slugs
from realcustom.pictures.png import read_metadata

DOG = ("generate", "a dog on the beach", "--subject", "dog=rex.png", "--steps", "2")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_one_image(realcustom, folder, tiny_model):
    done = realcustom(*DOG, "--model", tiny_model)
    assert (done.code, done.lines, done.error) == (0, ["out.png"], "")
    image = Image.open(folder / "out.png")
    assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")
    settings = read_metadata("out.png")
    assert settings["request"]["prompt"] == "a dog on the beach"
    assert settings["request"]["steps"] == 2
    assert settings["request"]["subjects"]["dog"]["images"][0]["path"] == str(folder / "rex.png")
    assert settings["model"] == {"model": str(tiny_model), "adapter": None}


def test_several_images_with_masks_into_a_new_folder(realcustom, folder, tiny_model):
    options = ("--num-images", 2, "--save-masks", "--size", "96x64", "--out", "new/dogs.png", "--seed", 4)
    done = realcustom(*DOG, "--model", tiny_model, *options)
    assert done.code == 0
    names = [f"dogs-{index}{part}.png" for index in range(2) for part in ("", ".mask.dog", ".mask.dog.overlay")]
    assert done.lines == [f"new/{name}" for name in names]
    assert sorted(path.name for path in (folder / "new").iterdir()) == sorted(names)
    mask = Image.open("new/dogs-0.mask.dog.png")
    assert (mask.mode, mask.size) == ("L", (96, 64))
    assert pixels("new/dogs-0.mask.dog.png").max() > 0
    assert Image.open("new/dogs-0.mask.dog.overlay.png").size == (96, 64)


def test_every_option_reaches_the_request(realcustom, tiny_model):
    options = {
        "--seed": 9,
        "--guidance-scale": 2,
        "--image-guidance-scale": 5,
        "--mask-scope": 0.4,
        "--negative-prompt": "a cat",
        "--strength": "dog=0.8",
        "--device": "cpu",
        "--dtype": "float32",
    }
    flat = [text for pair in options.items() for text in pair]
    assert realcustom(*DOG, "--model", tiny_model, *flat).code == 0
    request = read_metadata("out.png")["request"]
    assert request["subjects"]["dog"]["strength"] == 0.8
    fields = ("seed", "guidance_scale", "image_guidance_scale", "mask_scope", "negative_prompt")
    assert [request[name] for name in fields] == [9, 2, 5, 0.4, "a cat"]


def test_two_subjects_on_the_sdxl_shape(realcustom, tiny_xl_model):
    words = ("--subject", "dog=rex.png", "--subject", "robot=tom.png", "--subject", "robot=rex.png")
    done = realcustom("generate", "a dog and a robot", *words, "--model", tiny_xl_model, "--steps", 2, "--save-masks")
    assert (done.code, done.error) == (0, "")
    assert len(read_metadata("out.png")["request"]["subjects"]["robot"]["images"]) == 2
    assert len(done.lines) == 5


@pytest.mark.parametrize("model", ["tiny_model", "tiny_xl_model"])
def test_repeat_makes_the_same_image(realcustom, folder, request, model):
    model = request.getfixturevalue(model)
    realcustom(*DOG, "--model", model, "--num-images", 2, "--strength", "dog=0.7")
    assert realcustom("repeat", "out-1.png").lines == ["out-1-repeat.png"]
    assert np.array_equal(pixels("out-1.png"), pixels("out-1-repeat.png"))
    assert read_metadata("out-1.png") == read_metadata("out-1-repeat.png")


def test_repeat_keeps_the_order_of_subjects(realcustom, tiny_model):
    words = ("--subject", "robot=rex.png", "--subject", "dog=tom.png", "--subject", "beach=rex.png")
    prompt = "a dog and a robot on the beach"
    assert realcustom("generate", prompt, *words, "--model", tiny_model, "--steps", 3).code == 0
    assert list(read_metadata("out.png")["request"]["subjects"]) == ["robot", "dog", "beach"]
    assert realcustom("repeat", "out.png").code == 0
    assert Path("out.png").read_bytes() == Path("out-repeat.png").read_bytes()


def test_repeat_says_what_became_of_the_reference(realcustom, folder, tiny_model):
    realcustom(*DOG, "--model", tiny_model)
    shutil.copy("tom.png", "rex.png")
    done = realcustom("repeat", "out.png")
    assert (done.code, done.error.count("\n")) == (2, 1)
    assert 'reference of "dog" has changed' in done.error
    (folder / "rex.png").unlink()
    done = realcustom("repeat", "out.png")
    assert done.code == 2
    assert f'reference of "dog" is missing: {folder / "rex.png"}' in done.error
    assert not (folder / "out-repeat.png").exists()


def bad_pictures(folder) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "rex.png").read_bytes()[:900])
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    # 30,000 x 30,000 black pixels, 1 bit each: some 100 KB that would decode to 2.7 GB.
    rows = zlib.compress(bytes(30_000 * (1 + 30_000 // 8)))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    coded = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(coded))


BEFORE_LOADING = [
    (["--subject", "dog=missing.png"], "There is no file missing.png."),
    (["--subject", "dog=text.png"], "not an image"),
    (["--subject", "dog=empty.png"], "empty"),
    (["--subject", "dog=cut.png"], "damaged"),
    (["--subject", "dog=drawing.svg"], "SVG"),
    (["--subject", "dog=huge.png"], "megapixels"),
    (["--subject", "dog=."], "not a file"),
    (["--subject", "dog"], 'must look like dog=rex.png, not "dog"'),
    (["--subject", "=rex.png"], "must look like"),
    (["--subject", "cat=rex.png"], '"cat" does not stand in the prompt'),
    (["--subject", "each=rex.png"], '"each" does not stand in the prompt'),
    (["--subject", "dog=rex.png", "--strength", "dog=nan"], "strength of a subject"),
    (["--subject", "dog=rex.png", "--strength", "dog=much"], "must be a number"),
    (["--strength", "dog=1"], "for which there is no --subject"),
    (["--size", "64"], "must look like 256x192"),
    (["--size", "0x64"], "width must be a whole number"),
    (["--steps", "0"], "number of steps"),
    (["--steps", "many"], "--steps"),
    (["--guidance-scale", "nan"], "guidance scale"),
    (["--mask-scope", "-1"], "mask scope"),
    (["--seed", "-1"], "seed"),
    (["--num-images", "1000"], "number of images"),
    (["--out", "out.jpg"], "must end in .png"),
    (["--out", "rex.png/out.png"], "is not a folder"),
    (["--model", "nothing-here"], "There is no model"),
    (["--unknown"], "No such option"),
]


@pytest.mark.parametrize(("options", "sentence"), BEFORE_LOADING)
def test_bad_input_is_one_sentence_and_exit_code_2(realcustom, folder, options, sentence):
    bad_pictures(folder)
    before = sorted(folder.iterdir())
    done = realcustom("generate", "a dog on the beach", *options)
    assert done.code == 2
    assert done.lines == []
    assert done.error.startswith("realcustom: ")
    assert done.error.count("\n") == 1
    assert sentence in done.error
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "60x64"], "multiple of 8"),
        (["--size", "4096x4096"], "too large for this model"),
        (["--device", "banana"], "not available"),
        (["--dtype", "int8"], "no dtype"),
        (["--adapter", "nothing-here"], "There is no adapter"),
        (["--subject", "a dog=rex.png", "--subject", "dog on=tom.png"], "overlap"),
        (["--steps", "1000", "--negative-prompt", "dog " * 100], "shorten it"),
    ],
)
def test_what_only_the_model_knows_is_refused_the_same_way(realcustom, folder, tiny_model, options, sentence):
    done = realcustom("generate", "a dog on the beach", "--model", tiny_model, *options)
    assert (done.code, done.lines, done.error.count("\n")) == (2, [], 1)
    assert sentence in done.error
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["repeat", "missing.png"], "There is no file"),
        (["repeat", "rex.png"], "carries no settings"),
        (["repeat", "rex.png", "--out", "x.jpg"], "must end in .png"),
        (["convert", "missing.pth", "--out", "ours"], "no checkpoint file"),
        (["convert", "rex.png", "--out", "ours"], "no checkpoint"),
        (["convert", "rex.png", "--out", "rex.png"], "is a file"),
        (["convert", ".", "--out", "ours"], "holds no checkpoint"),
        (["models", "show", "nothing-here"], "There is no model"),
        (["train", "nothing-here"], "There is no recipe"),
        (["data", "stickers", "nothing-here"], "There is no folder"),
        (["nothing-here"], "No such command"),
    ],
)
def test_the_other_commands_refuse_in_one_sentence_too(realcustom, arguments, sentence):
    done = realcustom(*arguments)
    assert (done.code, done.error.count("\n")) == (2, 1)
    assert sentence in done.error


def test_an_unexpected_failure_shows_no_traceback(realcustom, monkeypatch, tiny_model):
    from realcustom.engine.engine import Engine

    def fail(*_, **__):
        raise KeyError("surprise")

    monkeypatch.setattr(Engine, "run", fail)
    done = realcustom(*DOG, "--model", tiny_model)
    assert (done.code, done.error.count("\n")) == (1, 1)
    assert "surprise" in done.error
    assert "Traceback" not in done.error


def test_an_interrupt_is_130_and_writes_nothing(realcustom, folder, monkeypatch, tiny_model):
    from realcustom.engine.engine import Engine

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "run", interrupt)
    assert realcustom(*DOG, "--model", tiny_model).code == 130
    assert not (folder / "out.png").exists()


def test_words_become_file_names():
    assert slugs(["dog", "Dog", "dog with the pink hat", "../x", "!!", "\u72ac"]) == {
        "dog": "dog",
        "Dog": "dog-2",
        "dog with the pink hat": "dog-with-the-pink-hat",
        "../x": "x",
        "!!": "subject",
        "\u72ac": "\u72ac",
    }


def test_texts_of_the_command_line():
    subjects = read_subjects(["dog=a=b.png", "toy = c.png", "dog=d.png"], ["dog=0.5"])
    assert subjects["dog"].images == ("a=b.png", "d.png")
    assert (subjects["dog"].strength, subjects["toy"].strength) == (0.5, 1.0)
    assert subjects["toy"].images == ("c.png",)
    assert read_size("256x192") == {"width": 256, "height": 192}
    assert read_size(None) == {}


def test_the_picture_under_a_word_is_the_one_given(realcustom, tiny_model):
    realcustom(*DOG, "--model", tiny_model)
    first = pixels("out.png")
    picture(7).save("rex.png")
    realcustom(*DOG, "--model", tiny_model)
    assert not np.array_equal(first, pixels("out.png"))
