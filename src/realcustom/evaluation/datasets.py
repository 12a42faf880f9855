"""The published benchmarks as task lists: DreamBench, pairs of it, MS-Bench, and a user's own JSONL file.

Folder layout of DreamBench: subjects.json ({"subjects": [{"subject", "class_word", "kind", "images": [{"file"}]}]}),
prompts.json ({"live": [...], "object": [...]} with {} for the class word) and the pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from .benchmark import Benchmark, Task, TaskSubject

PUBLISHED_SUBJECTS = 30

# Which category of MS-Bench's combinations a class word belongs to.
MSBENCH_CATEGORIES = {
    "living": ("cat", "dog"),
    "object": ("backpack", "sneaker", "stuffed animal", "lantern", "flower"),
    "scene": ("forest", "mountain", "barn", "waterfall"),
    "upwearing": ("cap", "hat"),
    "midwearing": ("coat", "jacket", "t-shirt", "shirt", "sweater"),
    "wholewearing": ("dress",),
    "downwearing": ("shorts", "trousers", "jeans"),
}


@dataclass(frozen=True)
class Entry:
    """A subject of a DreamBench-like folder: its class word, "live" or "object", and its pictures."""

    name: str
    word: str
    kind: str
    pictures: tuple[Path, ...]


def read_subjects(data: Path) -> dict[str, Entry]:
    """Name -> subject, those whose pictures are all there.

    Raises:
        ValueError: no such listing.
    """
    listing = data / "subjects.json"
    if not listing.is_file():
        raise ValueError(
            f"{data} has no subjects.json: give the folder of DreamBench, as docs/evaluation.md lays it out."
        )
    entries = {}
    for record in json.loads(listing.read_text())["subjects"]:
        pictures = tuple(data / image["file"] for image in record["images"])
        if pictures and all(picture.is_file() for picture in pictures):
            entries[record["subject"]] = Entry(record["subject"], record["class_word"], record["kind"], pictures)
    return entries


def reference_choice(data: Path, entries: dict[str, Entry], listing: Path | None = None) -> dict[str, Path]:
    """The one picture of each subject that the model is given: as a list in UNO's format says, else the first."""
    chosen = {name: entry.pictures[0] for name, entry in entries.items()}
    if listing is not None:
        named = json.loads(listing.read_text())["reference_image"]
        chosen |= {name: data / file for name, file in named.items() if name in entries and (data / file).is_file()}
    return chosen


