"""Help, version, and the commands that look at, convert and train models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from realcustom.miniature import builders
from realcustom.miniature.tokenizer import train_tokenizer

RECIPE = """
from pathlib import Path
import torch
from realcustom.training.config import Parts, TrainConfig


def build():
    def loss(modules, batch, generator):
        return ((modules["line"](batch["x"]) - batch["x"]) ** 2).mean(), {}

    def data(feed):
        while True:
            yield {"x": torch.ones(feed.batch_size, 1)}

    return Parts(trained={"line": torch.nn.Linear(1, 1)}, loss=loss, data=data)


def recipe(out: Path = Path("outputs/line"), steps: int = 100) -> TrainConfig:
    return TrainConfig(name="line", out=out, build=build, steps=steps, batch_size=2, precision="no")
"""


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys\n"
        "from realcustom.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = os.times()
    # Computing time, because another process may hold the processor.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    for command in ("generate", "repeat", "convert", "train", "models", "data"):
        assert command in done.stdout


def test_every_command_has_help(realcustom):
    for command in (["generate"], ["repeat"], ["convert"], ["train"], ["models", "show"], ["data", "stickers"]):
        done = realcustom(*command, "--help")
        assert done.code == 0
        assert len(done.lines) > 5


def test_no_command_is_help_and_version_is_the_version(realcustom):
    from realcustom import __version__

    assert "Usage" in "\n".join(realcustom().lines)
    assert realcustom("--version").lines == [__version__]


def test_models_show(realcustom, folder, tiny_model):
    shutil.copytree(tiny_model, folder / "model")
    (folder / "model" / "knows.json").write_text('{"words": ["dog", "cat"]}')
    done = realcustom("models", "show", "model")
    text = "\n".join(done.lines)
    assert (done.code, done.error) == (0, "")
    assert "RealCustomPipeline" in text
    assert "size: 64x64" in text
    assert "adapter_layers: 4" in text
    assert "words: dog, cat" in text


def test_models_export_needs_trained_parts(realcustom):
    done = realcustom("models", "export", "--base", "nothing-here")
    assert (done.code, done.error) == (2, "realcustom: There is no folder nothing-here: train it first.\n")


def test_models_export_makes_a_model(realcustom, folder):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog on the beach"])
    unet, encoder = builders.build_unet(), builders.build_reference_encoder()
    parts = {"unet": unet, "vae": builders.build_vae(), "text_encoder": builders.build_text_encoder(tokenizer)}
    for name, part in {**parts, "tokenizer": tokenizer, "scheduler": builders.build_scheduler()}.items():
        part.save_pretrained(folder / "base" / name)
    encoder.save_pretrained(folder / "adapter" / "reference_encoder")
    builders.build_adapter(unet, encoder).save_pretrained(folder / "adapter" / "adapter")
    assert realcustom("models", "export", "--base", "base", "--adapter", "adapter", "--out", "mini").lines == ["mini"]
    dog = ("generate", "a dog", "--subject", "dog=rex.png", "--steps", 1, "--model", "mini")
    assert realcustom(*dog).error == ""
    assert Image.open("out.png").size == (128, 128)


def release_file(components: dict, path: Path) -> None:
    """A checkpoint in the release's key layout, made of tiny components."""
    from realcustom.models.unet import cross_attention_names

    adapter, unet = components["adapter"], components["unet"]
    state = dict(unet.state_dict())
    for index, name in enumerate(cross_attention_names(unet)):
        state[f"{name}.to_k_vision.weight"] = adapter.to_k[index].weight
        state[f"{name}.to_v_vision.weight"] = adapter.to_v[index].weight
    prefix = "projector."
    for name, tensor in adapter.state_dict().items():
        if name.startswith(prefix):
            state[f"encoder_hidden_states_vision_projection.{name.removeprefix(prefix)}"] = tensor
    torch.save(state, path)


def test_a_converted_release_checkpoint_is_an_adapter(realcustom, folder, tiny_xl_components, tiny_xl_model):
    release_file(tiny_xl_components, folder / "release.pth")
    tiny_xl_components["unet"].save_config(folder / "unet")
    done = realcustom(
        "convert", "release.pth", "--out", "ours", "--unet-config", "unet/config.json", "--dtype", "float32"
    )
    assert (done.code, done.lines) == (0, ["ours/adapter", "ours/unet"])
    assert "SigLIP and DINOv2 are not among the files" in done.error
    dog = ("generate", "a dog", "--subject", "dog=rex.png", "--steps", 2, "--model", tiny_xl_model)
    dog = (*dog, "--negative-prompt", "a cat")
    done = realcustom(*dog, "--adapter", "ours", "--reference-encoder", tiny_xl_model / "reference_encoder")
    assert done.error == ""
    assert Image.open("out.png").size == (64, 64)
    assert realcustom("repeat", "out.png").code == 0
    assert Path("out.png").read_bytes() == Path("out-repeat.png").read_bytes()


def test_train_runs_a_recipe_and_resumes(realcustom, folder):
    (folder / "line.py").write_text(RECIPE)
    done = realcustom("train", "line.py", "steps=2", "--out", "run")
    assert done.code == 0, done.error
    assert Path(done.lines[-1]).is_dir()
    again = realcustom("train", "line.py", "steps=2", "--out", "run")
    assert again.code == 2
    assert "resume" in again.error
    assert realcustom("train", "line.py", "--max-steps", 3, "--out", "run", "--resume").code == 0


def test_data_stickers_writes_shards(realcustom, folder):
    from realcustom.data.vocabulary import DEFAULT_WORDS

    for word in DEFAULT_WORDS:
        (folder / "subjects" / word.replace(" ", "_")).mkdir(parents=True)
        for number in range(2):
            cutout = Image.new("RGBA", (32, 32))
            ImageDraw.Draw(cutout).ellipse((4, 4, 28, 28), fill=(200, 40 * number, 0, 255))
            cutout.save(folder / "subjects" / word.replace(" ", "_") / f"noto_{number}.png")
    done = realcustom("data", "stickers", "subjects", "--out", "shards", "--count", 3, "--per-shard", 2, "--size", 64)
    assert (done.code, done.error) == (0, "")
    assert done.lines == ["shards/stickers-000000.tar", "shards/stickers-000001.tar"]
    assert all(Path(line).stat().st_size > 0 for line in done.lines)
