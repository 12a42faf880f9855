"""The whole miniature from nothing: autoencoder, base model, reference encoders, RealCustom++ adapter, package.

`python recipes/miniature.py [subjects] [outputs]`. Each part goes on from its newest checkpoint, so that the command
can be stopped and started again. From speeds measured on two CPU cores of two machines (46 pictures and 60 samples a
second, and by two processes 100 references and 60 samples) it takes five and a half to six and a half hours there. It
has not been run on a GPU.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, SCENE_PHRASES, STYLES
from realcustom.data.world import WorldSettings
from realcustom.hub.bundled import MODELS
from realcustom.training.checkpoints import PREFIX
from realcustom.training.loop import train
from realcustom.training.miniature import export_miniature
from realcustom.training.recipes import configure, load_recipe


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the cut-outs are, where the runs go, and where the finished model goes."""

    subjects: Path
    outputs: Path
    model: Path = MODELS["miniature"]


def main(folders: Folders) -> None:
    """Train the parts in order, then package them.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped a part; none begins on a half-trained one.
    """
    here, outputs = Path(__file__).parent, folders.outputs
    for name, options in stages(folders.subjects, outputs):
        config = configure(load_recipe(here / f"{name}.py"), {key: str(value) for key, value in options.items()})
        last = train(config, resume=True)
        if int(last.name.removeprefix(PREFIX)) < config.steps:
            raise SystemExit(f"Stopped before the last of {config.steps} steps; the same command goes on from {last}.")
    export_miniature(outputs / "base" / "export", outputs / "drawing" / "export", folders.model, knowledge())


def stages(subjects: Path, outputs: Path) -> list[tuple[str, dict]]:
    """Recipe and options of every training, in order."""
    base, encoder = outputs / "base" / "export", outputs / "encoder" / "export"
    adapter = {"subjects": subjects, "base": base, "cache": outputs / "adapter-latents", "encoder": encoder}
    return [
        ("miniature_autoencoder", {"subjects": subjects, "out": outputs / "autoencoder"}),
        (
            "miniature_base",
            {
                "subjects": subjects,
                "vae": outputs / "autoencoder" / "export",
                "cache": outputs / "latents",
                "out": outputs / "base",
            },
        ),
        ("miniature_encoder", {"subjects": subjects, "base": base, "out": outputs / "encoder"}),
        ("miniature_adapter", {**adapter, "start": encoder, "out": outputs / "adapter"}),
        (
            "miniature_adapter",
            {
                **adapter,
                "start": outputs / "adapter" / "export",
                "out": outputs / "drawing",
                "drawing": True,
                "seen": 256_000,
                "steps": 6000,
            },
        ),
    ]


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


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = [Path(word) for word in sys.argv[1:]]
    main(
        Folders(
            subjects=words[0] if words else Path("subjects"), outputs=words[1] if len(words) > 1 else Path("outputs")
        )
    )
