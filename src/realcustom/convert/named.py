"""A named model's files: fetched once, converted once, kept in a folder of their revision."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from realcustom.hub.fetching import Listing, check_disk, fetch, listing, pinned
from realcustom.hub.names import NAMED, NamedModel, Wanted

log = logging.getLogger("realcustom.hub")

FORMAT = "1"  # of the converted folders; another one converts again
KNOWN = "known.json"
SMALL = ("model_index.json", "unet/config.json")


@dataclass(frozen=True)
class Prepared:
    """A named model that is ready to load.

    Attributes:
        folder: of the adapter, as `--adapter` takes it.
        base: commit of the base's repository.
        weights: commit of the repository that the adapter was made of.
        base_files: what was fetched of the base when it was loaded; empty before.
    """

    folder: Path
    base: str
    weights: str
    base_files: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """The name under which exactly these weights are found again."""
        return f"{self.base}+{self.weights}"


@dataclass(frozen=True)
class Plan:
    """What a named model takes, known from listings alone.

    Attributes:
        base, weights: both repositories.
        files: of the second, path -> the part it is wanted for.
    """

    base: Listing
    weights: Listing
    files: dict[str, Wanted]

    @property
    def missing_bytes(self) -> int:
        """What is still to be fetched of the weights, at most."""
        return sum(self.weights.sizes[path] for path in self.weights.missing(self.files))


def cache_home() -> Path:
    """Where converted models are kept: $REALCUSTOM_CACHE, or realcustom/ in the user's cache folder."""
    chosen = os.environ.get("REALCUSTOM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realcustom"


def known(name: str, revision: str | None = None) -> Prepared | None:
    """A named model that was prepared before, without asking anybody; None where there is none."""
    home = cache_home() / name
    entry = _read(home).get(revision or "")
    if entry is None or not (home / entry["folder"]).is_dir():
        return None
    return Prepared(home / entry["folder"], entry["base"], entry["weights"], tuple(entry.get("base_files", ())))


def plan(name: str, revision: str | None = None) -> Plan:
    """What is to be fetched for a named model.

    Args:
        name: a key of `NAMED`.
        revision: "BASE" or "BASE+WEIGHTS", each a branch, tag or commit.

    Raises:
        ValueError: a repository cannot be had, or lacks a file; one sentence.
    """
    named = NAMED[name]
    base_revision, weights_revision = _revisions(named, revision)
    base = listing(named.base, base_revision)
    weights = listing(named.weights, weights_revision)
    return Plan(base, weights, _wanted(named, weights))


def prepare(name: str, revision: str | None = None, refresh: bool = False) -> Prepared:
    """Fetch and convert a named model, unless that was done before.

    Args:
        name: a key of `NAMED`.
        revision: "BASE" or "BASE+WEIGHTS", each a branch, tag or commit; None is the name's own.
        refresh: ask the hub whether there is something newer.

    Raises:
        ValueError: in one sentence, what cannot be had or does not fit.
    """
    from huggingface_hub.utils import WeakFileLock

    ready = known(name, revision)
    if ready is not None and not refresh:
        return ready
    planned = plan(name, revision)
    home, named, revisions = cache_home() / name, NAMED[name], _revisions(NAMED[name], revision)
    folder = f"{planned.base.commit[:12]}-{planned.weights.commit[:12]}-{FORMAT}"
    home.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(str(home / ".lock")):
        if not named.converted:
            folder = str(fetch(planned.weights, planned.files, revisions[1]))
        elif not (home / folder).is_dir():
            _make(named, planned, home / folder, revisions)
        ready = Prepared(home / folder, planned.base.commit, planned.weights.commit)
        entry: dict[str, Any] = {"folder": folder, "base": ready.base, "weights": ready.weights}
        ready = known(name, ready.revision) or ready
        entry |= {"base_files": list(ready.base_files)} if ready.base_files else {}
        _write(home, {**_read(home), revision or "": entry, ready.revision: entry})
    return ready


def _make(named: NamedModel, planned: Plan, out: Path, revisions: tuple[str, str]) -> None:
    import torch

    from realcustom.convert.folder import convert

    check_disk(out.parent, planned.missing_bytes, named.weights)
    base = fetch(planned.base, SMALL, revisions[0])
    files = []
    for path, wanted in planned.files.items():
        if wanted.unless_unet and files and _holds_unet(files[0]):
            continue
        files.append(fetch(planned.weights, _with_config(planned.weights, path), revisions[1]) / path)
    size = sum(file.stat().st_size for file in files)
    check_disk(out.parent, size, f"The converted {named.weights}", "REALCUSTOM_CACHE")
    log.info("Converting %s, once; the result lies in %s", named.weights, out)
    unet_config = base / "unet" / "config.json"
    done = convert(files, out, unet_config=unet_config, base=named.base, dtype=torch.bfloat16)
    for note in done.notes:
        log.info("  %s", note)


def _holds_unet(file: Path) -> bool:
    from realcustom.convert.states import read_state

    return "conv_in.weight" in read_state(file)


def _with_config(listed: Listing, path: str) -> list[str]:
    """The file, and a configuration that lies beside it."""
    beside = f"{path.rpartition('/')[0]}/config.json"
    return [path, beside] if beside in listed.sizes else [path]


def _wanted(named: NamedModel, listed: Listing) -> dict[str, Wanted]:
    """The repository's path of every wanted file; ValueError that names what is lacking."""
    files: dict[str, Wanted] = {}
    for wanted in named.files:
        patterns = [f"{root}/{path}" if root else path for path in wanted.paths for root in named.roots]
        path = _first(patterns, sorted(listed.sizes))
        if path is not None:
            files[path] = wanted
        elif not wanted.optional:
            if not listed.complete:
                raise ValueError(listed.why)
            raise ValueError(
                f'The repository "{listed.repo}" lacks the file for {wanted.what}: there is no {patterns[0]}, nor '
                "anything in its place; fetch the files by hand and give them to realcustom convert."
            )
    return files


def _first(patterns: Sequence[str], paths: Sequence[str]) -> str | None:
    return next((path for pattern in patterns for path in paths if fnmatch(path, pattern)), None)


def _revisions(named: NamedModel, revision: str | None) -> tuple[str, str]:
    base, _, weights = (revision or "").partition("+")
    return base or named.base_revision, weights or named.weights_revision


def _read(home: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((home / KNOWN).read_text())
    except (OSError, ValueError):
        return {}


def _write(home: Path, record: dict[str, dict[str, Any]]) -> None:
    work = home / f".{KNOWN}.{os.getpid()}"
    work.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(work, home / KNOWN)


def base_listing(name: str, ready: Prepared) -> Listing | None:
    """The base's files at the commit that belongs to a prepared model, without asking the hub; None unless all that
    were fetched are here."""
    listed = pinned(NAMED[name].base, ready.base)
    if not ready.base_files or listed.missing(ready.base_files):
        return None
    return replace(listed, sizes={path: listed.sizes[path] for path in ready.base_files})


def remember_base(name: str, ready: Prepared, files: Sequence[str]) -> None:
    """Note which files of the base have all been fetched."""
    home = cache_home() / name
    record = _read(home)
    for entry in record.values():
        if (entry["base"], entry["weights"]) == (ready.base, ready.weights):
            entry["base_files"] = sorted({*entry.get("base_files", ()), *files})
    _write(home, record)
