"""Every recipe runs: the real backbones in their dry form, the miniature from cut-outs to the packaged folder."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from realcustom import Engine, Request
from realcustom.data.records import Record
from realcustom.data.shards import write_shards
from realcustom.data.vocabulary import caption_corpus
from realcustom.data.world import StickerWorld, WorldSettings
from realcustom.encoders.image import ReferenceEncoder
from realcustom.miniature.tokenizer import train_tokenizer
from realcustom.models.adapter import RealCustomAdapter
from realcustom.pipelines.sd15 import RealCustomPipeline
from realcustom.training import latents, miniature
from realcustom.training.adapter import AdapterLoss, squash
from realcustom.training.backbones import RandomRecords
from realcustom.training.checkpoints import PREFIX, list_checkpoints
from realcustom.training.conditions import latents_of
from realcustom.training.config import Feed
from realcustom.training.curriculum import reconstruction_only
from realcustom.training.dry import IMAGE_SIZE, dry_base, dry_base_xl
from realcustom.training.latents import CacheSettings, LatentCache, cache_latents
from realcustom.training.logs import read_log
from realcustom.training.loop import train
from realcustom.training.miniature import export_miniature
from realcustom.training.recipes import configure, load_recipe
from realcustom.training.streams import Framing, stream_batches

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name, **options):
    return configure(load_recipe(RECIPES / f"{name}.py"), {key: str(value) for key, value in options.items()})


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sd15_realcustom", "sdxl_realcustom_plus"])
def test_real_backbones_in_dry_form(name, tmp_path):
    config = recipe(name, dry=True, out=tmp_path / "whole")
    before = config.build()
    start = {key: value.clone() for key, value in before.trained["adapter"].state_dict().items()}
    unet = before.frozen["unet"]
    stock = dry_base_xl() if "xl" in name else dry_base()
    before.close()
    assert {type(p) for p in unet.attn_processors.values()} == {type(p) for p in stock["unet"].attn_processors.values()}
    first = train(config)
    assert len(read_log(tmp_path / "whole" / "log.jsonl")) == 5
    adapter = RealCustomAdapter.from_pretrained(tmp_path / "whole" / "export" / "adapter")
    assert {key: value.shape for key, value in adapter.state_dict().items()} == {k: v.shape for k, v in start.items()}
    stock_class = StableDiffusionXLPipeline if "xl" in name else StableDiffusionPipeline
    more = {} if "xl" in name else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock["tokenizer_2"] = stock["tokenizer"]
    stock = {name: part for name, part in stock.items() if "xl" in config.name or not name.endswith("_2")}
    stock_class(**stock, **more).save_pretrained(tmp_path / "base")
    engine = Engine.load(str(tmp_path / "base"), adapter=str(tmp_path / "whole" / "export"), device="cpu")
    made = engine.run(Request(prompt="a dog on the beach", subjects={"dog": picture(0)}, steps=1))
    assert made.masks["dog"].max() > 0, "the export needs no further files"
    part = config.replace(out=tmp_path / "part")
    train(part.replace(steps=3))
    second = train(part, resume=True)
    weights = [load_file(folder / "trained.adapter.safetensors") for folder in (first, second)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_every_adapter_weight_gets_a_gradient_and_nothing_else(tmp_path):
    for name in ("sd15_realcustom", "sdxl_realcustom_plus"):
        parts = recipe(name, dry=True).build()
        modules = {**parts.frozen, **parts.trained}
        for module in parts.frozen.values():
            module.requires_grad_(False)
        batch = next(parts.data(Feed(start=0, batch_size=4, seed=0)))
        loss, _ = parts.loss(modules, batch, torch.Generator().manual_seed(1))
        loss.backward()
        without = [key for key, weight in parts.trained["adapter"].named_parameters() if weight.grad is None]
        assert without == []
        assert all(weight.grad is None for module in parts.frozen.values() for weight in module.parameters())
        parts.close()


def test_a_dropped_reference_is_the_black_image():
    parts = recipe("sdxl_realcustom_plus", dry=True).build()
    modules = {**parts.frozen, **parts.trained}
    seen = []
    parts.frozen["reference_encoder"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss: AdapterLoss = parts.loss
    lost_all = AdapterLoss(**{**vars(loss), "dropout": type(loss.dropout)(text=0.0, reference=1.0, both=0.0)})
    batch = next(parts.data(Feed(start=0, batch_size=2, seed=0)))
    for objective in (
        lost_all,
        AdapterLoss(**{**vars(loss), "dropout": type(loss.dropout)(text=0, reference=0, both=0)}),
    ):
        objective(modules, batch, torch.Generator().manual_seed(0))
    assert float(seen[0].abs().max()) == 0
    assert torch.equal(seen[1], squash(batch["references"], parts.frozen["reference_encoder"].pixel_size))
    parts.close()


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_only_noise_beside_a_reference_is_offset(lost):
    parts = recipe("sdxl_realcustom_plus", dry=True).build()
    loss: AdapterLoss = parts.loss
    dropout = type(loss.dropout)(text=0.0, reference=lost, both=0.0)
    seen = []
    parts.frozen["unet"].register_forward_pre_hook(lambda module, args: seen.append(args[0].abs().amax((1, 2, 3))))
    batch = next(parts.data(Feed(start=0, batch_size=4, seed=0)))
    batch["subjects"] = torch.full((4, *latents_of(parts.frozen, batch, torch.Generator()).shape[-2:]), 255)
    objective = AdapterLoss(**{**vars(loss), "dropout": dropout, "offset": 1000.0})
    objective({**parts.frozen, **parts.trained}, batch, torch.Generator().manual_seed(0))
    assert bool((seen[0] > 20).all()) is not bool(lost)
    parts.close()


def test_presence_is_a_factor_of_the_visual_values():
    parts = recipe("sdxl_realcustom_plus", dry=True).build()
    modules, loss = {**parts.frozen, **parts.trained}, parts.loss
    batch = next(parts.data(Feed(start=0, batch_size=2, seed=0)))

    def value(presence):
        objective = AdapterLoss(**{**vars(loss), "presence": presence})
        return objective(modules, batch, torch.Generator().manual_seed(0))[0].detach()

    halved, whole = value(0.5), value(1.0)
    assert not torch.allclose(halved, whole)
    with torch.no_grad():
        for layer in modules["adapter"].to_v:
            layer.weight.mul_(2)
    torch.testing.assert_close(value(0.5), whole)
    parts.close()


def test_the_miniature_from_cutouts_to_the_packaged_folder(cutouts, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 8)
    shared = {"subjects": cutouts, "batch_size": 2, "steps": 2}
    short = {"sample_every": None, "log_every": 1}
    train(recipe("miniature_autoencoder", **shared, workers=0, out=tmp_path / "vae").replace(**short))
    base = {"vae": tmp_path / "vae/export", "cache": tmp_path / "latents", "count": 16, "workers": 1}
    train(recipe("miniature_base", **shared, **base, out=tmp_path / "base").replace(**short))
    adapter = {"base": tmp_path / "base/export", "cache": tmp_path / "own-latents", "count": 16}
    encoder = {"base": tmp_path / "base/export", "workers": 0, "out": tmp_path / "encoder"}
    train(recipe("miniature_encoder", **shared, **encoder).replace(log_every=1))
    adapter["start"] = str(tmp_path / "encoder/export")
    # Sample grids between the steps share the U-Net, and its processors, with the training.
    monkeypatch.setattr(miniature, "AdapterGrid", partial(miniature.AdapterGrid, steps=1))
    sampled = {"sample_every": 1, "log_every": 1}
    train(recipe("miniature_adapter", **shared, **adapter, workers=1, out=tmp_path / "plus").replace(**sampled))
    assert len(list((tmp_path / "plus/samples").glob("*.png"))) == 2
    second = adapter | {"start": str(tmp_path / "plus/export"), "drawing": True, "out": tmp_path / "drawing"}
    train(recipe("miniature_adapter", **shared, **second, workers=1).replace(**short))
    shared.pop("subjects")
    adapter["encoder"] = adapter.pop("start")
    train(recipe("miniature_realcustom", **shared, **adapter, out=tmp_path / "plain").replace(**short))
    first, second = (
        load_file(folder / "export/reference_encoder/diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "encoder", tmp_path / "plain")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("plus", "drawing", "plain"):
        folder = export_miniature(
            tmp_path / "base/export", tmp_path / name / "export", tmp_path / "model" / name, {"a": 1}
        )
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 60e6
        assert json.loads((folder / "knows.json").read_text()) == {"a": 1}
        pipeline = RealCustomPipeline.from_pretrained(folder)
        networks = ("unet", "vae", "text_encoder", "reference_encoder", "adapter")
        assert {getattr(pipeline, network).dtype for network in networks} == {torch.float32}
        pipeline.set_progress_bar_config(disable=True)
        reference = Image.new("RGB", (40, 60), "red")
        out = pipeline("a dog on the beach", {"dog": reference}, num_inference_steps=1)
        assert out.images[0].size == (128, 128)
    assert isinstance(pipeline.reference_encoder, ReferenceEncoder)


def test_the_trainings_of_the_whole_miniature_follow_each_other(tmp_path):
    module = load_module("miniature")
    folders = module.Folders(subjects=tmp_path / "s", outputs=tmp_path)
    made = [recipe(name, **options) for _, name, options in module.stages(folders, module.Plan())]
    assert [config.name for config in made] == [
        "miniature-autoencoder",
        "miniature-base",
        "miniature-encoder",
        "miniature-adapter",
        "miniature-adapter",
    ]
    colours, drawing = (config.build.args[0] for config in made[3:])
    assert colours.base == drawing.base == made[1].out / "export"
    assert colours.start == colours.encoder == drawing.encoder == str(made[2].out / "export")
    assert drawing.start == str(made[3].out / "export")
    first, second = (config.steps * config.batch_size for config in made[3:])
    assert [(run.seen, run.samples) for run in (colours, drawing)] == [(0, first), (first, first + second)]
    noises = [config.build.args[-1] for config in made[3:]]
    assert noises[0].offset > noises[1].offset == 0
    means = [float(noise.draw(4000, 1000, torch.Generator().manual_seed(0)).float().mean()) for noise in noises]
    assert means[0] > 700 > means[1] > 500


def test_no_part_of_the_miniature_begins_on_a_half_trained_one(tmp_path, monkeypatch):
    module, trained = load_module("miniature"), []

    def stopped(config, resume):
        trained.append(config)
        return config.out / "checkpoints" / f"{PREFIX}{config.steps - (len(trained) > 1):08d}"

    monkeypatch.setattr(module, "train", stopped)
    monkeypatch.setattr(module, "draw_records", lambda *_: None)
    with pytest.raises(SystemExit, match=r"Stopped in base; the same command goes on from .*base"):
        module.main(module.Folders(subjects=tmp_path, outputs=tmp_path, model=tmp_path / "model"))
    assert [config.name for config in trained] == ["miniature-autoencoder", "miniature-base"]
    assert not (tmp_path / "model").exists()


def test_the_command_of_the_miniature_is_read(tmp_path):
    module = load_module("miniature")
    folders, plan = module.read_arguments(["s", "minutes=9", "stages=autoencoder,base", "count=64", "vae=a/vae"])
    assert (folders.subjects, folders.outputs, folders.vae) == (Path("s"), Path("outputs"), Path("a/vae"))
    assert (plan.minutes, plan.stages, plan.count, plan.size) == (9.0, ("autoencoder", "base"), 64, None)
    assert [options.get("vae") for *_, options in module.stages(folders, plan)] == [None, Path("a/vae")]
    assert module.budget(6.0, ["autoencoder", "base"]) == pytest.approx(2.0)
    for words in (["hours=1"], ["stages=vae"], ["minutes=long"]):
        with pytest.raises(ValueError, match=r"There are the|could not convert"):
            module.read_arguments(words)


def test_autoencoder_and_base_within_a_time_budget(cutouts, tmp_path, monkeypatch):
    """Records are drawn beside the autoencoder, which reads them as they come; both trainings end by the clock."""
    module = load_module("miniature")
    monkeypatch.setattr(latents, "CHUNK", 8)
    monkeypatch.setattr(module, "draw_records", lambda pairs, folder, settings: latents.draw_records(
        pairs, folder, CacheSettings(count=16, references=True)))  # fmt: skip
    plan = module.Plan(stages=("autoencoder", "base"), minutes=3 / 60, count=16, size=2)
    train_tokenizer(caption_corpus(50)).save_pretrained(tmp_path / "latents" / "tokenizer")
    module.main(module.Folders(subjects=cutouts, outputs=tmp_path, model=tmp_path / "model"), plan)
    for name in ("autoencoder", "base"):
        assert (tmp_path / name / "export").is_dir()
        assert list_checkpoints(tmp_path / name / "checkpoints")
    assert not (tmp_path / "model").exists()


class _Pairs:
    def sample(self, index):
        image = np.full((16, 16, 3), index, np.uint8)
        mask = np.zeros((16, 16), bool)
        mask[: 1 + index] = True
        return {
            "image": image,
            "reference": image + 100,
            "mask": mask,
            "figures": mask[None],
            "caption": f"a dog {index}",
            "difficulty": index / 16,
        }


def test_latent_cache_is_the_autoencoders_output_and_grows(tmp_path, monkeypatch):
    from diffusers import AutoencoderTiny

    monkeypatch.setattr(latents, "CHUNK", 4)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(0, 1),
        num_decoder_blocks=(1, 0), latent_channels=3, scaling_factor=0.5,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    cache = tmp_path / "cache"
    cache_latents(_Pairs(), tmp_path / "vae", cache, CacheSettings(count=4, references=True, cells=8))
    made = (cache / "chunk-00000" / "latents.npy").stat().st_mtime_ns
    cache_latents(_Pairs(), tmp_path / "vae", cache, CacheSettings(count=7, references=True, cells=8))
    assert (cache / "chunk-00000" / "latents.npy").stat().st_mtime_ns == made
    source = LatentCache(cache, lambda captions: np.arange(len(captions))[:, None])
    assert source.size == 8
    indices = np.array([6, 1])
    batch = source.batch(indices)
    assert batch["tokens"].tolist() == [[6], [1]]
    assert source.references.take(indices)[:, 0, 0, 0].tolist() == [106, 101]
    assert source.difficulty[indices].tolist() == [6 / 16, 1 / 16]
    rows = source.subjects.take(indices)[:, :, 0]  # 8 x 8 cells of two rows of pixels
    assert rows.tolist() == [[255, 255, 255, 128, 0, 0, 0, 0], [255, 0, 0, 0, 0, 0, 0, 0]]
    pixels = torch.stack([torch.full((3, 16, 16), float(index)) for index in indices]) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latents * 0.5
    torch.testing.assert_close(batch["latents"].float(), expected, atol=0.02, rtol=0.02)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="another autoencoder"):
        cache_latents(_Pairs(), tmp_path / "vae", cache, CacheSettings(count=4))


def test_streamed_batches_resume_and_choose_references(cutouts, tmp_path):
    world = StickerWorld(cutouts, WorldSettings(size=32, reference_size=24, plates=1, two_subjects=0))
    write_shards(world, range(12), tmp_path, per_shard=4)
    framing = Framing(
        size=16, reference_size=20, tokenize=lambda captions: np.array([[len(text)] for text in captions])
    )
    options = {"pattern": str(tmp_path), "framing": framing, "samples": 100}

    def read(count, start, curriculum):
        stream = stream_batches(Feed(start=start, batch_size=2, seed=5), curriculum=curriculum, **options)
        return [next(stream) for _ in range(count)]

    whole, rest = read(9, 0, reconstruction_only()), read(3, 6, reconstruction_only())
    for first, second in zip(whole[6:], rest, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole[0]["pixels"].shape == (2, 3, 16, 16)
    assert whole[0]["sizes"].tolist()[0] == [32, 32, 0, 0, 16, 16]
    record = world.record(0)
    assert isinstance(record, Record)
    own = framing([record])
    assert not torch.equal(own["own"], own["references"])


def test_dry_records_depend_on_the_index_only():
    source = RandomRecords(dry_base()["tokenizer"], IMAGE_SIZE, 32)
    first, second = source.batch(np.array([3, 4])), source.batch(np.array([3, 4]))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["pixels"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_small_figures_weigh_more():
    figures = np.zeros((3, 16, 16), bool)
    figures[0, :8, :8] = True
    figures[1, 12:, 12:] = True
    figures[2, 8:10, 0:2] = True
    weights = latents.emphasis(figures, (8, 8))
    assert weights.dtype == np.float16
    assert weights.shape == (8, 8)
    assert (float(weights[0, 0]), float(weights[7, 7]), float(weights[4, 0])) == (1, 2, latents.SMALLEST)
    assert not weights[4:, 1:6].any()
