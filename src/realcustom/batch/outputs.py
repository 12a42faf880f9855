"""The files of a job: their names, what they were made of, and which are there already.

A job is finished when its record, DIR/ID.json, is there: it is written last and holds the job's digest, a hash of
everything that decides its images. So a job is never half finished, and one whose line has changed since is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from realcustom.batch import places
from realcustom.batch.jobs import Job, Problem, pictures, replace_pictures, without
from realcustom.engine.requests import Reference, pixels_sha256
from realcustom.pictures.opening import open_image
from realcustom.pictures.overlays import mask_image, slugs
from realcustom.pictures.png import png_bytes
from realcustom.types import Request, Result

CHECKING_THREADS = 8  # decoding lets other threads run
MAX_NAME = 240  # bytes; most file systems allow 255, and a file under way has a few more


@dataclass(frozen=True)
class Task:
    """A job made ready for any worker: every picture of its request is an absolute path or URL.

    needs: ids of the jobs whose results it uses. digest: hash of everything that decides the images. out: folder or
    URL. save_masks: also write the masks.
    """

    id: str
    line: int
    request: Request
    needs: tuple[str, ...]
    digest: str
    out: str
    save_masks: bool


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    tasks: in order, each after those whose results it uses. finished: how many jobs are done. changed: finished jobs
    whose line, pictures or model are not those of then; they are among the tasks.
    """

    tasks: tuple[Task, ...]
    finished: int
    changed: tuple[Job, ...]


def image_names(name: str, count: int) -> list[str]:
    """ID.png, or ID-0.png, ID-1.png ... for several images."""
    return [f"{name}.png"] if count == 1 else [f"{name}-{index}.png" for index in range(count)]


def mask_names(name: str, request: Request) -> dict[str, list[str]]:
    """Of each subject's word the mask file of every image: ID.mask.WORD.png, or ID-0.mask.WORD.png ..."""
    stems = [image.removesuffix(".png") for image in image_names(name, request.num_images)]
    return {word: [f"{stem}.mask.{slug}.png" for stem in stems] for word, slug in slugs(request.subjects).items()}


def file_names(name: str, request: Request, save_masks: bool) -> list[str]:
    """Every file of a job, its record last."""
    masks = [file for files in mask_names(name, request).values() for file in files] if save_masks else []
    return [*image_names(name, request.num_images), *masks, f"{name}.json"]


def check_names(jobs: Iterable[Job], source: str, out: str, save_masks: bool) -> dict[int, str]:
    """Lines (line -> sentence) that would write over the jobs file, a picture that is read, or another job's files."""
    jobs = list(jobs)
    taken: dict[str, str] = {source.casefold(): "the jobs file"}
    for job in jobs:
        for picture in pictures(job.request):
            if not picture.startswith("@"):
                taken.setdefault(picture.casefold(), f"{picture}, a picture that is read")
    problems = {}
    for job in jobs:
        for name in file_names(job.id, job.request, save_masks):
            place = places.join(out, name).casefold()
            if len(name.encode()) > MAX_NAME:
                problems[job.line] = f"The file name {name} would be too long: shorten the id or the subject's word."
            elif place in taken:
                problems[job.line] = f"{name} would be written over {taken[place]}: choose another id or --out."
            else:
                taken[place] = f"a file of line {job.line}"
    return problems


def hash_pictures(jobs: Iterable[Job]) -> tuple[dict[str, str], dict[int, str]]:
    """Open every distinct picture once: place -> pixel hash, and line -> sentence where one cannot be used."""
    jobs = list(jobs)
    distinct = dict.fromkeys(picture for job in jobs for picture in pictures(job.request) if picture[0] != "@")
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        found = dict(zip(distinct, pool.map(_picture_hash, distinct), strict=True))
    problems: dict[int, str] = {}
    for job in jobs:
        for picture in pictures(job.request):
            if isinstance(found.get(picture), ValueError):
                problems.setdefault(job.line, str(found[picture]))
    return {place: sha for place, sha in found.items() if isinstance(sha, str)}, problems


def open_picture(place: str) -> Reference:
    """The picture at a path or URL; ValueError with one sentence if it cannot be used."""
    try:
        image = open_image(places.read_bytes(place) if places.is_url(place) else place)
    except ValueError as error:
        raise ValueError(str(error).replace("the given image data", place)) from error
    return Reference(image, place, pixels_sha256(image))


