"""`realcustom generate` and `repeat`: files, settings, and one sentence for whatever cannot be used."""

import io
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.cli.options import read_size, read_subjects
from realcustom.cli.results import Outputs
from realcustom.pictures.overlays import slugs
from realcustom.pictures.png import read_metadata
from realcustom.types import Request, Result

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
    assert settings["request"]["subjects"]["dog"]["images"][0]["path"] == "rex.png"
    assert settings["model"] == {"model": os.path.relpath(tiny_model), "adapter": None}


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
    assert 'reference of "dog" is missing: rex.png' in done.error
    assert not (folder / "out-repeat.png").exists()


def bad_pictures(folder) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (8, 8)).save(folder / "black.png")
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
    (["--seed", "-2"], "seed"),
    (["--region", "dog=0,0,0.5,1"], 'names "dog", for which there is no --subject'),
    (["--subject", "dog=rex.png", "--region", "dog=0,0,0,1"], "is empty"),
    (["--subject", "dog=rex.png", "--region", "dog=black.png"], "black.png is black everywhere"),
    (["--subject", "dog=rex.png", "--weights", "dog=1,1"], "must be 1 numbers"),
    (["--subject", "dog=rex.png", "--weights", "dog=a"], "numbers with commas between"),
    (["--subject", "dog=http://127.0.0.1:9/rex.png"], "http://127.0.0.1:9/rex.png cannot be read: "),
    (["--subject", "dog=-", "--subject", "dog=-"], "one picture only"),
    (["--subject", "dog=~/none-such.png"], "There is no file"),
    (["--out", ""], "--out needs the name of a PNG file"),
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
        (["--steps", "1000", "--negative-prompt", "dog " * 100], "The negative prompt has 102 tokens"),
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
        (["repeat", ""], "needs the name of a PNG file"),
        (["repeat", "rex.png", "--references", "none"], "There is no folder none"),
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


def interrupted_after(monkeypatch, count: int) -> None:
    """Ctrl-C in the image after the first `count`."""
    from realcustom.engine.engine import Engine

    run, calls = Engine.run, []

    def interrupt(self, request, **options):
        calls.append(request)
        if len(calls) > count:
            raise KeyboardInterrupt
        return run(self, request, **options)

    monkeypatch.setattr(Engine, "run", interrupt)


def test_an_interrupt_is_130_and_keeps_what_is_made(realcustom, folder, monkeypatch, tiny_model):
    command = (*DOG, "--model", tiny_model, "--num-images", 3, "--seed", 5)
    realcustom(*command, "--out", "whole.png")
    interrupted_after(monkeypatch, 2)
    done = realcustom(*command)
    assert (done.code, done.lines) == (130, ["out-0.png", "out-1.png"])
    assert done.error.endswith(
        "realcustom: Interrupted: 2 of 3 images are written; --seed 7 --num-images 1 makes the others.\n"
    )
    for index in range(2):
        assert np.array_equal(pixels(f"out-{index}.png"), pixels(f"whole-{index}.png"))
    assert sorted(path.name for path in folder.glob("*out*")) == ["out-0.png", "out-1.png"]


def test_earlier_results_stay_and_inputs_always_do(realcustom, folder, tiny_model):
    before = (folder / "rex.png").read_bytes()
    command = (*DOG, "--model", tiny_model)
    assert realcustom(*command, "--out", "rex.png").lines == ["rex-1.png"]
    assert realcustom(*command, "--out", "rex.png").lines == ["rex-2.png"]
    refused = realcustom(*command, "--out", "rex.png", "--overwrite")
    assert (refused.code, refused.lines) == (2, [])
    assert "rex.png is read by this command, so it is not overwritten" in refused.error
    assert (folder / "rex.png").read_bytes() == before
    several = (*command, "--num-images", 2)
    assert realcustom(*several).lines == ["out-0.png", "out-1.png"]
    first = (folder / "out-0.png").stat().st_mtime_ns
    assert realcustom(*several).lines == ["out-2.png", "out-3.png"]
    assert (folder / "out-0.png").stat().st_mtime_ns == first
    assert realcustom(*several, "--overwrite").lines == ["out-0.png", "out-1.png"]
    assert (folder / "out-0.png").stat().st_mtime_ns != first
    assert realcustom("repeat", "out-0.png", "--out", "out-0.png").lines == ["out-0-1.png"]
    assert "not overwritten" in realcustom("repeat", "out-0.png", "--out", "out-0.png", "--overwrite").error


def test_a_mask_name_does_not_replace_an_input(realcustom, folder, tiny_model):
    shutil.copy("rex.png", "out.mask.dog.png")
    before = (folder / "out.mask.dog.png").read_bytes()
    command = ("generate", "a dog", "--subject", "dog=out.mask.dog.png", "--model", tiny_model, "--steps", 1)
    names = ["out-1.png", "out-1.mask.dog.png", "out-1.mask.dog.overlay.png"]
    assert realcustom(*command, "--save-masks").lines == names
    assert "not overwritten" in realcustom(*command, "--save-masks", "--overwrite").error
    assert (folder / "out.mask.dog.png").read_bytes() == before


def test_files_made_meanwhile_are_not_replaced(folder):
    request = Request(prompt="a dog", num_images=2)
    files = Outputs(folder / "out.png", request)
    Image.new("RGB", (1, 1)).save(folder / "out-0.png")
    image = Image.new("RGB", (2, 2))
    result = Result(images=(image, image), masks={}, metadata=({}, {}), request=request)
    assert [path.name for path in files.write(result)] == ["out-1.png", "out-2.png"]
    assert Image.open(folder / "out-0.png").size == (1, 1)


