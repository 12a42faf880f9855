"""One denoising call: guidance branch -> mask -> generation branch, step by step, on any backbone.

Shapes: B images, S subjects, T text tokens, (G, g) the mask's grid; latents as the backbone takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from realcustom.guidance.guidance_scale import Guidance
from realcustom.guidance.mask import MaskSettings, fresh
from realcustom.guidance.recorder import MaskRecorder
from realcustom.models.backbone import Backbone, Branch, Text
from realcustom.models.control import Control
from realcustom.pipelines.canvas import Rest


class References(Protocol):
    """The references as the backbone's adapter gives them to a pass; the same at every step, or made of its state."""

    def positive(self, latents: torch.Tensor, timestep: torch.Tensor, masks: torch.Tensor) -> Any:
        """For the generation branch.

        Args:
            latents: as the network takes them, at unit variance.
            timestep: 0-dimensional.
            masks: (B, S, G, g).
        """

    def negative(self, latents: torch.Tensor, timestep: torch.Tensor, masks: torch.Tensor) -> Any:
        """The same of the all-zero image, for the negative prompt."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything the loop is conditioned on.

    Attributes:
        text, negative: positive and negative prompt; `negative` may be None where the guidance needs none.
        token_weights: (B, S, T), 1 at each subject's target tokens.
        strengths: (S,) factors of the masks, or (B, S).
        regions: (1 or B, S, G, g) in [0, 1] where each subject may be, or None.
        references: of all subjects.
        control: ControlNets' pictures, or None.
    """

    text: Text
    negative: Text | None
    token_weights: torch.Tensor
    strengths: torch.Tensor
    regions: torch.Tensor | None
    references: References
    control: Control | None = None


@dataclass
class Step:
    """What a step computed, and what the next one starts from: the caller may exchange the last three.

    Attributes:
        index: number of the network evaluation, 0-based; some schedulers evaluate a step twice.
        timestep: 0-dimensional, on the host.
        masks: (B, S, G, g) that the step used; None where references act everywhere.
        latents, conditions, guidance: of the next step.
    """

    index: int
    timestep: torch.Tensor
    masks: torch.Tensor | None
    latents: torch.Tensor
    conditions: Conditions
    guidance: Guidance


