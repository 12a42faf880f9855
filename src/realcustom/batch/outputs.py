"""The files of a job: their names, what they were made of, and which are there already.

A job is finished when its record, DIR/ID.json, is there: it is written last and holds the job's digest, a hash of
everything that decides its images. So a job is never half finished, and one whose line has changed since is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

from realcustom.batch import places
from realcustom.batch.jobs import Job, Problem, images, masks, pictures, replace_pictures, without
from realcustom.engine.requests import open_reference, open_region
from realcustom.pictures.content import Picture
from realcustom.pictures.overlays import mask_image, slugs
from realcustom.pictures.png import metadata_of, png_bytes, portable
from realcustom.types import RANDOM_SEED, Request, Result

CHECKING_THREADS = 8  # decoding lets other threads run
MAX_NAME = 240  # bytes; most file systems allow 255, and a file under way has a few more


@dataclass(frozen=True)
class Task:
    """A job made ready for any worker: every picture of its request is an absolute path or URL.

    needs: ids of the jobs whose results it uses. digest: hash of everything that decides the images. out: folder or
    URL. save_masks: also write the masks. save_settings: write the settings into the images.
    """

    id: str
    line: int
    request: Request
    needs: tuple[str, ...]
    digest: str
    out: str
    save_masks: bool
    save_settings: bool = True


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    tasks: in order, each after those whose results it uses. finished: how many jobs are done. changed: finished jobs
    whose line, pictures or model are not those of then; they are among the tasks. foreign: jobs under whose names lie
    images that are not known to be theirs; they are among the tasks, too.
    """

    tasks: tuple[Task, ...]
    finished: int
    changed: tuple[Job, ...]
    foreign: tuple[Job, ...]


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
    """Open every distinct picture once: place (or `mask_key`) -> pixel hash, and line -> sentence where one cannot be
    used."""
    jobs = list(jobs)
    keys = {job.line: _openers(job.request) for job in jobs}
    distinct = {key: pair for found in keys.values() for key, pair in found.items()}
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        found = dict(zip(distinct, pool.map(_picture_hash, distinct.values()), strict=True))
    problems: dict[int, str] = {}
    for line, openers in keys.items():
        for key in openers:
            if isinstance(found[key], ValueError):
                problems.setdefault(line, str(found[key]))
    return {key: sha for key, sha in found.items() if isinstance(sha, str)}, problems


def mask_key(place: str) -> str:
    """The name of a picture's hash where it is read as a mask; as an image it may show something else."""
    return f"mask:{place}"


def open_picture(place: str) -> Picture:
    """The picture at a path or URL; ValueError with one sentence if it cannot be used."""
    return open_reference(places.read_bytes(place), place) if places.is_url(place) else open_reference(place)


def open_mask_picture(place: str) -> Picture:
    """The picture at a path or URL, read as the mask of a region; ValueError as `open_picture`."""
    return open_region(places.read_bytes(place), place) if places.is_url(place) else open_region(place)


def plan(
    jobs: Sequence[Job],
    hashes: Mapping[str, str],
    model: Mapping[str, Any],
    out: str,
    save_masks: bool,
    save_settings: bool = True,
) -> Plan:
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
    tasks, changed, foreign = [], [], []
    for job in jobs:
        record = records.get(job.id)
        if record is not None and record.get("digest") != digests[job.id]:
            changed.append(job)
        if _complete(record, digests[job.id], job, save_masks) and present.issuperset(
            file_names(job.id, job.request, save_masks)
        ):
            continue
        request = replace_pictures(job.request, lambda picture: _result(picture, requests, out))
        if record is None:
            begun = [name for name in image_names(job.id, request.num_images) if name in present]
            seeds = [_seed_within(places.join(out, name), request) for name in begun]
            if None in seeds:
                foreign.append(job)
            elif job.random and begun and begun[0] == image_names(job.id, request.num_images)[0]:
                # What was made before an interruption stays, so the others get the seeds that follow.
                request = replace(request, seed=seeds[0])
        task = Task(job.id, job.line, request, tuple(job.needs), digests[job.id], out, save_masks, save_settings)
        tasks.append(task)
    return Plan(tuple(tasks), len(jobs) - len(tasks), tuple(changed), tuple(foreign))


