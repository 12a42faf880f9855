"""The whole miniature from nothing: autoencoder, base model, reference encoders, RealCustom++ adapter, package.

`python recipes/miniature.py [subjects] [outputs] [minutes=M] [stages=NAME,NAME] [vae=FOLDER] [count=N] [size=B]`. Each
part goes on from its newest checkpoint, so that the command can be stopped and started again. From speeds measured on
two CPU cores of two machines (46 pictures and 60 samples a second, and by two processes 100 references and 60 samples)
it takes five and a half to six and a half hours there. It has not been run on a GPU.

minutes: the time for all chosen parts together, shared out by `SHARES`; every part then ends with its learning rate
    decayed. Without it the parts make the steps of their recipes.
stages: of `autoencoder`, `base`, `encoder`, `adapter`, `drawing`; all of them, and then the package.
vae: an exported autoencoder for the base instead of the one that is trained here.
count: records of the base's cache. All cores draw them while the autoencoder trains on those that are there.
size: batch size of autoencoder and base; on a GPU 128 and 1024, with compiled networks, else the recipes'.
"""

import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch

from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, SCENE_PHRASES, STYLES
from realcustom.data.world import WorldSettings
from realcustom.hub.bundled import MODELS
from realcustom.miniature.world import BASE
from realcustom.training.checkpoints import PREFIX
from realcustom.training.config import TrainConfig
from realcustom.training.latents import CacheSettings, draw_records
from realcustom.training.loop import train
from realcustom.training.miniature import export_miniature
from realcustom.training.recipes import configure, load_recipe, parse_options
from realcustom.training.stickers import StickerPairs

SHARES = {"autoencoder": 0.25, "base": 0.5, "encoder": 0.05, "adapter": 0.12, "drawing": 0.08}  # of the minutes
LARGE = {"autoencoder": 128, "base": 1024}  # batches that fill a GPU
LARGE_RATE = {"autoencoder": 2e-3, "base": 2e-3}


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the cut-outs are, where the runs go, and where the finished model goes.

    vae: an exported autoencoder for the base; None for the one that is trained here.
    """

    subjects: Path
    outputs: Path
    model: Path = MODELS["miniature"]
    vae: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which parts are trained, for how long in all, and on what; the module's text says what the numbers mean."""

    stages: tuple[str, ...] = tuple(SHARES)
    minutes: float | None = None
    count: int = 100_000
    size: int | None = None

    def __post_init__(self):
        unknown = [name for name in self.stages if name not in SHARES]
        if unknown:
            raise ValueError(f"There are the stages {', '.join(SHARES)}, not {', '.join(unknown)}.")


def main(folders: Folders, plan: Plan | None = None) -> None:
    """Train the parts in order, then package them if they are all there.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped a part; none begins on a half-trained one.
    """
    plan, here, began = plan or Plan(), Path(__file__).parent, time.monotonic()
    listed = stages(folders, plan)
    drawing = draw_beside(folders, plan) if "autoencoder" in plan.stages else None
    for place, (name, recipe, options) in enumerate(listed):
        if drawing is not None and name != "autoencoder":
            drawing.join()
        config = configure(load_recipe(here / f"{recipe}.py"), {key: str(value) for key, value in options.items()})
        if plan.minutes is not None:
            left = plan.minutes - (time.monotonic() - began) / 60
            config = config.replace(minutes=budget(left, [stage for stage, *_ in listed[place:]]))
        last = train(config, resume=True)
        if not finished(last, config):
            raise SystemExit(f"Stopped in {name}; the same command goes on from {last}.")
    if plan.stages == tuple(SHARES):
        outputs = folders.outputs
        export_miniature(outputs / "base" / "export", outputs / "drawing" / "export", folders.model, knowledge())


