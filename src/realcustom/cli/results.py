"""The files of a request: images with their settings, masks and overlays, each written when it is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from realcustom.cli.console import Interrupted, step_bar
from realcustom.engine.requests import parts_of
from realcustom.pictures.overlays import mask_image, overlay, slugs
from realcustom.pictures.png import write_png
from realcustom.types import REFUSED, Progress, Request, Result

if TYPE_CHECKING:
    from realcustom.engine.engine import Engine


class Outputs:
    """Files for the images of a request: out.png for one, out-0.png, out-1.png ... for several.

    Where such a file is there already, the next free number is taken: out-1.png after out.png, out-2.png after
    out-1.png. An image made meanwhile by somebody else is not replaced either.

    Args:
        out: the PNG file that names them.
        request: its images are opened.
        save_masks: also write of each subject the mask of an image's last step, out.mask.WORD.png, and its overlay.
        metadata: write the settings into the images.
        overwrite: replace earlier files instead of taking the next number.
        inputs: files that are read besides the pictures of the request.

    Attributes:
        refused: the written images that the model's safety checker made black.

    Raises:
        ValueError: an input would be overwritten.
    """

    def __init__(
        self,
        out: Path,
        request: Request,
        *,
        save_masks: bool = False,
        metadata: bool = True,
        overwrite: bool = False,
        inputs: Iterable[Path] = (),
    ):
        self.out, self.count = out, request.num_images
        self.metadata, self.overwrite = metadata, overwrite
        self.names = slugs(request.subjects) if save_masks else {}
        self.refused: list[Path] = []
        self.number: int | None = None if self.count == 1 else 0
        if overwrite:
            self._spare([*_pictures(request), *inputs])
        elif any(path.exists() for index in range(self.count) for path in self._files(index)):
            self.number = self._next_number()

    def write(self, result: Result) -> Iterator[Path]:
        """Write the next images with their masks; gives each path once the file is there."""
        for index, image in enumerate(result.images):
            path = self._write_image(image, result.metadata[index] if self.metadata else None)
            if result.flagged and result.flagged[index]:
                self.refused.append(path)
            yield path
            for word, name in self.names.items():
                mask = result.masks[word][-1, index]
                for suffix, picture in (("", mask_image(mask, image.size)), (".overlay", overlay(image, mask))):
                    mask_path = path.with_name(f"{path.stem}.mask.{name}{suffix}.png")
                    write_png(mask_path, picture, replace=self.overwrite)
                    yield mask_path

    def _write_image(self, image, metadata) -> Path:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = self._path(self.number)
            try:
                write_png(path, image, metadata, replace=self.overwrite)
            except FileExistsError:
                self.number = self._next_number()
                continue
            self.number = (self.number or 0) + 1
            return path

    def _path(self, number: int | None) -> Path:
        return self.out if number is None else self.out.with_name(f"{self.out.stem}-{number}{self.out.suffix}")

    def _files(self, index: int) -> list[Path]:
        """All files of an image, if the numbers begin as they do now."""
        path = self._path(None if self.number is None else self.number + index)
        masks = [f"{path.stem}.mask.{name}{part}.png" for name in self.names.values() for part in ("", ".overlay")]
        return [path, *(path.with_name(name) for name in masks)]

    def _next_number(self) -> int:
        """After every number there is, at least 1."""
        form = re.compile(rf"{re.escape(self.out.stem)}-(\d{{1,9}})(\.mask\..*)?{re.escape(self.out.suffix)}")
        names = [path.name for path in self.out.parent.glob("*")]
        return 1 + max((int(match[1]) for match in map(form.fullmatch, names) if match), default=0)

    def _spare(self, inputs: list[Path]) -> None:
        present = [path for index in range(self.count) for path in self._files(index) if path.exists()]
        for path in present:
            if any(entry.exists() and path.samefile(entry) for entry in inputs):
                raise ValueError(f"{path} is read by this command, so it is not overwritten: choose another --out.")


def make_images(engine: Engine, request: Request, outputs: Outputs, title: str) -> None:
    """Make the images of a request batch by batch behind a bar, write each batch at once, and print the paths.

    Raises:
        Interrupted: Ctrl-C; says how many images are written, and how the others can be made.
    """
    written = 0
    request = engine.resolve(request)
    try:
        with step_bar(title) as show:
            for part in parts_of(request, engine.batch_size):
                result = engine.run(part, progress=_shifted(show, written, request))
                for path in outputs.write(result):
                    typer.echo(path)
                written += len(result.images)
    except KeyboardInterrupt:
        count = request.num_images
        rest = f"; --seed {request.image_seed(written)} --num-images {count - written} makes the others"
        told = f"Interrupted: {written} of {count} images are written{rest if 0 < written < count else ''}."
        raise Interrupted(told) from None
    finally:
        for path in outputs.refused:
            typer.echo(f"{path} {REFUSED}", err=True)


def _shifted(show, done: int, request: Request):
    """The bar of the whole request, told by a part of it that begins after `done` images."""

    def told(now: Progress) -> None:
        show(replace(now, step=done * request.steps_run + now.step, steps=request.num_images * request.steps_run))

    return told


def _pictures(request: Request) -> list[Path]:
    """The files that the opened pictures of a request were read from."""
    paths: list[str | None] = []
    request.with_pictures(lambda picture, *_: paths.append(picture.path))
    return [Path(path) for path in paths if path is not None and "://" not in path]
