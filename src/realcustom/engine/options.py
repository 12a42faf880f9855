"""How a model is loaded: one record for every door, stored with each image. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike, fspath
from typing import Any

from realcustom.checks import finite, text
from realcustom.hub.places import located

OFFLOADS = ("model", "group", "sequential")
DTYPES = ("float32", "float16", "bfloat16")
MAX_LORAS = 8
MAX_CONTROLNETS = 4
LISTS = ("lora", "controlnet")
# Stored apart, as what they turned out to be on the machine that made the image.
ELSEWHERE = ("device", "dtype")
# They change where and how fast an image is made, not what it shows.
WITHOUT_EFFECT = (*ELSEWHERE, "offload", "compiled")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A model and how it is loaded.

    model: a bundled or named model, a folder in diffusers' layout, or a hub id.
    adapter: folder or hub id (owner/name[/folder...][@revision]) of an adapter; what else lies there
        (`reference_encoder`, `unet`, `vae`, `scheduler`, `pipeline.json`) replaces the base's. None: the adapter that
        the model's own folder holds.
    reference_encoder: folder or hub id of another encoder than the adapter brings.
    base_file: a single checkpoint file of the same family whose networks replace the base's.
    revision: of the model on the hub; of a named one BASE or BASE+WEIGHTS.
    variant: of the base's weights, such as "fp16"; "full" is the one without a name. None takes half precision where
        it is fetched.
    device: "cpu", "cuda", "cuda:1", "mps" ...; None takes a GPU if there is one.
    dtype: "float32", "float16" or "bfloat16"; None is float32 on a CPU, bfloat16 elsewhere.
    offload: keep on the accelerator only the network at work ("model"), only its layers at work, fetched ahead
        ("group"), or only the layer at work ("sequential"); None keeps everything there.
    lora: files, folders or hub ids of LoRA weights, each with an optional ":scale".
    scheduler: a name of `realcustom.pipelines.samplers.SCHEDULERS`; None is the adapter's or the base's own.
    compiled: run the transformer blocks through `torch.compile`.
    vae_tiling: decode the picture in tiles, which takes less memory and can leave faint seams.
    controlnet: folders or hub ids of ControlNets of the base's family, or the bundled miniature-outline, each as
        "NAME=SOURCE"; one alone needs no name.
    """

    model: str = "miniature"
    adapter: str | None = None
    reference_encoder: str | None = None
    base_file: str | None = None
    revision: str | None = None
    variant: str | None = None
    device: str | None = None
    dtype: str | None = None
    offload: str | None = None
    lora: tuple[str, ...] = ()
    scheduler: str | None = None
    compiled: bool = False
    vae_tiling: bool = False
    controlnet: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, PathLike):
                object.__setattr__(self, entry.name, value := fspath(value))
            if entry.name not in (*LISTS, "compiled", "vae_tiling") and value is not None:
                text(f"The {entry.name.replace('_', ' ')}", value)
        if self.offload is not None and self.offload not in OFFLOADS:
            raise ValueError(f'There is no offload "{self.offload}"; there are {", ".join(OFFLOADS)}.')
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f'There is no dtype "{self.dtype}"; there are {", ".join(DTYPES)}.')
        for name in ("compiled", "vae_tiling"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        loras = (self.lora,) if isinstance(self.lora, str) else self.lora
        if not isinstance(loras, (list, tuple)) or len(loras) > MAX_LORAS:
            raise ValueError(f"The LoRAs must be a list of at most {MAX_LORAS} files or hub ids.")
        object.__setattr__(self, "lora", tuple(loras))
        for lora in loras:
            lora_scale(lora)
        nets = (self.controlnet,) if isinstance(self.controlnet, str) else self.controlnet
        if not isinstance(nets, (list, tuple)) or len(nets) > MAX_CONTROLNETS:
            raise ValueError(f"The ControlNets must be a list of at most {MAX_CONTROLNETS} folders or hub ids.")
        object.__setattr__(self, "controlnet", tuple(nets))
        names = [control_name(net)[0] for net in nets]
        if len(set(names)) < len(names):
            raise ValueError("Several ControlNets need names of their own: outline=SOURCE.")

    def located(self) -> LoadOptions:
        """The same, found again from anywhere: files and folders by their absolute paths."""
        places = {name: located(getattr(self, name)) for name in ("model", "adapter", "reference_encoder", "base_file")}
        loras = []
        for lora in self.lora:
            source, scale = lora_scale(lora)
            loras.append(located(source) + ("" if scale == 1.0 else f":{scale:g}"))
        nets = []
        for net in self.controlnet:
            name, source = control_name(net)
            nets.append(f"{name}={located(source)}" if name else located(source))
        return replace(self, **places, lora=tuple(loras), controlnet=tuple(nets))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: model and adapter, and what differs from the defaults."""
        record: dict[str, Any] = {"model": self.model, "adapter": self.adapter}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default:
                record[entry.name] = list(value) if isinstance(value, tuple) else value
        return record

    def record(self) -> dict[str, Any]:
        """What is stored with an image: as `to_dict`, located, without device and dtype, which are stored apart."""
        record = self.located().to_dict()
        return {name: value for name, value in record.items() if name not in ELSEWHERE}

    def deciding(self) -> dict[str, Any]:
        """Of `record`, what decides the images."""
        return {name: value for name, value in self.record().items() if name not in WITHOUT_EFFECT}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], **changes: Any) -> LoadOptions:
        """The inverse of `to_dict`; unknown fields and wrong values are ValueErrors that name them."""
        if not isinstance(record, Mapping):
            raise ValueError("The options of a model must be a record of fields.")
        known = {entry.name for entry in fields(cls)}
        for name in record:
            if name not in known:
                raise ValueError(f"'{name}' is no option of a model; there are {', '.join(sorted(known))}.")
        return cls(**{**record, **changes})


def control_name(net: str) -> tuple[str, str]:
    """Name and source of "NAME=SOURCE" or "SOURCE", whose name is empty."""
    name, sign, source = text("A ControlNet", net).partition("=")
    if not sign:
        return "", name
    if not name.strip() or not source.strip():
        raise ValueError(f'A ControlNet must look like SOURCE or outline=SOURCE, not "{net}".')
    return name.strip(), source.strip()


def lora_scale(lora: str) -> tuple[str, float]:
    """Source and scale of "SOURCE[:scale]"; ValueError for one out of -10 to 10."""
    source, colon, number = text("A LoRA", lora).rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:
        return lora, 1.0  # the colon belongs to the source
    source = source if colon else lora
    if not source:
        raise ValueError(f'A LoRA must look like SOURCE or SOURCE:0.8, not "{lora}".')
    return source, finite("The scale of a LoRA", scale, -10.0, 10.0)
