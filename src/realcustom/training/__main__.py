"""`python -m realcustom.training RECIPE [name=value ...] [--resume] [--out DIR] [--max-steps N]`; torchrun works."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
from pathlib import Path

from .recipes import configure, load_recipe, parse_options


def main() -> None:
    """Run one recipe."""
    parser = argparse.ArgumentParser(prog="python -m realcustom.training", description=main.__doc__)
    parser.add_argument("recipe", help="path of a recipe file, or its name in recipes/")
    parser.add_argument("options", nargs="*", help="options of the recipe, name=value")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, or start")
    parser.add_argument("--out", type=Path, help="output folder, instead of the recipe's")
    parser.add_argument("--max-steps", type=int, help="optimiser steps in all, instead of the recipe's")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = configure(load_recipe(arguments.recipe), parse_options(arguments.options))
        changes = {"out": arguments.out, "steps": arguments.max_steps}
        config = config.replace(**{name: value for name, value in changes.items() if value is not None})
        from .loop import train

        train(config, resume=arguments.resume)
    except ValueError as error:
        parser.error(str(error))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _leave()


def _leave() -> None:
    """End a finished process of several without taking the interpreter down.

    torch keeps gloo's worker threads after the process group is destroyed; one that lets go of a tensor while Python is
    being finalized aborts the process, and the launcher then calls a run failed whose weights are all written. What
    others registered for the end (trackers, data workers) is still called.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
