"""The arguments of a pipeline's call: the stock pipeline's, and ours behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from realcustom.guidance.guidance_scale import EVERYWHERE

# What a call takes besides the stock pipeline's arguments, with its defaults.
OWN_ARGUMENTS: dict[str, Any] = {
    "image_guidance_scale": None,
    "guidance_interval": EVERYWHERE,
    "mask": None,
    "keep_share": 0.8,
    "image": None,
    "strength": None,
    "mask_image": None,
    "padding_mask_crop": None,
    "control_image": None,
    "controlnet_conditioning_scale": 1.0,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "long_prompts": False,
    "prompt_weights": False,
}
# With one of them a call runs our loop, subjects or not.
OF_OUR_LOOP = ("image", "mask_image", "control_image", "long_prompts", "prompt_weights")


def stock_arguments(
    stock_call: Callable, refused: Sequence[str], own: Mapping[str, Any] = OWN_ARGUMENTS
) -> Callable[[Callable], Callable]:
    """Gives a pipeline's `__call__(self, prompt, subjects, **arguments)` the signature it really has.

    That is the stock pipeline's, with our own arguments behind it; tools and users that ask the signature see all.

    Args:
        stock_call: the stock pipeline's `__call__`.
        refused: of its arguments those that cannot be used together with subjects.
        own: our arguments and their defaults.
    """
    stock = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(stock_call).parameters.items()
        if name not in ("self", "prompt") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = [inspect.Parameter(name, keyword, default=value) for name, value in own.items()]

    def give(function: Callable) -> Callable:
        first = list(inspect.signature(function).parameters.values())[:3]
        function.__signature__ = inspect.Signature([*first, *stock.values(), *ours])
        function.refused = frozenset(refused)
        return function

    return give


def says(value: Any) -> bool:
    """Whether an argument is given: a picture of any kind, or an option that is on."""
    return value is not None and value is not False
