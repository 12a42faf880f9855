"""`realcustom`: the commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from realcustom.cli import batch, characters, convert, data, evaluate, generate, models, repeat, serve, train
from realcustom.cli.console import Interrupted

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

app = typer.Typer(
    name="realcustom",
    help="New images of your own subject from one reference image and a real word of the prompt.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="generate")(generate.generate)
app.command(name="batch")(batch.batch)
app.command(name="repeat")(repeat.repeat)
app.command(name="convert")(convert.convert)
app.command(name="train")(train.train)
app.command(name="serve")(serve.serve)
app.add_typer(models.app, name="models")
app.add_typer(characters.app, name="characters")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """New images of your own subject from one reference image and a real word of the prompt."""
    if version:
        from realcustom import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `realcustom`: runs a command and leaves with its exit code.

    Bad input is one sentence on stderr and exit code 2; an interrupt is 130; anything else is 1. A traceback appears
    only where REALCUSTOM_DEBUG is set.
    """
    if os.environ.get("REALCUSTOM_DEBUG"):
        sys.exit(app(args=arguments, standalone_mode=False) or 0)
    try:
        code = app(args=arguments, standalone_mode=False) or 0
        if code == INTERRUPTED:  # Typer ends a command so, without a word
            _fail("Interrupted.", INTERRUPTED)
    except TyperException as error:
        code = _fail(error.format_message(), 2)
    except Interrupted as error:
        code = _fail(str(error), INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        code = 1
    except OSError as error:
        code = _fail(_system(error), 2)
    except ValueError as error:
        code = _fail(getattr(error, "spoken", str(error)), 2)
    except Exception as error:
        code = _fail(_unexpected(error), 1)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    sentence = " ".join(message.split())
    sys.stderr.write(f"realcustom: {sentence}\n")
    return code


def _system(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return f"{error.strerror}."
    return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}."


def _unexpected(error: Exception) -> str:
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return (
            "There is not enough memory for this: choose a smaller --size, --dtype bfloat16, --offload model (group, "
            "sequential), --vae-tiling, or fewer --num-images."
        )
    name = type(error).__name__
    return f"This failed unexpectedly ({name}: {error}); set REALCUSTOM_DEBUG=1 to see where."