def chosen_subjects(entries: dict[str, Entry], subjects: Sequence[str] | None) -> list[Entry]:
    """All subjects, or those named.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [name for name in subjects or () if name not in entries]
    if unknown:
        raise ValueError(f"The data has no subject {', '.join(unknown)}; it has: {', '.join(entries)}.")
    return [entries[name] for name in (subjects or entries)]


def dreambench(
    data: Path,
    *,
    images_per_prompt: int = 4,
    subjects: Sequence[str] | None = None,
    references: Path | None = None,
    seed: int = 0,
) -> Benchmark:
    """DreamBench: every subject under the 25 prompts of its kind, several images each; the whole is 3,000 images.

    Args:
        data: folder as in the module text.
        subjects: names of the subjects to use; None for all.
        references: a list in UNO's format that chooses each subject's reference; None takes its first picture.
    """
    entries = read_subjects(data)
    prompts = json.loads((data / "prompts.json").read_text())
    chosen = reference_choice(data, entries, references)
    tasks = []
    for entry in chosen_subjects(entries, subjects):
        source = TaskSubject(word=entry.word, images=(chosen[entry.name],), references=entry.pictures)
        for number, template in enumerate(prompts[entry.kind]):
            for image in range(images_per_prompt):
                tasks.append(
                    Task(
                        key=f"{entry.name}-{number:02d}-{image}",
                        prompt=template.format(entry.word),
                        subjects=(source,),
                        seed=seed + image,
                        group=entry.name,
                        facts={"prompt_number": number},
                    )
                )
    protocol = {
        "images_per_prompt": images_per_prompt,
        "subjects": len({task.group for task in tasks}),
        "published_subjects": PUBLISHED_SUBJECTS,
        "reference": "one picture a subject; CLIP-I and DINO-I against all its pictures",
        "seed": seed,
    }
    return Benchmark(name="dreambench", tasks=tuple(tasks), protocol=protocol)


def dreambench_pairs(data: Path, listing: Path, *, images_per_prompt: int = 1, seed: int = 0) -> Benchmark:
    """Two subjects of DreamBench in one picture, by UNO's list of pairs and prompts.

    Pairs of one class word ("a cat and a cat") are left out, since a word stands for one subject here; the protocol
    says how many.
    """
    entries, lists = read_subjects(data), json.loads(listing.read_text())
    chosen = reference_choice(data, entries, listing)
    tasks, left_out = [], 0
    for pair in lists["pairs"]:
        if not all(name in entries for name in pair["subjects"]):
            continue
        for number, prompt in enumerate(pair["prompts"]):
            sources = [
                TaskSubject(
                    word=_word_in(prompt, entries[name].word), images=(chosen[name],), references=entries[name].pictures
                )
                for name in pair["subjects"]
            ]
            if len({source.word for source in sources}) < len(sources):
                left_out += 1
                continue
            name = "+".join(pair["subjects"])
            tasks += [
                Task(
                    key=f"{name}-{number:02d}-{image}",
                    prompt=prompt,
                    subjects=tuple(sources),
                    seed=seed + image,
                    group=name,
                )
                for image in range(images_per_prompt)
            ]
    protocol = {"images_per_prompt": images_per_prompt, "left_out_same_word": left_out, "seed": seed}
    return Benchmark(name="dreambench-pairs", tasks=tuple(tasks), protocol=protocol)


def msbench(data: Path, listing: Path, *, layout: bool = False, seed: int = 0) -> Benchmark:
    """MS-Bench: two and three subjects by MS-Diffusion's templates.

    Args:
        data: folder with images/NAME/*.jpg (or .png) of the subjects; combinations without pictures are left out.
        listing: its templates and class words as JSON.
        layout: hold every subject to the preset box.
    """
    lists = json.loads(listing.read_text())
    words = lists["class_words"]
    pictures = {name: tuple(sorted((data / "images" / name).glob("*.*g"))) for name in words}
    by_category = {
        category: [name for name, word in words.items() if word in members and pictures[name]]
        for category, members in MSBENCH_CATEGORIES.items()
    }
    tasks = []
    for combination, templates in lists["combinations"].items():
        members = [by_category[category] for category in combination.split("_")]
        for names in product(*members):
            if len({words[name] for name in names}) < len(names):
                continue
            boxes = templates["boxes"] if layout else [None] * len(names)
            sources = tuple(
                TaskSubject(
                    word=words[name],
                    images=pictures[name][:1],
                    references=pictures[name],
                    region=None if box is None else tuple(box),
                )
                for name, box in zip(names, boxes, strict=True)
            )
            for number, template in enumerate(templates["prompts"]):
                name = "+".join(names)
                tasks.append(
                    Task(
                        key=f"{combination}-{name}-{number}",
                        prompt=template.format(*[words[member] for member in names]),
                        subjects=sources,
                        seed=seed,
                        group=name,
                        facts={"combination": combination},
                    )
                )
    return Benchmark(name="msbench", tasks=tuple(tasks), protocol={"layout": layout, "seed": seed})


def folder(path: Path, *, seed: int = 0) -> Benchmark:
    """A user's own list, one JSON object a line: {"prompt", "subjects": {word: picture or pictures}}.

    Optional: "key", "seed", "group", and "references", {word: pictures} to compare with where they are not the
    subjects' own. Paths are relative to the file.

    Raises:
        ValueError: names the line that cannot be used.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a JSONL file with a prompt and subjects on each line.")
    tasks = [task for number, line in _lines(path) for task in [_own_task(path, number, line, seed)]]
    return Benchmark(name="folder", tasks=tuple(tasks), protocol={"file": path.name, "seed": seed})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip())


def _own_task(path: Path, number: int, line: str, seed: int) -> Task:
    try:
        record = json.loads(line)
        prompt, given = record["prompt"], record["subjects"]
        real = record.get("references", {})
        sources = [
            TaskSubject(
                word=word,
                images=_pictures(path, pictures),
                references=_pictures(path, real.get(word, pictures)),
            )
            for word, pictures in given.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it needs a prompt, and subjects as word -> picture"
        raise ValueError(f"Line {number} of {path} cannot be used: {reason}.") from error
    names = "+".join(Path(str(source.images[0])).stem for source in sources)
    return Task(
        key=re.sub(r"[^\w-]+", "-", str(record.get("key", f"{number:05d}"))),
        prompt=prompt,
        subjects=tuple(sources),
        seed=int(record.get("seed", seed)),
        group=str(record.get("group", names)),
    )


def _pictures(path: Path, value) -> tuple[Path, ...]:
    files = tuple(path.parent / name for name in ([value] if isinstance(value, str) else value))
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(f"there is no picture {', '.join(missing) or 'given'}")
    return files


def _word_in(prompt: str, word: str) -> str:
    """The class word as it stands in the prompt; where a class of several words is cut short there, its last one."""
    return word if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt) else word.split()[-1]
