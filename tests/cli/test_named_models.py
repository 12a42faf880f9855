"""Released weights in one command: `--model sdxl` from an empty cache to the picture, on the hub of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from release_files import build_base, build_ip_adapter, build_release
from tiny_flux import write_flux_files

from realcustom.hub.names import NAMED
from realcustom.pictures.png import read_metadata

SDXL = NAMED["sdxl"]
TOY = ("generate", "a toy at sunset", "--subject", "toy=rex.png", "--model", "sdxl", "--size", "64x64", "--steps", 2)
SIGLIP = "ckpts/vit_so400m_patch14_siglip_384/open_clip_pytorch_model.bin"
WEIGHTS = "ckpts/realcustom/RealCustom_highres.pth"
UNET = "ckpts/sdxl/unet/sdxl-unet.bin"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repositories")
    base, unet = build_base(folder / "base", large=True)
    return {SDXL.base: base, SDXL.weights: build_release(folder / "release", unet)}


@pytest.fixture
def sdxl(hub, repositories):
    """The hub with the base and the release."""
    hub.repos.update(repositories)
    return hub


def test_one_command_from_nothing(realcustom, sdxl, folder):
    done = realcustom(*TOY)
    assert (done.code, done.lines) == (0, ["out.png"]), done.error
    assert Image.open("out.png").size == (64, 64)
    fetched = sdxl.fetched()
    for path in (
        WEIGHTS,
        SIGLIP,
        "text_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ):
        assert path in fetched
        assert f"{path}, {fetched[path]:,} bytes" in done.error, "the bytes that are fetched are listed"
    for path in fetched:
        assert "msgpack" not in path
        assert not path.endswith(("model.safetensors", "sd_base_1.0.safetensors")), path
    # The release's file holds the whole U-Net: neither its plain one nor the base's is fetched.
    assert UNET not in fetched
    assert not any(path.startswith("unet/diffusion") for path in fetched)

    sdxl.log.clear()
    first = np.asarray(Image.open("out.png"))
    assert realcustom(*TOY).error == ""
    assert sdxl.log == [], "the second run asks for nothing"
    assert np.array_equal(first, np.asarray(Image.open("out.png")))


def test_the_settings_are_the_releases(realcustom, sdxl, folder):
    realcustom(*TOY, "--dtype", "bfloat16")
    settings = read_metadata("out.png")
    request, source = settings["request"], settings["model"]
    assert (request["guidance_scale"], request["mask_scope"], request["steps"]) == (3.5, 0.2, 2)
    assert "low quality" in request["negative_prompt"]
    assert source["model"] == "sdxl"
    assert source["revision"] == f"{sdxl.commit(SDXL.base)}+{sdxl.commit(SDXL.weights)}"
    assert settings["dtype"] == "bfloat16"
    done = realcustom("repeat", "out.png")
    assert done.code == 0, done.error
    assert Path("out.png").read_bytes() == Path("out-repeat.png").read_bytes()


def test_weights_are_stored_in_half_and_nothing_half_written_stays(realcustom, sdxl, folder, tmp_path):
    from safetensors import safe_open

    assert realcustom("models", "get", "sdxl").code == 0
    made = [path for path in (tmp_path / "converted" / "sdxl").iterdir() if path.is_dir()]
    assert len(made) == 1
    assert {path.name for path in made[0].iterdir()} == {"adapter", "reference_encoder", "unet", "pipeline.json"}
    for file in made[0].rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"BF16"}  # noqa: SIM118


def test_weights_alone_take_the_releases_unet(realcustom, hub, repositories, folder, tmp_path_factory):
    from diffusers import UNet2DConditionModel

    from realcustom.convert.states import read_state

    base = repositories[SDXL.base]
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    release = build_release(tmp_path_factory.mktemp("alone"), unet, whole=False)
    hub.repos.update({SDXL.base: base, SDXL.weights: release})
    assert realcustom(*TOY).code == 0
    assert UNET in hub.fetched()
    assert "conv_in.weight" not in read_state(release / WEIGHTS)


def test_a_cut_download_is_continued(realcustom, sdxl, folder):
    size = sdxl.files(SDXL.weights)[SIGLIP]
    sdxl.cut[SIGLIP] = 10_000
    done = realcustom(*TOY)
    assert done.code == 2
    assert "what was fetched so far is kept" in done.error
    before = sdxl.fetched()
    assert before[SIGLIP] == 10_000
    sdxl.log.clear()
    assert realcustom(*TOY).code == 0
    assert [asked for method, path, asked, _ in sdxl.log if method == "GET" and path.endswith(SIGLIP)] == [
        "bytes=10000-"
    ]
    assert sdxl.fetched()[SIGLIP] == size - 10_000
    assert WEIGHTS not in sdxl.fetched(), "what was there is not fetched again"


def test_a_filled_cache_needs_no_hub(realcustom, sdxl, folder, monkeypatch):
    from huggingface_hub import constants

    assert realcustom("models", "get", "sdxl").code == 0
    sdxl.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert realcustom(*TOY).code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert realcustom(*TOY).code == 0
    assert sdxl.log == []


def test_newer_weights_come_when_they_are_asked_for(realcustom, sdxl, folder, repositories, tmp_path):
    realcustom("models", "get", "sdxl")
    old = sdxl.commit(SDXL.weights)
    (repositories[SDXL.weights] / "news.txt").write_text("news")
    try:
        assert sdxl.commit(SDXL.weights) != old
        realcustom(*TOY, "--overwrite")
        assert read_metadata("out.png")["model"]["revision"].endswith(old), "a picture does not change by itself"
        realcustom("models", "get", "sdxl")
        realcustom(*TOY, "--overwrite")
        assert read_metadata("out.png")["model"]["revision"].endswith(sdxl.commit(SDXL.weights))
    finally:
        (repositories[SDXL.weights] / "news.txt").unlink()


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda hub, patch: patch("HF_HUB_OFFLINE", True), "the switch HF_HUB_OFFLINE is set"),
        (lambda hub, patch: patch("ENDPOINT", "http://127.0.0.1:9"), "The hub at http://127.0.0.1:9 cannot be reached"),
        (lambda hub, patch: hub.repos.pop(SDXL.weights), f'There is no repository "{SDXL.weights}" on the hub'),
        (lambda hub, patch: hub.gated.add(SDXL.base), "is gated: accept its terms at"),
        (lambda hub, patch: hub.private.add(SDXL.weights), "or it is private: then give a token"),
        (lambda hub, patch: hub.repos.update({SDXL.weights: hub.repos[SDXL.base]}), "lacks the file for RealCustom++"),
    ],
)
def test_errors_are_told_apart(realcustom, sdxl, folder, monkeypatch, break_it, sentence):
    from huggingface_hub import constants

    break_it(sdxl, lambda name, value: monkeypatch.setattr(constants, name, value))
    done = realcustom(*TOY)
    assert (done.code, done.lines) == (2, [])
    assert sentence in done.error
    assert done.error.count("\n") == 1, "one sentence"
    assert sum(sdxl.fetched().values()) == 0, "nothing was fetched before it was said"


def test_a_token_opens_what_is_private(realcustom, sdxl, folder, monkeypatch):
    sdxl.private.add(SDXL.weights)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "Your token may not read" in realcustom(*TOY).error
    monkeypatch.setenv("HF_TOKEN", sdxl.token)
    assert realcustom(*TOY).code == 0


def test_a_revision_that_is_not_there(realcustom, sdxl, folder):
    done = realcustom(*TOY, "--revision", "main+v9")
    assert f'The repository "{SDXL.weights}" has no revision "v9".' in done.error


def test_a_full_disk_is_told_before_anything_is_fetched(realcustom, sdxl, folder, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    done = realcustom(*TOY)
    assert "GB more on the disk" in done.error
    assert sum(sdxl.fetched().values()) == 0


def test_an_adapter_of_another_family_is_told_before_anything_large(realcustom, sdxl, folder, tiny_model):
    sdxl.repos["me/adapter"] = tiny_model
    done = realcustom(*TOY, "--adapter", "me/adapter")
    assert "of different families" in done.error
    assert "--model" in done.error, "in the words of this door"
    assert not any(path.startswith("adapter/diffusion") for path in sdxl.fetched())


def test_models_list_says_what_is_here(realcustom, sdxl, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = realcustom("models", "list").lines
    assert any("sdxl" in line and "no" in line.split() for line in lines)
    realcustom("models", "get", "sdxl")
    lines = realcustom("models", "list").lines
    assert any("sdxl" in line and "yes" in line.split() for line in lines)


def test_sd15_is_ip_adapter_under_the_mask(realcustom, hub, folder, tmp_path):
    base, unet = build_base(tmp_path / "base", large=False)
    models = tmp_path / "weights" / "models"
    models.mkdir(parents=True)
    build_ip_adapter(models, unet, True, "safetensors", "ip-adapter-plus_sd15")
    build_ip_adapter(models, unet, False, "bin", "ip-adapter_sd15")
    hub.repos.update({NAMED["sd15"].base: base, NAMED["sd15"].weights: tmp_path / "weights"})
    toy = [*TOY[:5], "sd15", "--size", "64x64", "--steps", 2, "--save-masks"]
    done = realcustom(*toy)
    assert (done.code, done.lines[0]) == (0, "out.png"), done.error
    assert "models/ip-adapter_sd15.bin" not in hub.fetched()
    assert np.asarray(Image.open("out.mask.toy.png")).max() > 0
    assert read_metadata("out.png")["request"]["guidance_scale"] == 7.5
    hub.log.clear()
    assert realcustom("repeat", "out.png").code == 0
    assert Path("out.png").read_bytes() == Path("out-repeat.png").read_bytes()
    assert hub.log == []


def test_flux_is_uno_under_the_mask(realcustom, hub, folder, tmp_path, tokenizer, monkeypatch):
    files = write_flux_files(tokenizer, tmp_path / "files")
    flux = NAMED["flux"]
    hub.repos.update({flux.base: files / "base", flux.weights: files / "uno"})
    hub.gated.add(flux.base)
    call = ("generate", "a dog and a cat on the sofa", "--subject", "dog=rex.png", "--subject", "cat=tom.png")
    call += ("--model", "flux", "--size", "64x48", "--steps", 2, "--save-masks")
    assert "is gated: accept its terms at" in realcustom(*call).error
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = realcustom(*call)
    assert (done.code, done.lines[0]) == (0, "out.png"), done.error
    assert f"Fetching {flux.weights}: dit_lora.safetensors" in done.error
    assert np.asarray(Image.open("out.mask.dog.png")).max() > 0
    settings = read_metadata("out.png")
    assert settings["model"]["revision"] == f"{hub.commit(flux.base)}+{hub.commit(flux.weights)}"
    hub.log.clear()
    assert realcustom("repeat", "out.png").code == 0
    assert Path("out.png").read_bytes() == Path("out-repeat.png").read_bytes()
    Path("jobs.jsonl").write_text(json.dumps({"id": "one", **portable_request(settings["request"])}))
    assert realcustom("batch", "jobs.jsonl", "--out", "jobs", "--model", "flux").code == 0
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open("jobs/one.png")))
    assert hub.log == [], "what is here is not asked for again"
    assert realcustom("models", "get", "flux", "--yes").code == 0


def portable_request(record: dict) -> dict:
    """A recorded request as a line of a jobs file: pictures by their paths."""
    subjects = {
        word: {**subject, "images": [image["path"] for image in subject["images"]]}
        for word, subject in record["subjects"].items()
    }
    return {**record, "subjects": subjects}


def test_the_environment_names_hub_and_cache(sdxl, folder, tmp_path):
    """In a process of its own, as a user has it."""
    home = tmp_path / "home"
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": sdxl.url, "HF_HOME": str(home),
        "REALCUSTOM_CACHE": str(tmp_path / "ours"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-c", "from realcustom.cli import main; main()", "models", "get", "sdxl", "--yes"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "ours" / "sdxl" / "known.json").read_text())
    assert done.stdout.strip() == str(tmp_path / "ours" / "sdxl" / known[""]["folder"])
    assert (home / "hub").is_dir()