def scheduler_step(evaluation: int, evaluations: int, steps: int, order: int) -> int:
    """The denoising step (0-based) that a network evaluation (0-based) belongs to.

    Second-order schedulers evaluate every step but the last twice (`order` 2), PNDM its first step twice: the mask's
    early stop and the progress count steps, whatever the scheduler.
    """
    warmup = max(0, evaluations - steps * order)
    return min(max(0, evaluation - warmup) // order, steps - 1)


def guidance_branch(
    backbone: Backbone,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    settings: MaskSettings,
    needs_prediction: bool = False,
    control: Control | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Text only, no reference; its attention maps give the masks.

    Args:
        latents: as the network takes them.
        timestep: 0-dimensional.
        needs_prediction: False ends the pass after the last map, since nobody reads its output.
        control: that acts now.

    Returns:
        masks (B, S, G, g) and, if needed, the text-only prediction.
    """
    recorder = _recorder(backbone, latents, conditions, settings)
    if settings.stride > 1 and not needs_prediction:
        latents = backbone.thinned(latents, settings.stride)
    branch = Branch(text=conditions.text, recorder=recorder, control=control)
    predictions = backbone.predict(latents, timestep, [branch], maps_only=not needs_prediction)
    return recorder.masks(), predictions[0] if needs_prediction else None


@dataclass
class Generated:
    """What a generation pass gives: the predictions of the branches it held, and the next masks."""

    full: torch.Tensor
    negative: torch.Tensor | None = None
    text: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def generation_branch(
    backbone: Backbone,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    masks: torch.Tensor,
    guided: bool,
    record: MaskSettings | None = None,
    control: Control | None = None,
) -> Generated:
    """Text, reference and mask, and in the same batch the negative prompt with the all-zero image and the same mask.

    Args:
        masks: (B, S, G, g).
        guided: whether the negative prompt is in the batch.
        record: lets the guidance branch ride in the same batch and makes the next masks of it; None leaves it out.
        control: that acts now.
    """
    strengths = conditions.strengths.view(-1, masks.shape[1], 1, 1)
    state = (latents, timestep, masks)
    branches = []
    if guided:
        references = conditions.references.negative(*state)
        branches.append(
            Branch(text=conditions.negative, references=references, masks=masks * strengths, control=control)
        )
    references = conditions.references.positive(*state)
    branches.append(Branch(text=conditions.text, references=references, masks=masks * strengths, control=control))
    recorder = None
    if record is not None:
        recorder = _recorder(backbone, latents, conditions, record)
        branches.append(Branch(text=conditions.text, recorder=recorder, control=control))
    predictions = backbone.predict(latents, timestep, branches)
    return Generated(
        negative=predictions.pop(0) if guided else None,
        full=predictions.pop(0),
        text=predictions.pop() if predictions else None,
        masks=None if recorder is None else recorder.masks(),
    )


def _recorder(
    backbone: Backbone, latents: torch.Tensor, conditions: Conditions, settings: MaskSettings
) -> MaskRecorder:
    levels = (backbone.word_levels, backbone.self_levels)
    return MaskRecorder(
        conditions.token_weights, backbone.mask_grid(latents), settings, conditions.regions, levels=levels
    )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the latents are walked down.

    Attributes:
        scheduler: diffusers', its timesteps set.
        steps: number of denoising steps; the evaluations may be more.
        timesteps: the scheduler's, in the order used, on the latents' device.
        step_kwargs: for its `step`.
        beside: (B, c, h, w) that an inpainting network reads behind its latents, or None.
        rest: the start picture around a hole, put back after every step, or None.
    """

    scheduler: Any
    steps: int
    timesteps: torch.Tensor
    step_kwargs: dict
    beside: torch.Tensor | None = None
    rest: Rest | None = None

    def scaled(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The latents as the network takes them; flow-matching schedulers have nothing to scale."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        latents = latents if scale is None else scale(latents, timestep)
        return latents if self.beside is None else torch.cat([latents, self.beside], dim=1)

    def stepped(self, prediction: torch.Tensor, index: int, timestep: torch.Tensor, latents: torch.Tensor):
        """The latents after evaluation `index`, of the network's prediction at `timestep`."""
        latents = self.scheduler.step(prediction, timestep, latents, **self.step_kwargs, return_dict=False)[0]
        return latents if self.rest is None else self.rest.around(latents, self.scheduler, self.timesteps[index + 1 :])


def denoise(
    backbone: Backbone,
    sampling: Sampling,
    latents: torch.Tensor,
    conditions: Conditions,
    guidance: Guidance,
    settings: MaskSettings,
) -> Iterator[Step]:
    """The denoising loop, one `Step` at a time, within `backbone.installed()`.

    Args:
        latents: initial noise, already multiplied by the scheduler's sigma.
        guidance: which formula combines the predictions.

    Yields:
        `Step` after each evaluation; its latents, conditions and guidance are those the next one starts from.
    """
    # Schedulers index their tables with host numbers, the network wants its own device: neither then waits in the loop.
    host, on_device = sampling.timesteps.cpu(), sampling.timesteps.to(latents.device)
    order = getattr(sampling.scheduler, "order", 1)
    settings = replace(settings, rule=fresh(settings.rule))
    masks = None
    for index, timestep in enumerate(host):
        share = index / len(host)
        control = None if conditions.control is None else conditions.control.at(index, len(host))
        scaled = sampling.scaled(latents, timestep)
        updates = masks is None or settings.updates(scheduler_step(index, len(host), sampling.steps, order))
        guided = guidance.negative_at(share)
        reads_text = guided and guidance.text_at(share)
        rides = settings.lagged and masks is not None and (updates or reads_text)
        text = None
        if (updates or reads_text) and not rides:
            new, text = guidance_branch(backbone, scaled, on_device[index], conditions, settings, reads_text, control)
            masks = new if updates else masks
        generated = generation_branch(
            backbone, scaled, on_device[index], conditions, masks, guided, settings if rides else None, control
        )
        text = generated.text if text is None else text
        prediction = guidance.combine(generated.negative, text, generated.full)
        latents = sampling.stepped(prediction, index, timestep, latents)
        step = Step(index, timestep, masks, latents, conditions, guidance)
        yield step
        latents, conditions, guidance = step.latents, step.conditions, step.guidance
        masks = generated.masks if rides and updates else masks


def unmasked(
    backbone: Backbone,
    sampling: Sampling,
    latents: torch.Tensor,
    texts: tuple[Text, Text | None],
    references: Any,
    guidance: Guidance,
    control: Control | None = None,
) -> Iterator[Step]:
    """The denoising loop without a guidance branch: references that act everywhere, or none.

    Args:
        latents: initial noise.
        texts: the prompt, and the negative one or None.
        references: as the backbone's adapter gives them, for both; None: there are none.
        control: ControlNets' pictures, or None.

    Yields:
        `Step` after each evaluation, its masks None.
    """
    empty = torch.empty(0, device=latents.device)
    conditions = Conditions(
        text=texts[0],
        negative=texts[1],
        token_weights=empty,
        strengths=empty,
        regions=None,
        references=references,
        control=control,
    )
    host, on_device = sampling.timesteps.cpu(), sampling.timesteps.to(latents.device)
    for index, timestep in enumerate(host):
        guided = guidance.negative_at(index / len(host))
        acting = None if control is None else control.at(index, len(host))
        branches = [Branch(text=conditions.text, references=references, control=acting)]
        if guided:
            branches.insert(0, Branch(text=conditions.negative, references=references, control=acting))
        predictions = backbone.predict(sampling.scaled(latents, timestep), on_device[index], branches)
        prediction = guidance.combine(predictions[0] if guided else None, None, predictions[-1])
        latents = sampling.stepped(prediction, index, timestep, latents)
        step = Step(index, timestep, None, latents, conditions, guidance)
        yield step
        latents, conditions, guidance = step.latents, step.conditions, step.guidance