def plan(jobs: Sequence[Job], hashes: Mapping[str, str], model: Mapping[str, Any], out: str, save_masks: bool) -> Plan:
    """Compare jobs with what lies in `out`.

    Args:
        jobs: each after those it needs.
        hashes: of `hash_pictures`.
        model: what decides the images besides the line, {"model": name, "adapter": name}.
    """
    requests = {job.id: job.request for job in jobs}
    digests: dict[str, str] = {}
    for job in jobs:
        digests[job.id] = _digest(job, hashes, digests, model)
    present = places.names_in(out)
    records = _records([job for job in jobs if f"{job.id}.json" in present], out)
    tasks, changed = [], []
    for job in jobs:
        record = records.get(job.id)
        differs = record is not None and record.get("digest") != digests[job.id]
        if differs:
            changed.append(job)
        if not _complete(record, digests[job.id], job, save_masks) or not present.issuperset(
            file_names(job.id, job.request, save_masks)
        ):
            request = replace_pictures(job.request, lambda picture: _result(picture, requests, out))
            tasks.append(Task(job.id, job.line, request, tuple(job.needs), digests[job.id], out, save_masks))
    return Plan(tuple(tasks), len(jobs) - len(tasks), tuple(changed))


def is_finished(task: Task) -> bool:
    """Whether another worker, or an earlier try, has finished the task."""
    if not _complete(_read_record(task), task.digest, task, task.save_masks):
        return False
    names = file_names(task.id, task.request, task.save_masks)
    return all(places.exists(places.join(task.out, name)) for name in names)


def write_task(task: Task, result: Result) -> None:
    """Write images, masks and, last, the record; then remove what an earlier version of the line left."""
    before = _read_record(task)
    images = image_names(task.id, task.request.num_images)
    for name, image, settings in zip(images, result.images, result.metadata, strict=True):
        places.write_bytes(places.join(task.out, name), png_bytes(image, settings))
    masks = mask_names(task.id, task.request) if task.save_masks else {}
    for word, names in masks.items():
        for index, name in enumerate(names):
            mask = mask_image(result.masks[word][-1, index], result.images[index].size)
            places.write_bytes(places.join(task.out, name), png_bytes(mask))
    record = {"id": task.id, "digest": task.digest, "images": images, "masks": masks, "settings": result.metadata}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    places.write_bytes(places.join(task.out, f"{task.id}.json"), text.encode())
    for name in _files_of(before or {}) - _files_of(record):
        places.remove(places.join(task.out, name))


def check_files(
    jobs: Sequence[Job], source: str, out: str, save_masks: bool
) -> tuple[list[Job], list[Problem], dict[str, str]]:
    """Names and pictures of all jobs: the good jobs, the problems, and the pictures' hashes.

    source: the jobs file.
    """
    hashes, bad = hash_pictures(jobs)
    kept, problems = without(jobs, check_names(jobs, source, out, save_masks) | bad)
    return kept, problems, hashes


def _picture_hash(place: str) -> str | ValueError:
    try:
        return open_picture(place).sha256
    except ValueError as error:
        return error


def _digest(job: Job, hashes: Mapping[str, str], digests: Mapping[str, str], model: Mapping[str, Any]) -> str:
    def content(picture: str) -> str:
        if not picture.startswith("@"):
            return hashes[picture]
        other, _, number = picture[1:].partition("#")
        return f"{digests[other]}#{number}"

    given = replace_pictures(job.request, content).to_dict()
    # What a line does not say does not count: a later version may know more settings.
    unsaid = {entry.name: entry.default for entry in fields(Request)}
    given = {name: value for name, value in given.items() if value != unsaid[name]}
    for subject in given.get("subjects", {}).values():
        for name in [name for name, value in subject.items() if value is None]:
            del subject[name]
    text = json.dumps({"request": given, **model}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _result(picture: str, requests: Mapping[str, Request], out: str) -> str:
    if not picture.startswith("@"):
        return picture
    other, _, number = picture[1:].partition("#")
    return places.join(out, image_names(other, requests[other].num_images)[int(number)])


def _records(jobs: Iterable[Job], out: str) -> dict[str, dict[str, Any]]:
    wanted = {places.join(out, f"{job.id}.json"): job.id for job in jobs}
    read = {name: _record(data) for name, data in places.read_all(wanted).items()}
    return {wanted[place]: record for place, record in read.items() if record is not None}


def _record(data: bytes | None) -> dict[str, Any] | None:
    """A job's record, or None where there is none that can be read."""
    try:
        record = json.loads(data or b"")
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _read_record(task: Task) -> dict[str, Any] | None:
    place = places.join(task.out, f"{task.id}.json")
    return _record(places.read_all([place]).get(place))


def _complete(record: Mapping[str, Any] | None, digest: str, job: Job | Task, save_masks: bool) -> bool:
    """Whether a record says that these very images, and the masks if wanted, were made."""
    if record is None or record.get("digest") != digest:
        return False
    return bool(record.get("masks")) or not (save_masks and job.request.subjects)


def _files_of(record: Mapping[str, Any]) -> set[str]:
    """Image and mask files that a record names, of its own job only."""
    try:
        names = {*record["images"], *(name for names in record["masks"].values() for name in names)}
        stem = record["id"]
    except (KeyError, TypeError, AttributeError):
        return set()
    own = re.compile(re.escape(stem) + r"(-\d+)?(\.mask\.[\w-]+)?\.png")
    return {name for name in names if own.fullmatch(name)}
