"""diffusers' `callback_on_step_end` on our loop: what it may see, and what becomes of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from realcustom.models.backbone import Text
from realcustom.pipelines.denoise import Step

EMBEDS = "prompt_embeds"
# Names of SDXL's callback tensors -> names of the network's further conditions.
ADDED = {"add_text_embeds": "text_embeds", "add_time_ids": "time_ids"}
NEGATIVE = {"negative_prompt_embeds": EMBEDS}
NEGATIVE |= {"negative_pooled_prompt_embeds": "add_text_embeds", "negative_add_time_ids": "add_time_ids"}


@dataclass(frozen=True)
class StepTensors:
    """A step callback with the names of the tensors it wants.

    As in diffusers, `prompt_embeds` and what belongs to it hold the negative rows before the positive ones while the
    step is guided, and a callback that returns the positive ones alone, or sets the pipeline's `_guidance_scale`,
    changes the steps to come.
    """

    callback: Callable | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, callback: Callable | None, names: Sequence[str], pipeline) -> StepTensors:
        """The callback of a call; a `PipelineCallback` says itself what it wants.

        Raises:
            ValueError: a tensor is wanted that this pipeline does not have.
        """
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        allowed = pipeline._callback_tensor_inputs
        for name in names:
            if name not in allowed:
                raise ValueError(f'A callback cannot have "{name}" here; there are {", ".join(allowed)}.')
        return cls(callback, tuple(names))

    def tell(self, pipeline, step: Step) -> None:
        """Call it after a step, and put what it returns into the step."""
        if self.callback is None:
            return
        scale = pipeline._guidance_scale
        wanted = {name: _offered(step, name) for name in self.names}
        returned = self.callback(pipeline, step.index, step.timestep, dict(wanted)) or {}
        changed = {name: value for name, value in returned.items() if name in self.names and value is not wanted[name]}
        step.latents = changed.pop("latents", step.latents)
        if pipeline._guidance_scale != scale:
            step.guidance = step.guidance.with_scale(pipeline._guidance_scale)
        changed.pop("masks", None)
        if changed:
            _exchange(step, changed)


def _offered(step: Step, name: str) -> torch.Tensor | None:
    conditions = step.conditions
    if name in ("latents", "masks"):
        return getattr(step, name)
    if name in NEGATIVE:
        return None if conditions.negative is None else _tensor(conditions.negative, NEGATIVE[name])
    texts = [conditions.text]
    if conditions.negative is not None and step.guidance.needs_negative:
        texts.insert(0, conditions.negative)
    return torch.cat([_tensor(text, name) for text in texts])


def _exchange(step: Step, changed: dict[str, torch.Tensor]) -> None:
    """New tensors into the step's texts: all rows are negative, then positive; half of them are the positive ones."""
    text, negative = step.conditions.text, step.conditions.negative
    rows = text.embeds.shape[0]
    for name, value in changed.items():
        if name in NEGATIVE:
            negative = None if negative is None else _with(negative, NEGATIVE[name], value)
            continue
        text = _with(text, name, value[-rows:].expand(rows, *value.shape[1:]))
        if negative is not None and value.shape[0] == 2 * rows:
            negative = _with(negative, name, value[:rows])
    step.conditions = replace(step.conditions, text=text, negative=negative)


def _tensor(text: Text, name: str) -> torch.Tensor:
    return text.embeds if name == EMBEDS else text.added[ADDED[name]]


def _with(text: Text, name: str, value: torch.Tensor) -> Text:
    if name == EMBEDS:
        return replace(text, embeds=value)
    return replace(text, added={**text.added, ADDED[name]: value})
