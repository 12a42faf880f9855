"""The miniature's base model: text-to-image on cached latents of the sticker world."""

import os
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from realcustom.data.vocabulary import caption_corpus
from realcustom.miniature.builders import build_scheduler, build_text_encoder, build_unet
from realcustom.miniature.tokenizer import train_tokenizer
from realcustom.miniature.world import BASE
from realcustom.training.base import BaseExport, BaseLoss, TextGrid, as_tokens, tokenize
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.folding import widen_unet
from realcustom.training.latents import CacheSettings, LatentCache, cache_latents
from realcustom.training.objective import noisier_timesteps
from realcustom.training.optimizers import muon
from realcustom.training.precision import quick_precision
from realcustom.training.resident import draw_batches, resident
from realcustom.training.stickers import StickerPairs

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))
NOISIER = 2.0  # power of the draw of timesteps
OUTSIDE = 0.3  # weight of the error outside all figures
PROMPTS = (
    "a dog on the beach",
    "a cat in the forest",
    "a red car on a city street",
    "a teddy bear wearing a hat in a living room",
    "a robot in space",
    "an elephant in the desert",
    "a penguin in the snow",
    "a rabbit wearing sunglasses in a meadow",
    "a blue fish underwater",
    "a rocket under the night sky",
    "a lion and a turtle in the mountains",
    "an owl in the forest, watercolor",
)


def recipe(
    out: Path = Path("outputs/base"),
    vae: Path = Path("outputs/autoencoder/export"),
    cache: Path = Path("outputs/latents"),
    subjects: Path = SUBJECTS,
    start: str = "",
    count: int = 100_000,
    steps: int = 14_000,
    minutes: float = 0.0,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    workers: int = 2,
    compile: bool = False,
    seed: int = 0,
) -> TrainConfig:
    """About 450,000 samples. `start` is the exported folder of an earlier run to go on from, widened where the
    autoencoder has more channels; empty starts anew.

    The cache is filled first, by `workers` processes; it holds references too, so that the adapter trains on it.
    `minutes` ends the training after so long if its steps have not; 0 is no limit. `compile` needs a C++ compiler and
    makes the training a quarter faster.
    """
    return TrainConfig(
        name="miniature-base",
        out=out,
        build=partial(build, vae, cache, subjects, start, CacheSettings(count=count, references=True, workers=workers)),
        steps=steps,
        minutes=minutes or None,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.9995,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.95, 0.99),
            weight_decay=0.01,
            schedule=partial(hold_and_decay, warmup=300, decay=0.25, floor=0.05),
            build=muon,
        ),
        checkpoint=CheckpointSettings(every_minutes=8),
        log_every=50,
        sample_every=1000,
        compile=("unet",) if compile else (),
        seed=seed,
    )


def build(vae: Path, cache: Path, subjects: Path, start: str, settings: CacheSettings) -> Parts:
    """U-Net and text encoder from random weights or from an earlier export; the latents lie where they are used."""
    with PartialState().main_process_first():
        cache_latents(StickerPairs(subjects, BASE), vae, cache, settings)
        tokenizer = kept_tokenizer(Path(start or cache) / "tokenizer")
    scheduler, autoencoder = build_scheduler(), AutoencoderTiny.from_pretrained(vae)
    if start:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet")
        unet = widen_unet(unet, autoencoder.config.latent_channels)
        text_encoder = CLIPTextModel.from_pretrained(start, subfolder="text_encoder")
    else:
        unet, text_encoder = build_unet(autoencoder.config.latent_channels), build_text_encoder(tokenizer)
    if not torch.accelerator.is_available():
        unet.set_attn_processor(
            AttnProcessor()
        )  # explicit products train a quarter faster on a CPU than fused attention
    source = LatentCache(cache, partial(tokenize, tokenizer), settings.count)
    prompts, empty = (torch.from_numpy(tokenize(tokenizer, texts)).long() for texts in (list(PROMPTS), [""]))
    return Parts(
        trained={"unet": unet, "text_encoder": text_encoder},
        frozen={"vae": autoencoder},
        # As for the adapter: Min-SNR weights would leave nearly none on high noise, where word and place are decided.
        # Scenes are learned long before subjects are.
        loss=BaseLoss(
            scheduler=scheduler,
            empty_tokens=empty[0],
            min_snr=None,
            draw=partial(noisier_timesteps, power=NOISIER),
            outside=OUTSIDE,
        ),
        data=partial(draw_batches, rows=resident(source.arrays()), finish=as_tokens),
        sample=TextGrid(scheduler=scheduler, tokens=prompts, empty_tokens=empty[0]),
        export=BaseExport(tokenizer=tokenizer, scheduler=scheduler),
    )


def kept_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder, trained there first if it is empty.

    Another training may order equally frequent merges otherwise; a run that goes on must read the same tokens.
    """
    if not folder.is_dir():
        train_tokenizer(caption_corpus(4000)).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
