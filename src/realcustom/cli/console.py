"""What the commands share: quiet libraries, a progress bar, and where results may be written."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from realcustom.engine.engine import Engine
    from realcustom.engine.options import LoadOptions
    from realcustom.types import Progress


class Interrupted(Exception):
    """Ctrl-C ended a command; says what is done and how to go on."""


def stderr_console() -> Console:
    """Where progress goes: stdout is kept for the names of the files written."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing where stderr is no terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def quiet() -> None:
    """Keep the libraries' notes and bars out of a command's output; call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def load_engine(options: LoadOptions, batch_size: int | None = None) -> Engine:
    """`Engine.from_options`: what is fetched shows its own bars, the rest stands behind a spinner."""
    quiet()
    with status(f"Loading {options.model} ..."):
        import diffusers
        import transformers

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        from realcustom.engine.engine import Engine
        from realcustom.engine.loading import find_sources
    with fetching():
        sources = find_sources(options)
    with status(f"Loading {options.model} ..."):
        return Engine.from_sources(sources, options, batch_size)


@contextmanager
def fetching() -> Iterator[None]:
    """Say on stderr what is fetched, with bars where it is a terminal."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    told = logging.StreamHandler()
    told.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("realcustom")
    before = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    bars = stderr_console().is_terminal
    if bars:
        enable_progress_bars()
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(before)
        if bars:
            disable_progress_bars()


@contextmanager
def step_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar of denoising steps; yields the function to hand to `Engine.run`."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = stderr_console()
    # Paths are printed while it stands; piped ones must not go to the bar's console instead.
    both = {"redirect_stdout": sys.stdout.isatty(), "transient": True, "disable": not console.is_terminal}
    with Bar(*columns, console=console, **both) as bar:
        task = bar.add_task(title, total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps)

        yield show


def check_output(path: Path) -> None:
    """Refuse a place where no PNG file can be written, before any work is done.

    Raises:
        ValueError: wrong ending, a folder, or a folder that cannot be made or written to.
    """
    if str(path) == ".":
        raise ValueError("--out needs the name of a PNG file.")
    if path.suffix.lower() != ".png":
        raise ValueError(f"Images are written as PNG: {path} must end in .png.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"{path} cannot be written: {parent} is not a folder.")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission in {parent}.")