def is_finished(task: Task) -> bool:
    """Whether another worker, or an earlier try, has finished the task."""
    if not _complete(_read_record(task), task.digest, task, task.save_masks):
        return False
    names = file_names(task.id, task.request, task.save_masks)
    return all(places.exists(places.join(task.out, name)) for name in names)


def is_begun(task: Task) -> bool:
    """Whether there is a first image under the task's name."""
    return places.exists(places.join(task.out, image_names(task.id, task.request.num_images)[0]))


def settings_of_finished(task: Task, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the settings of a task's images those of the first ones that are there, made of the very same, with masks."""
    masks = mask_names(task.id, task.request).values() if task.save_masks else ()
    found: list[dict[str, Any]] = []
    for index, name in enumerate(image_names(task.id, task.request.num_images)):
        wanted = json.loads(json.dumps(portable(settings[index])))
        place = places.join(task.out, name)
        try:
            stored = metadata_of(places.read_bytes(place), place)
        except ValueError:
            break
        whole = all(places.exists(places.join(task.out, files[index])) for files in masks)
        if not whole or {key: stored.get(key) for key in wanted} != wanted:
            break
        found.append(stored)
    return found


def write_images(task: Task, result: Result, start: int = 0) -> None:
    """Write the images of a result, the task's from number `start`, each with its masks."""
    names = image_names(task.id, task.request.num_images)[start:]
    mask_files = mask_names(task.id, task.request) if task.save_masks else {}
    for index, image in enumerate(result.images):
        settings = result.metadata[index] if task.save_settings else None
        places.write_bytes(places.join(task.out, names[index]), png_bytes(image, settings))
        for word, files in mask_files.items():
            mask = mask_image(result.masks[word][-1, index], image.size)
            places.write_bytes(places.join(task.out, files[start + index]), png_bytes(mask))


def write_record(task: Task, settings: Sequence[Mapping[str, Any]]) -> None:
    """Write the record of a task whose images are all written; then remove what an earlier version of it left."""
    before = _read_record(task)
    record = {
        "id": task.id,
        "digest": task.digest,
        "images": image_names(task.id, task.request.num_images),
        "masks": mask_names(task.id, task.request) if task.save_masks else {},
        "settings": portable(settings),
    }
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


def _openers(request: Request) -> dict[str, tuple[Callable[[str], Picture], str]]:
    """How the pictures of a request that are no results are opened: key of the hash -> (function, place)."""
    pairs = {image: (open_picture, image) for image in images(request) if not image.startswith("@")}
    return pairs | {mask_key(mask): (open_mask_picture, mask) for mask in masks(request)}


def _seed_within(place: str, request: Request) -> int | None:
    """The seed of an image that was made for this prompt; None if the file is no such image."""
    try:
        settings = metadata_of(places.read_bytes(place), place)["request"]
        return settings["seed"] if settings["prompt"] == request.prompt else None
    except (ValueError, KeyError, TypeError):
        return None


def _picture_hash(pair: tuple[Callable[[str], Picture], str]) -> str | ValueError:
    opener, place = pair
    try:
        return opener(place).sha256
    except ValueError as error:
        return error


def _digest(job: Job, hashes: Mapping[str, str], digests: Mapping[str, str], model: Mapping[str, Any]) -> str:
    def content(picture: str) -> str:
        if not picture.startswith("@"):
            return hashes[picture]
        other, _, number = picture[1:].partition("#")
        return f"{digests[other]}#{number}"

    given = replace_pictures(job.request, content, lambda mask: hashes[mask_key(mask)]).to_dict()
    if job.random:
        given["seed"] = RANDOM_SEED
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
