"""The jobs file: one JSON object a line, checked in full before any work starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from realcustom.batch import places
from realcustom.engine.characters import Character, read_record
from realcustom.engine.requests import check_request
from realcustom.types import IMAGE, MASK, RANDOM_SEED, REFERENCE, Request

MAX_ID = 100  # characters; file names end at 255 bytes, and a mask's name also holds a word
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
RESULT = re.compile(r"@(?P<id>[^#]*)(?:#(?P<image>\d{1,4}))?")


@dataclass(frozen=True)
class Job:
    """One line of the file.

    id: the name of its files.
    line: where it stands, from 1.
    request: what to make; every image is an absolute path or URL, or "@id#k", image k of another job.
    random: whether the line asks for a seed at random; the request has one that was drawn as the line was read.
    """

    id: str
    line: int
    request: Request
    random: bool = False

    @property
    def needs(self) -> dict[str, set[int]]:
        """The jobs whose results this one uses: id -> image numbers."""
        needs: dict[str, set[int]] = {}
        for image in pictures(self.request):
            if image.startswith("@"):
                other, _, number = image[1:].partition("#")
                needs.setdefault(other, set()).add(int(number))
        return needs


@dataclass(frozen=True, order=True)
class Problem:
    """Why a line cannot be run: line number (from 1) and one sentence."""

    line: int
    sentence: str


def read_jobs(
    place: str, find: Callable[[str], Character | None] = lambda name: None
) -> tuple[list[Job], list[Problem]]:
    """The jobs of a file, each after those it needs, and what is wrong with the other lines.

    A line that needs a bad one is bad itself. Pictures are not opened here.

    Args:
        place: of the file.
        find: a character by name, for prompts that mention one; by default there are none.

    Raises:
        ValueError: there is no such file, it holds no line, or is of another form altogether.
    """
    jobs: dict[str, Job] = {}
    problems: dict[int, str] = {}
    named: dict[str, int] = {}  # ids of bad lines too, so that what needs them hears the true reason
    folder = places.parent(place)
    data = places.read_bytes(place)
    _check_form(place, data)
    for number, raw in enumerate(data.split(b"\n"), start=1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not raw.strip():
            continue
        try:
            record = _parse(raw)
            name = _id(record)
            first = named.setdefault(name.casefold(), number)
            if first != number:
                raise ValueError(f'The id "{name}" is that of line {first}, too (upper and lower case are the same).')
            random = record.get("seed") == RANDOM_SEED
            jobs[name] = Job(name, number, _request(record, folder, find), random)
        except ValueError as error:
            problems[number] = str(error)
    if not jobs and not problems:
        raise ValueError(f"{place} holds no jobs: it needs one JSON object a line.")
    _check_results(jobs, named, problems)
    ordered = _ordered(jobs, problems)
    return ordered, sorted(Problem(line, sentence) for line, sentence in problems.items())


def pictures(request: Request) -> list[str]:
    """Every picture of a request, as given: path, URL or "@id#k"."""
    return [*images(request), *masks(request)]


def images(request: Request) -> list[str]:
    """Every picture of a request but masks."""
    return _of_kind(request, REFERENCE, IMAGE)


def masks(request: Request) -> list[str]:
    """Every region or hole of a request that is a mask."""
    return _of_kind(request, MASK)


def _of_kind(request: Request, *wanted: str) -> list[str]:
    found: list[str] = []
    request.with_pictures(lambda picture, kind, _: found.append(picture) if kind in wanted else None)
    return found


def replace_pictures(
    request: Request, new: Callable[[Any], Any], new_mask: Callable[[Any], Any] | None = None
) -> Request:
    """The request with `new(picture)` in the place of every picture, and `new_mask` (or `new`) of every mask."""
    return request.with_pictures(lambda picture, kind, _: (new_mask or new if kind == MASK else new)(picture))


def without(jobs: Iterable[Job], bad: Mapping[int, str]) -> tuple[list[Job], list[Problem]]:
    """Jobs in order less the bad lines (line -> sentence) and all that needs them, which become problems too."""
    jobs = list(jobs)
    problems = dict(bad)
    lines = {job.id: job.line for job in jobs}
    kept = []
    for job in jobs:
        lost = [other for other in job.needs if lines.get(other) in problems]
        if job.line not in problems and lost:
            problems[job.line] = f'It needs "{lost[0]}" (line {lines[lost[0]]}), which cannot be made.'
        if job.line not in problems:
            kept.append(job)
    return kept, sorted(Problem(line, sentence) for line, sentence in problems.items())


def _check_form(place: str, data: bytes) -> None:
    """Refuse in one sentence a file that is not lines at all, instead of each of its lines."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{place} is UTF-16 text; save it as UTF-8.")
    lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if lines and lines[0].lstrip().startswith(b"["):
        raise ValueError(f"{place} is one JSON array; it needs one JSON object a line: jq -c '.[]' writes it so.")
    name = _list_within(data) if lines and lines[0].lstrip().startswith(b"{") else None
    if name is not None:
        how = f"jq -c '.{name}[]' writes it so"
        raise ValueError(f'{place} is one JSON object with a list "{name}"; it needs one JSON object a line: {how}.')
    if len(lines) > 1 and lines[0].strip() == b"{":
        raise ValueError(f"{place} is a JSON object over several lines; each job needs a line of its own.")


