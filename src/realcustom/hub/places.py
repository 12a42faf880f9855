"""Where a model or an adapter lies: a folder, or a repository of the hub, of which files are fetched as needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from realcustom.hub.bundled import CONTROLNETS, MODELS
from realcustom.hub.fetching import Listing, fetch, listing
from realcustom.hub.names import NAMED

HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<folder>[\w.-]+(?:/[\w.-]+)*))?(?:@(?P<revision>[\w./+-]+))?")


@dataclass(frozen=True)
class HubPlace:
    """A repository or a folder in it: owner/name[/folder...][@revision]."""

    repo: str
    folder: str = ""
    revision: str = "main"

    @classmethod
    def read(cls, text: str) -> HubPlace | None:
        """The place that a text names, or None where it has another form."""
        match = HUB.fullmatch(text)
        if match is None or ".." in re.split("[/@]", text):
            return None
        return cls(match["repo"], match["folder"] or "", match["revision"] or "main")


@dataclass(frozen=True)
class Shelf:
    """A folder whose files are known before anything large is fetched.

    Attributes:
        source: as it was named.
        folder: where its files lie once they are taken; absolute.
        paths: its files, relative to the folder.
        commit: of the repository; None for a folder of this machine.
        listed: the repository's listing, of which files are fetched; None for a folder of this machine.
        place: the repository.
    """

    source: str
    folder: Path
    paths: tuple[str, ...]
    listed: Listing | None = None
    place: HubPlace | None = None

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.listed is None

    @property
    def commit(self) -> str | None:
        """The repository's commit; None for a folder of this machine."""
        return None if self.listed is None else self.listed.commit

    def has(self, path: str) -> bool:
        """Whether it holds this file, or files in this folder."""
        return path in self.paths or any(name.startswith(f"{path}/") for name in self.paths)

    def take(self, paths: Iterable[str]) -> Path:
        """The folder, with these files in it; ValueError in one sentence where they cannot be had."""
        if self.listed is not None:
            prefix = f"{self.place.folder}/" if self.place.folder else ""
            fetch(self.listed, [prefix + path for path in paths], self.place.revision)
        return self.folder


def open_shelf(source: str, what: str, revision: str | None = None) -> Shelf:
    """The folder or repository of that name.

    Args:
        source: a folder of this machine, or owner/name[/folder...][@revision].
        what: "model", "adapter" ..., for the sentence.
        revision: of the repository, where the source names none.

    Raises:
        ValueError: there is none; the sentence says why.
    """
    folder = Path(source)
    if folder.is_dir():
        names = [path.relative_to(folder) for pattern in ("*", "*/*") for path in folder.glob(pattern)]
        files = [str(name).replace(os.sep, "/") for name in names if (folder / name).is_file()]
        return Shelf(source, folder.absolute(), tuple(sorted(files)))
    place = HubPlace.read(source)
    if place is None:
        names = f" or one of {', '.join([*MODELS, *NAMED])}" if what == "model" else ""
        raise ValueError(f'There is no {what} "{source}": give a folder, a hub id (owner/name){names}.')
    if revision is not None and "@" not in source:
        place = HubPlace(place.repo, place.folder, revision)
    listed = listing(place.repo, place.revision)
    prefix = f"{place.folder}/" if place.folder else ""
    paths = tuple(path.removeprefix(prefix) for path in listed.sizes if path.startswith(prefix))
    if not paths:
        raise ValueError(f'The repository "{place.repo}" has no folder "{place.folder}".')
    return Shelf(source, listed.folder / place.folder, paths, listed, place)


def located(source: str | None) -> str | None:
    """A source as it is found again from anywhere: folders and files become absolute, other names stay."""
    if source is None or source in {*MODELS, *CONTROLNETS, *NAMED} or not Path(source).exists():
        return source
    return os.path.abspath(source)