def test_references_from_home_a_web_address_and_standard_input(realcustom, folder, monkeypatch, tiny_model, web):
    command = ("generate", "a dog on the beach", "--steps", 1, "--model", tiny_model, "--subject")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "rex.png").read_bytes())))
    for number, place in enumerate(["rex.png", "~/rex.png", f"{web}/rex.png?token=secret", "-"]):
        done = realcustom(*command, f"dog={place}", "--out", f"{number}.png")
        assert done.code == 0, done.error
        assert np.array_equal(pixels("0.png"), pixels(f"{number}.png"))
    recorded = [read_metadata(f"{n}.png")["request"]["subjects"]["dog"]["images"][0]["path"] for n in range(4)]
    assert recorded == ["rex.png", "rex.png", f"{web}/rex.png", None]
    assert f"{web}/none.png cannot be read: the server answers 404" in realcustom(*command, f"dog={web}/none.png").error
    (folder / "rex.png").rename(folder / "renamed.png")
    assert realcustom("repeat", "3.png").code == 0
    assert np.array_equal(pixels("3.png"), pixels("3-repeat.png"))


def test_a_random_seed_is_recorded(realcustom, tiny_model):
    realcustom(*DOG, "--model", tiny_model, "--seed", -1)
    realcustom(*DOG, "--model", tiny_model, "--seed", read_metadata("out.png")["request"]["seed"], "--out", "again.png")
    assert np.array_equal(pixels("out.png"), pixels("again.png"))


def test_images_tell_nothing_of_the_disk_and_nothing_at_all_if_asked(realcustom, folder, tiny_model):
    done = realcustom(*DOG[:2], "--subject", f"dog={folder}/rex.png", "--steps", 1, "--model", tiny_model)
    assert done.code == 0, done.error
    assert str(folder.parent) not in (folder / "out.png").read_bytes().decode("latin-1")
    assert Image.open("out.png").info["srgb"] == 0
    realcustom(*DOG, "--model", tiny_model, "--no-metadata", "--out", "plain.png")
    assert set(Image.open("plain.png").info) == {"srgb", "gamma"}


def test_repeat_finds_references_by_what_they_show(realcustom, folder, tiny_model):
    """Two references with one name, one of them renamed, each moved elsewhere; a region mask too."""
    for name, number in (("a", 3), ("b", 5), ("mask", 7)):
        (folder / name).mkdir()
        picture(number).save(folder / name / "rex.png")
    both = ("--subject", "dog=a/rex.png", "--subject", "dog=b/rex.png", "--region", "dog=mask/rex.png")
    done = realcustom("generate", "a dog", *both, "--weights", "dog=1,0.5", "--steps", 2, "--model", tiny_model)
    assert done.code == 0, done.error
    (folder / "far/below").mkdir(parents=True)
    (folder / "a/rex.png").rename(folder / "far/below/rex.png")
    (folder / "b/rex.png").rename(folder / "other.png")
    (folder / "mask/rex.png").rename(folder / "far/mask.png")
    done = realcustom("repeat", "out.png")
    assert done.code == 2
    assert done.error.count("is missing") == 2
    assert "a/rex.png" in done.error
    assert "mask/rex.png" in done.error
    assert realcustom("repeat", "out.png", "--references", "far").lines == ["out-repeat.png"]
    assert np.array_equal(pixels("out.png"), pixels("out-repeat.png"))


def test_repeat_finds_references_in_the_data_folder_of_the_studio(realcustom, folder, tiny_model):
    from realcustom.serving.limits import Limits
    from realcustom.serving.store import Store

    realcustom(*DOG, "--model", tiny_model)
    store = Store("studio")
    store.add_upload((folder / "rex.png").read_bytes(), Limits())
    store.close()
    (folder / "rex.png").unlink()
    assert "is missing" in realcustom("repeat", "out.png").error
    assert realcustom("repeat", "out.png", "--data", "studio").code == 0
    assert np.array_equal(pixels("out.png"), pixels("out-repeat.png"))


def test_a_full_disk_names_the_file(realcustom, folder, monkeypatch, tiny_model):
    def full(descriptor):
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "fsync", full)
    done = realcustom(*DOG, "--model", tiny_model)
    assert (done.code, done.error) == (2, "realcustom: out.png: file too large.\n")


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
    subjects = read_subjects(["dog=a.png", "cat=b.png"], [], ["dog=0, 0,0.5,1", "cat=m,a,s,k.png"], ["dog=0.5"])
    assert (subjects["dog"].region, subjects["dog"].weights) == ((0, 0, 0.5, 1), (0.5,))
    assert subjects["cat"].region == "m,a,s,k.png"
    assert read_size("256x192") == {"width": 256, "height": 192}
    assert read_size(None) == {}


def test_the_picture_under_a_word_is_the_one_given(realcustom, tiny_model):
    realcustom(*DOG, "--model", tiny_model)
    first = pixels("out.png")
    picture(7).save("rex.png")
    realcustom(*DOG, "--model", tiny_model, "--overwrite")
    assert not np.array_equal(first, pixels("out.png"))


def test_a_word_that_the_model_does_not_know_is_said(realcustom, folder):
    Path("jobs.jsonl").write_text('{"id": "one", "prompt": "a zebra in the snow", "steps": 1}\n')
    for call in (("generate", "a zebra in the snow", "--steps", 1), ("batch", "jobs.jsonl", "--out", "jobs")):
        done = realcustom(*call)
        assert done.code == 0, done.error
        (line,) = [line for line in done.error.splitlines() if "zebra" in line]
        assert 'This model does not know "zebra", and may draw nothing of it; it knows dog, cat,' in line
        assert ("jobs.jsonl, line 1" in line) == (call[0] == "batch")
    assert "does not know" not in realcustom("generate", "a dog in the snow", "--steps", 1).error
