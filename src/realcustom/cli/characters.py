"""`realcustom characters`: named subjects, used in a prompt as @name by every door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from realcustom.engine.characters import Character
    from realcustom.serving.store import Store

FOLDER = Path("outputs/serve")

Folder = Annotated[Path, typer.Option("--characters", help="Data folder of the studio, where characters are kept.")]
Name = Annotated[str, typer.Argument(help="1 to 40 letters, digits, - or _.")]

app = typer.Typer(help="Named subjects: @rex in a prompt reads as his word and brings his pictures.")


@app.callback()
def characters() -> None:
    """Named subjects: @rex in a prompt reads as his word and brings his pictures."""


@app.command("list")
def list_all(folder: Folder = FOLDER) -> None:
    """Print every character: name, word, number of pictures, strengths, description."""
    from realcustom.serving.cast_reader import CastReader

    for one in CastReader(folder).list():
        pictures = f"{len(one.images)} pictures" if len(one.images) > 1 else "1 picture"
        face = f", {len(one.faces)} of the face at {one.face_strength:g}" if one.faces else ""
        typer.echo(f"@{one.name}: {one.word}, {pictures} at {one.strength:g}{face}. {one.description}".rstrip())


@app.command()
def add(
    name: Name,
    word: Annotated[str, typer.Option(help='The word that the name reads as in a prompt: "dog".')],
    image: Annotated[list[Path], typer.Option(help="Picture of the whole subject; may be repeated.")],
    face: Annotated[list[Path], typer.Option(help="Picture of its face alone; may be repeated.")] = [],  # noqa: B006
    description: Annotated[str, typer.Option(help="What it is and what is particular about it.")] = "",
    strength: Annotated[float, typer.Option(help="How much the whole subject acts, 0 to 2.")] = 1.0,
    face_strength: Annotated[float, typer.Option(help="How much the face acts, 0 to 2.")] = 1.0,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of the one with this name.")] = False,
    folder: Folder = FOLDER,
) -> None:
    """Keep a character."""
    from realcustom.engine.characters import Character
    from realcustom.serving.limits import Limits
    from realcustom.serving.records import Cast

    contents = [[_read(path) for path in paths] for paths in (image, face)]
    with _store(folder) as store:
        images, faces = ([store.add_upload(data, Limits())["id"] for data in group] for group in contents)
        character = Character(
            name=name,
            word=word,
            images=images,
            faces=faces,
            description=description,
            strength=strength,
            face_strength=face_strength,
        )
        Cast(store).save(character, replaces=character.name if replace else None)
    typer.echo(f"@{character.name}")


@app.command()
def remove(name: Name, folder: Folder = FOLDER) -> None:
    """Forget a character; pictures made with it stay."""
    from realcustom.serving.records import Cast

    with _store(folder) as store:
        Cast(store).remove(name)


def finder(folder: Path) -> Callable[[str], Character | None]:
    """A character of a data folder by name; the folder is looked at only when a prompt mentions somebody."""

    def find(name: str) -> Character | None:
        from realcustom.serving.cast_reader import CastReader

        return CastReader(folder).find(name)

    return find


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"There is no picture {path}.")
    return path.read_bytes()


@contextmanager
def _store(folder: Path) -> Iterator[Store]:
    """The data folder for a moment; what is not there is a ValueError here."""
    from realcustom.serving.blobs import NotHere
    from realcustom.serving.store import Store

    store = Store(folder)
    try:
        yield store
    except NotHere as error:
        raise ValueError(str(error)) from None
    finally:
        store.close()