def finished(last: Path, config: TrainConfig) -> bool:
    """Whether a checkpoint is that of the last step, or of the end of the time."""
    if int(last.name.removeprefix(PREFIX)) >= config.steps:
        return True
    if config.minutes is None:
        return False
    return json.loads((last / "state.json").read_text())["seconds_used"] >= 60 * config.minutes


def budget(left: float, stages: list[str]) -> float:
    """Minutes of the first of the stages that are still to come; at least a second."""
    return max(1 / 60, left * SHARES[stages[0]] / sum(SHARES[stage] for stage in stages))


def stages(folders: Folders, plan: Plan) -> list[tuple[str, str, dict]]:
    """Name, recipe and options of every chosen training, in order."""
    outputs, subjects = folders.outputs, folders.subjects
    base, encoder = outputs / "base" / "export", outputs / "encoder" / "export"
    vae = folders.vae or outputs / "autoencoder" / "export"
    adapter = {"subjects": subjects, "base": base, "cache": outputs / "adapter-latents", "encoder": encoder}
    drawing = {"start": outputs / "adapter" / "export", "drawing": True, "seen": 256_000, "steps": 6000}
    whole = [
        ("autoencoder", "miniature_autoencoder", {"subjects": subjects, "pictures": outputs / "latents"}),
        ("base", "miniature_base", {"subjects": subjects, "vae": vae, "cache": outputs / "latents"}),
        ("encoder", "miniature_encoder", {"subjects": subjects, "base": base}),
        ("adapter", "miniature_adapter", {**adapter, "start": encoder}),
        ("drawing", "miniature_adapter", {**adapter, **drawing}),
    ]
    return [
        (name, recipe, {**options, **sizes(name, plan), "out": outputs / name})
        for name, recipe, options in whole
        if name in plan.stages
    ]


def sizes(name: str, plan: Plan) -> dict:
    """Options of a training that depend on the device, and the records of the base's cache."""
    options = {"count": plan.count, "workers": os.cpu_count()} if name == "base" else {}
    if name in LARGE and torch.accelerator.is_available():
        options |= {"batch_size": LARGE[name], "learning_rate": LARGE_RATE[name], "compile": True}
    if name in LARGE and plan.size is not None:
        options["batch_size"] = plan.size
    return options


def draw_beside(folders: Folders, plan: Plan) -> Thread:
    """A thread whose processes, one a core, draw the base's records while the autoencoder trains on them."""
    settings = CacheSettings(count=plan.count, references=True, workers=max(2, os.cpu_count()))
    arguments = (StickerPairs(folders.subjects, BASE), folders.outputs / "latents", settings)
    thread = Thread(target=draw_records, args=arguments, daemon=True)
    thread.start()
    return thread


def knowledge() -> dict:
    """What the model was shown, for its card and `realcustom models show miniature`."""
    world = WorldSettings()
    return {
        "words": list(world.words),
        "scenes": [SCENE_PHRASES[scene] for scene in world.scenes],
        "accessories": list(ACCESSORY_PHRASES.values()),
        "colours": list(COLOURS),
        "styles": list(STYLES),
    }


def read_arguments(words: list[str]) -> tuple[Folders, Plan]:
    """Folders and plan of the command line.

    Raises:
        ValueError: an option is unknown or no number.
    """
    places = [Path(word) for word in words if "=" not in word]
    options = parse_options([word for word in words if "=" in word])
    readers = {
        "minutes": float,
        "stages": lambda text: tuple(text.split(",")),
        "count": int,
        "size": int,
        "vae": Path,
    }
    if unknown := sorted(options.keys() - readers.keys()):
        raise ValueError(f"There are the options {', '.join(readers)}, not {', '.join(unknown)}.")
    values = {name: readers[name](text) for name, text in options.items()}
    vae = values.pop("vae", None)
    subjects, outputs = (*places, *(Path("subjects"), Path("outputs"))[len(places) :])
    return Folders(subjects=subjects, outputs=outputs, vae=vae), Plan(**values)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(*read_arguments(sys.argv[1:]))
