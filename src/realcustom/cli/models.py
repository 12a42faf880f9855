"""`realcustom models`: what a model is."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Look at models.")

SMALL_VOCABULARY = 10_000  # a model with fewer tokens was trained on a closed set of words, worth listing


@app.callback()
def models() -> None:
    """Look at models."""


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder or a hub id.")] = "miniature",
    adapter: Annotated[str | None, typer.Option(help="Folder or hub id of the adapter, if the model has none.")] = None,
) -> None:
    """Print a model's parts, sizes and defaults, and the words a small one knows."""
    from rich.console import Console
    from rich.table import Table

    from realcustom.cli.console import load_engine

    engine = load_engine(model, adapter, "cpu", None)
    pipe = engine.pipeline
    table = Table("part", "class", "parameters", title=f"{model}: {type(pipe).__name__}")
    for name, part in pipe.components.items():
        if hasattr(part, "parameters"):
            count = sum(parameter.numel() for parameter in part.parameters())
            table.add_row(name, type(part).__name__, f"{count:,}")
    console = Console()
    console.print(table)
    for name, value in engine.describe().items():
        console.print(f"{name}: {value}", highlight=False)
    words = known_words(pipe.tokenizer)
    if words:
        console.print(f"words: {', '.join(words)}", highlight=False)


def known_words(tokenizer) -> list[str]:
    """The whole words of a small vocabulary, sorted; none for a large one, which reads any text."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) > SMALL_VOCABULARY:
        return []
    ends = (token.removesuffix("</w>") for token in vocabulary if token.endswith("</w>"))
    return sorted(word for word in ends if len(word) > 1 and word.isascii() and word.isalpha())
