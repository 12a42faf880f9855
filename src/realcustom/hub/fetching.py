"""Files of the hub, fetched into huggingface_hub's cache: listed first, each one once, cut downloads continued.

huggingface_hub itself begins a cut file again when its process has ended, hours in the case of a large U-Net. Here a
part that has arrived stays beside the cache's blobs and is continued at the next try.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from realcustom.hub.layout import SMALL
from realcustom.hub.trouble import is_unreachable, local_sentence, offline_sentence, told_apart, unreachable_sentence

log = logging.getLogger("realcustom.hub")

GB = 1e9
SPARE = 0.5e9  # bytes that stay free on the disk
PARTIAL = ".realcustom-part"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the hub is asked, by diffusers' names; the defaults are those of huggingface_hub's environment variables.

    Attributes:
        token: the user's; True or None is the stored one, False is none.
        cache_dir: of the files; None is HF_HUB_CACHE.
        local_files_only: the hub is not asked.
        force_download: what lies in the cache is fetched again.
    """

    token: str | bool | None = None
    cache_dir: str | os.PathLike | None = None
    local_files_only: bool = False
    force_download: bool = False


USUAL = Access()
_ACCESS: ContextVar[Access] = ContextVar("access", default=USUAL)


@contextmanager
def asking(access: Access) -> Iterator[None]:
    """Every listing and file of the block is had in this way."""
    before = _ACCESS.set(access)
    try:
        yield
    finally:
        _ACCESS.reset(before)


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        repo: its id.
        commit: full hash.
        sizes: path -> bytes.
        complete: False where the hub was not asked: only files of the cache are known then.
        why: the sentence for what is not in the cache, where the hub was not asked.
    """

    repo: str
    commit: str
    sizes: Mapping[str, int]
    complete: bool = True
    why: str = ""

    @property
    def folder(self) -> Path:
        """The cache's folder of this commit; files that were not fetched are not in it."""
        return _storage(self.repo) / "snapshots" / self.commit

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of the paths that are not in the cache."""
        return [path for path in paths if not (self.folder / path).exists()]


def listing(repo: str, revision: str = "main") -> Listing:
    """What `repo` holds at a branch, tag or commit; of a hub that cannot be reached, what the cache has of it.

    Raises:
        ValueError: neither hub nor cache have it; the sentence says why.
    """
    from huggingface_hub import HfApi, constants

    if ".." in revision.split("/"):
        raise ValueError(f'"{revision}" is no revision: it names a branch, a tag or a commit.')
    access = _ACCESS.get()
    if access.local_files_only:
        return _cached(repo, revision, local_sentence(repo))
    if constants.HF_HUB_OFFLINE:
        return _cached(repo, revision, offline_sentence(repo))
    with told_apart(repo, revision):
        try:
            found = HfApi(token=access.token).model_info(repo, revision=revision, files_metadata=True, timeout=20)
        except Exception as error:
            if not is_unreachable(error):
                raise
            return _cached(repo, revision, unreachable_sentence(repo))
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return Listing(repo, found.sha, sizes)


def pinned(repo: str, commit: str) -> Listing:
    """What the cache has of a commit, without asking the hub; nothing where it has nothing."""
    found = Listing(repo, commit, {}, complete=False, why=offline_sentence(repo))
    files = {str(path.relative_to(found.folder)): path.stat().st_size for path in _files(found.folder)}
    return Listing(repo, commit, files, complete=False, why=found.why)


def fetch(listed: Listing, paths: Iterable[str], revision: str = "main") -> Path:
    """The folder of the cache in which the files lie, fetched where they are missing.

    Args:
        listed: the repository.
        paths: files of it.
        revision: the name under which the cache finds this commit again.

    Raises:
        ValueError: the disk is too small for them, or the hub does not give them; one sentence.
    """
    needed = list(dict.fromkeys(paths))
    missing = needed if _ACCESS.get().force_download and listed.complete else listed.missing(needed)
    if missing:
        if not listed.complete:
            raise ValueError(listed.why)
        size = sum(listed.sizes.get(path, 0) for path in missing)
        check_disk(_cache(), size, listed.repo)
    for path in missing:
        level = logging.DEBUG if path.endswith(SMALL) else logging.INFO
        log.log(level, "Fetching %s: %s, %s bytes", listed.repo, path, f"{listed.sizes.get(path, 0):,}")
        with told_apart(listed.repo, listed.commit):
            _fetch_one(listed, path)
    _name(listed, revision)
    return listed.folder


def check_disk(folder: Path, size: float, what: str, variable: str = "HF_HOME") -> None:
    """ValueError where `size` bytes for `what` do not fit into the file system of `folder`."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size + SPARE > free:
        raise ValueError(
            f'"{what}" needs {size / GB:.1f} GB more on the disk, and {there} has {free / GB:.1f} GB free: free some '
            f"of it, or set {variable} to another one."
        )


def _fetch_one(listed: Listing, path: str) -> None:
    """One file into the cache's blobs, going on where an earlier try was cut, and its name in the snapshot."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    access = _ACCESS.get()
    url = hf_hub_url(listed.repo, path, revision=listed.commit)
    found = get_hf_file_metadata(url, token=access.token, retry_on_errors=True)
    blobs = _storage(listed.repo) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob = blobs / found.etag
    if access.force_download:
        blob.unlink(missing_ok=True)
    if not blob.exists() and found.size:
        part = blob.with_name(blob.name + PARTIAL)
        with WeakFileLock(f"{part}.lock"):
            if not blob.exists():
                _continue(found, url, part, access)
                os.replace(part, blob)
        Path(f"{part}.lock").unlink(missing_ok=True)
    # With the blob in its place, this only writes the snapshot's link to it.
    hf_hub_download(listed.repo, path, revision=listed.commit, cache_dir=_cache(), token=access.token)


def _continue(found, url: str, part: Path, access: Access) -> None:
    from urllib.parse import urlsplit

    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=access.token)
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a signed address of another host gets no token
    there = part.stat().st_size if part.exists() else 0
    if there > found.size:
        part.unlink()
        there = 0
    if there:
        log.info("  going on at %s bytes", f"{there:,}")
    with part.open("ab") as file:
        http_get(found.location, file, resume_size=there, headers=headers, expected_size=found.size)
    if there and SHA256.fullmatch(found.etag) and _sha256(part) != found.etag:
        part.unlink()
        raise OSError("the parts of a cut download do not fit together; the next try begins it again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached(repo: str, revision: str, why: str) -> Listing:
    """What the cache has under a revision's name."""
    name = _storage(repo) / "refs" / revision
    commit = name.read_text().strip() if name.is_file() else revision
    found = pinned(repo, commit)
    if not found.sizes:
        raise ValueError(why)
    return Listing(repo, commit, found.sizes, complete=False, why=why)


def _name(listed: Listing, revision: str) -> None:
    """Let the cache find the commit under the revision's name, as huggingface_hub does."""
    if revision == listed.commit or not listed.complete:
        return
    name = _storage(listed.repo) / "refs" / revision
    if not name.is_file() or name.read_text() != listed.commit:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(listed.commit)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


def _storage(repo: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return _cache() / repo_folder_name(repo_id=repo, repo_type="model")


def _cache() -> Path:
    from huggingface_hub import constants

    chosen = _ACCESS.get().cache_dir
    return Path(constants.HF_HUB_CACHE) if chosen is None else Path(chosen)