def _list_within(data: bytes) -> str | None:
    """Where a file is one JSON object the name of its only field that is a list of objects."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "id" in record or "prompt" in record:
        return None
    lists = [
        name
        for name, value in record.items()
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
    ]
    return lists[0][:80] if len(lists) == 1 else None


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode(), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError("The line is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"The line is not JSON: {error.msg} at character {error.pos + 1}.") from error
    except RecursionError as error:
        raise ValueError("The line is nested too deeply.") from error
    if not isinstance(record, dict):
        raise ValueError('A line must be a JSON object: {"id": ..., "prompt": ...}.')
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that can be used.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" is given twice.')
    return record


def _id(record: dict[str, Any]) -> str:
    if "id" not in record:
        raise ValueError('A job needs an "id", the name of its files.')
    name = record.pop("id")
    if not isinstance(name, str) or not SAFE_ID.fullmatch(name) or len(name) > MAX_ID:
        raise ValueError(
            f"An id must be 1 to {MAX_ID} letters, digits, '_', '-' or '.', and start with none of the last two, "
            f"not {str(name)[: MAX_ID + 1]!r}."
        )
    return name


def _request(record: dict[str, Any], folder: str, find: Callable[[str], Character | None]) -> Request:
    describe = record.pop("describe_characters", False)
    if not isinstance(describe, bool):
        raise ValueError(f"describe_characters must be true or false, not {describe!r}.")
    request = Request.from_dict(read_record(record, find, describe))
    request.with_pictures(_check_picture)
    check_request(request)
    return replace_pictures(request, lambda picture: _picture(picture, folder))


def _check_picture(picture: Any, kind: str, what: str) -> Any:
    if kind != MASK and (not isinstance(picture, str) or not picture.strip() or "\0" in picture):
        raise ValueError(f'{what} must be a path, a URL or "@" and the id of a line, not {picture!r}.')
    if kind == MASK and not isinstance(picture, str):
        raise ValueError(f"{what} must be numbers in brackets or the path of a mask, not {picture!r}.")
    if kind == MASK and picture.startswith("@"):
        raise ValueError(f"{what} must be a mask, not the result of another line.")
    return picture


def _picture(picture: str, folder: str) -> str:
    if not picture.startswith("@"):
        return places.absolute(picture, folder)
    match = RESULT.fullmatch(picture)
    if match is None or not match["id"]:
        raise ValueError(f'"{picture}" names no line: "@rex" is the result of the line with the id "rex".')
    # The number is checked against the other job, which may stand further down.
    return picture if match["image"] else f"{picture}#"


def _check_results(jobs: dict[str, Job], named: Mapping[str, int], problems: dict[int, str]) -> None:
    """Give every "@id" its image number; unknown ids and numbers become problems."""
    for name, job in list(jobs.items()):
        try:
            request = replace_pictures(job.request, lambda picture: _numbered(picture, jobs, named, problems))
            jobs[name] = replace(job, request=request)
        except ValueError as error:
            problems[job.line] = str(error)


def _numbered(picture: str, jobs: dict[str, Job], named: Mapping[str, int], problems: Mapping[int, str]) -> str:
    if not picture.startswith("@"):
        return picture
    other, _, number = picture[1:].partition("#")
    if other not in jobs:
        line = named.get(other.casefold())
        if line in problems:
            raise ValueError(f'It needs "{other}" (line {line}), which cannot be made.')
        raise ValueError(f'There is no line with the id "{other}", whose result is asked for.')
    count = jobs[other].request.num_images
    if not number and count > 1:
        raise ValueError(f'"{other}" makes {count} images: say which, "@{other}#0" to "@{other}#{count - 1}".')
    if int(number or 0) >= count:
        raise ValueError(f'"{other}" makes {count} image{"s" * (count > 1)}, counted from 0: there is no "{picture}".')
    return f"@{other}#{int(number or 0)}"


def _ordered(jobs: Mapping[str, Job], problems: dict[int, str]) -> list[Job]:
    """Good jobs in the file's order, but each after those it needs; cycles and what hangs on bad lines are problems."""
    waiting = [job for job in jobs.values() if job.line not in problems]
    users: dict[str, list[Job]] = {}
    missing: dict[str, int] = {}
    for job in waiting:
        missing[job.id] = len(job.needs)
        for other in job.needs:
            users.setdefault(other, []).append(job)
    ready = [job for job in waiting if not missing[job.id]]
    ordered = []
    while ready:
        job = ready.pop()
        ordered.append(job)
        for user in users.get(job.id, ()):
            missing[user.id] -= 1
            if not missing[user.id]:
                ready.append(user)
    done = {job.id for job in ordered}
    _explain([job for job in waiting if job.id not in done], jobs, problems)
    return [job for group in rounds_of(ordered) for job in group]


