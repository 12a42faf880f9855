"""Finding and reading recipes: small Python files that define `recipe(...) -> TrainConfig`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import TrainConfig

RECIPE_FOLDER = Path("recipes")


def load_recipe(name: str | Path) -> Callable[..., TrainConfig]:
    """The `recipe` function of a file, or of `recipes/<name>.py` in the current folder.

    Raises:
        ValueError: there is no such file, or it defines no `recipe`.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPE_FOLDER / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPE_FOLDER.glob("[!_]*.py"))) or "none here"
        raise ValueError(f'There is no recipe "{name}": give the path of a recipe file, or one of the names {known}.')
    spec = importlib.util.spec_from_file_location(f"realcustom_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise ValueError(f"{path} defines no function `recipe` that returns a TrainConfig.")
    return function


def configure(function: Callable[..., TrainConfig], options: Mapping[str, str]) -> TrainConfig:
    """Call a recipe with options given as text; each is read as the type of the parameter's default.

    Raises:
        ValueError: the recipe has no such option, or the text is no value of its type.
    """
    parameters = inspect.signature(function).parameters
    values = {}
    for name, text in options.items():
        if name not in parameters:
            listed = ", ".join(f"{key}={item.default}" for key, item in parameters.items()) or "none"
            raise ValueError(f'This recipe has no option "{name}"; its options and defaults are: {listed}.')
        values[name] = _read(name, text, parameters[name].default)
    return function(**values)


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """ "name=value" words to a dictionary.

    Raises:
        ValueError: a word has no "=".
    """
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f'"{pair}" is no option of the form name=value.')
    return dict(pair.split("=", 1) for pair in pairs)


def _read(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0", "yes", "no"):
            return text.lower() in ("true", "1", "yes")
    elif default is None:
        return text
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f'The option {name} is "{text}", which is no {kind.__name__}.')
