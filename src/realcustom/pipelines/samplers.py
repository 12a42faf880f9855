"""Schedulers by name: the release's, and diffusers' own on the base model's noise schedule."""

from __future__ import annotations

import diffusers

from realcustom.pipelines.scheduler import RealCustomScheduler

# Name -> class and what its configuration adds.
SCHEDULERS: dict[str, tuple[type, dict]] = {
    "released": (RealCustomScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "dpm": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm-sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
SHARED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


def scheduler_named(name: str, base):
    """The scheduler of that name on the noise schedule of another one.

    Raises:
        ValueError: there is none; the sentence lists those there are.
    """
    if name not in SCHEDULERS:
        raise ValueError(f'There is no scheduler "{name}"; there are {", ".join(SCHEDULERS)}.')
    kind, more = SCHEDULERS[name]
    if kind is RealCustomScheduler:
        return kind(**{key: base.config[key] for key in SHARED if key in base.config})
    return kind.from_config(base.config, **more)