def rounds_of(ordered: Iterable[Job]) -> list[list[Job]]:
    """Jobs by round: a job needs results of earlier rounds only. `ordered`: each after those it needs."""
    depth: dict[str, int] = {}
    rounds: list[list[Job]] = []
    for job in ordered:
        depth[job.id] = max((depth[other] + 1 for other in job.needs if other in depth), default=0)
        if depth[job.id] == len(rounds):
            rounds.append([])
        rounds[depth[job.id]].append(job)
    return [sorted(group, key=lambda job: job.line) for group in rounds]


def _explain(stuck: list[Job], jobs: Mapping[str, Job], problems: dict[int, str]) -> None:
    """Say of each stuck job whether it is part of a cycle or hangs on one or on a bad line."""
    ids = {job.id for job in stuck}
    for job in stuck:
        path = _way_back(job, ids, jobs)
        if path:
            problems[job.line] = f"These lines need one another's results: {' -> '.join(path)}."
        else:
            lost = next(other for other in job.needs if other in ids or jobs[other].line in problems)
            problems[job.line] = f'It needs "{lost}" (line {jobs[lost].line}), which cannot be made.'


def _way_back(job: Job, ids: set[str], jobs: Mapping[str, Job]) -> list[str]:
    """The shortest way from a job along its needs back to itself, or nothing."""
    before: dict[str, str] = {}
    queue = [job.id]
    for name in queue:
        for other in jobs[name].needs:
            if other == job.id:
                way = [name]
                while way[-1] != job.id:
                    way.append(before[way[-1]])
                return [*reversed(way), job.id]
            if other in ids and other not in before:
                before[other] = name
                queue.append(other)
    return []
