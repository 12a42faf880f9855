"""Jobs files: what is refused with which sentence, what needs what, and what counts as done. No model is loaded."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import picture
from PIL import Image

from realcustom.batch import outputs, places
from realcustom.batch.jobs import read_jobs, rounds_of
from realcustom.batch.run import Outcome, groups, run_local
from realcustom.pictures.png import read_metadata
from realcustom.types import Request, Result

DOG = {"prompt": "a dog on the beach", "subjects": {"dog": "rex.png"}}
MODEL = {"model": "tiny", "adapter": None}


@pytest.fixture
def write(tmp_path):
    picture(0).save(tmp_path / "rex.png")

    def write(*lines: dict | str | bytes) -> str:
        """A jobs file of these lines, beside rex.png."""
        raw = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
        encoded = [line.encode() if isinstance(line, str) else line for line in raw]
        (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(encoded))
        return str(tmp_path / "jobs.jsonl")

    return write


def job(name: str, **fields) -> dict:
    return {"id": name, **DOG, **fields}


class StubEngine:
    """Answers with pictures that tell request from request; refuses the seeds it is told to, is interrupted at one."""

    batch_size = 1

    def __init__(self, refuses=(), interrupted_at=None):
        self.refuses, self.interrupted_at, self.made = refuses, interrupted_at, []

    def resolve(self, request):
        return request

    def settings(self, request):
        return {"request": {"seed": request.seed, "prompt": request.prompt}, "model": MODEL}

    def run(self, request):
        if len(self.made) == self.interrupted_at:
            raise KeyboardInterrupt
        if request.seed in self.refuses:
            raise ValueError(f"No seed {request.seed}.")
        self.made.append(request.seed)
        size = (request.num_images, 8, 8)
        images = np.random.default_rng(request.seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        masks = {word: np.full((1, *size), request.seed / 255) for word in request.subjects}
        return Result(
            images=tuple(Image.fromarray(image) for image in images),
            masks=masks,
            metadata=tuple(self.settings(request.image_request(index)) for index in range(request.num_images)),
            request=request,
        )


def work(source: str, out: Path, engine: StubEngine, save_masks: bool = False) -> list[Outcome]:
    jobs, problems = read_jobs(source)
    jobs, more, hashes = outputs.check_files(jobs, source, str(out), save_masks)
    assert problems + more == []
    out.mkdir(exist_ok=True)
    return list(run_local(engine, outputs.plan(jobs, hashes, MODEL, str(out), save_masks).tasks))


BAD_LINES = [
    ("{", "The line is not JSON"),
    (b'{"id": "\xff"}', "not UTF-8"),
    ("[1]", "must be a JSON object"),
    ("[" * 100_000, "not JSON|nested too deeply"),
    ('{"id": "a", "prompt": "a dog", "guidance_scale": NaN}', "NaN is not a number"),
    ('{"id": "a", "prompt": "a dog", "guidance_scale": 1e999}', "guidance scale must be a number"),
    ('{"id": "a", "prompt": "a dog", "prompt": "a cat"}', '"prompt" is given twice'),
    ('{"id": "a", "prompt": "a dog", "subjects": {"dog": "rex.png", "dog": "rex.png"}}', '"dog" is given twice'),
    ({"prompt": "a dog"}, 'needs an "id"'),
    ({"id": "../up", "prompt": "a dog"}, "An id must be"),
    ({"id": "/etc/x", "prompt": "a dog"}, "An id must be"),
    ({"id": ".hidden", "prompt": "a dog"}, "An id must be"),
    ({"id": "a" * 101, "prompt": "a dog"}, "An id must be"),
    ({"id": "a\n", "prompt": "a dog"}, "An id must be"),
    ({"id": 7, "prompt": "a dog"}, "An id must be"),
    ({"id": "a"}, "needs a prompt"),
    ({"id": "a", "prompt": " "}, "The prompt is empty"),
    ({"id": "a", "prompt": "x" * 2001}, "2001 characters"),
    ({"id": "a", "prompt": "a dog", "sed": 1}, "'sed' is no field of a request"),
    ({"id": "a", "prompt": "a dog", "preset": []}, "preset must be text"),
    ({"id": "a", "prompt": "a dog", "seed": -2}, "seed must be a whole number"),
    ({"id": "a", "prompt": "a dog", "width": -64}, "width must be a whole number"),
    ({"id": "a", "prompt": "a cat", "subjects": {"dog": "rex.png"}}, '"dog" does not stand in the prompt'),
    ({"id": "a", "prompt": "a dog", "subjects": ["rex.png"]}, "word -> image"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": 5}}, 'The reference of "dog" must be a path'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": ""}}, 'The reference of "dog" must be a path'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": []}}, "at least one reference image"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": {"images": "rex.png", "strength": "1"}}}, "strength of a sub"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": {"images": "rex.png", "region": 3}}}, "region of"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": {"images": "rex.png", "region": "@b"}}}, "must be a mask"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@"}}, '"@" names no line'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@b#x"}}, "names no line"),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@b"}}, 'no line with the id "b"'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@good#1"}}, 'there is no "@good#1"'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@many"}}, 'say which, "@many#0" to "@many#2"'),
    ({"id": "a", "prompt": "a dog", "subjects": {"dog": "@a"}}, "need one another's results: a -> a"),
    ({"id": "GOOD", "prompt": "a dog"}, 'The id "GOOD" is that of line 1, too'),
]


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES)
def test_bad_lines_are_named_with_their_number(write, line, sentence):
    jobs, problems = read_jobs(write(job("good"), "", job("many", num_images=3), line))
    assert [entry.id for entry in jobs] == ["good", "many"]
    assert [problem.line for problem in problems] == [4]
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(problems[0].sentence)


def bad_pictures(folder: Path) -> dict[str, tuple[bytes, str]]:
    png = (folder / "rex.png").read_bytes()
    return {
        "text.png": (b"not an image", "not an image"),
        "cut.png": (png[: len(png) // 2], "damaged or cut off"),
        "empty.png": (b"", "is empty"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    }


def test_pictures_are_opened_before_any_work(write, tmp_path):
    table = bad_pictures(tmp_path)
    for name, (data, _) in table.items():
        (tmp_path / name).write_bytes(data)
    names = [*table, "missing.png", "."]
    source = write(*(job(f"j{n}", subjects={"dog": name}) for n, name in enumerate(names)), job("good"))
    jobs, problems = read_jobs(source)
    kept, more, hashes = outputs.check_files(jobs, source, str(tmp_path / "out"), False)
    assert problems == []
    assert [entry.id for entry in kept] == ["good"]
    assert list(hashes) == [str(tmp_path / "rex.png")]
    expected = [*(sentence for _, sentence in table.values()), "There is no file", "is not a file"]
    for problem, sentence in zip(more, expected, strict=True):
        assert sentence in problem.sentence


def test_what_needs_a_bad_line_is_bad_and_says_why(write):
    jobs, problems = read_jobs(
        write(
            job("third", subjects={"dog": "@second"}),
            job("second", subjects={"dog": "@first"}),
            {"id": "first", "prompt": "a cat", "subjects": {"dog": "rex.png"}},
            job("good"),
        )
    )
    assert [entry.id for entry in jobs] == ["good"]
    assert [problem.line for problem in problems] == [1, 2, 3]
    assert problems[0].sentence == 'It needs "second" (line 2), which cannot be made.'
    assert problems[1].sentence == 'It needs "first" (line 3), which cannot be made.'


def test_a_cycle_is_spelled_out_and_what_hangs_on_it_is_named(write):
    lines = [job(name, subjects={"dog": f"@{other}"}) for name, other in ("ab", "bc", "ca", "da")]
    jobs, problems = read_jobs(write(*lines))
    assert jobs == []
    assert "a -> b -> c -> a" in problems[0].sentence
    assert problems[3].sentence == 'It needs "a" (line 1), which cannot be made.'


def test_jobs_come_after_those_they_need(write):
    rng = np.random.default_rng(0)
    names = [f"n{number}" for number in range(60)]
    lines = []
    for number, name in enumerate(names):
        others = rng.choice(number, min(number, 2), replace=False) if number else []
        subjects = {"dog": [f"@n{other}" for other in others] or "rex.png"}
        lines.append(job(name, subjects=subjects))
    jobs, problems = read_jobs(write(*(lines[index] for index in rng.permutation(60))))
    assert problems == []
    seen = set()
    for entry in jobs:
        assert seen.issuperset(entry.needs)
        seen.add(entry.id)
    rounds = rounds_of(jobs)
    assert [entry for group in rounds for entry in group] == jobs
    assert rounds[0][0].id == "n0"


def test_every_way_to_name_a_picture(write, tmp_path):
    fsspec.filesystem("memory").pipe_file("/pictures/tom.png", (tmp_path / "rex.png").read_bytes())
    images = ["rex.png", str(tmp_path / "rex.png"), f"file://{tmp_path}/rex.png", "memory://pictures/tom.png"]
    jobs, problems = read_jobs(write(job("a", subjects={"dog": {"images": images, "strength": 0.5}})))
    _, more, hashes = outputs.check_files(jobs, "", str(tmp_path / "out"), False)
    assert problems + more == []
    assert jobs[0].request.subjects["dog"].images == (*[str(tmp_path / "rex.png")] * 3, images[3])
    assert len(hashes) == 2
    assert len(set(hashes.values())) == 1


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([job("rex", subjects={"dog": "rex.png"})], "would be written over .*a picture that is read"),
        ([job("a", num_images=2), job("a-0")], "over a file of line 1"),
        ([job("a"), job("a.mask.dog")], "over a file of line 1"),
    ],
)
def test_no_file_is_written_over_another(write, tmp_path, lines, sentence):
    source = write(*lines)
    jobs, _ = read_jobs(source)
    _, problems, _ = outputs.check_files(jobs, source, str(tmp_path), True)
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(problems[-1].sentence)


def test_names_that_are_too_long_are_refused(write, tmp_path):
    word = "\u72ac" * 60
    source = write(job("a" * 80, prompt=f"a {word}", subjects={word: "rex.png"}))
    jobs, _ = read_jobs(source)
    assert outputs.check_files(jobs, source, str(tmp_path), False)[1] == []
    assert "too long" in outputs.check_files(jobs, source, str(tmp_path), True)[1][0].sentence


def test_a_second_run_makes_only_what_is_missing(write, tmp_path):
    source = write(job("a", seed=1), job("b", seed=2, num_images=2), job("c", seed=3, subjects={"dog": "@b#1"}))
    out, engine = tmp_path / "out", StubEngine()
    assert [outcome.images for outcome in work(source, out, engine)] == [1, 2, 1]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["a.json", "a.png", "b-0.png", "b-1.png", "b.json", "c.json", "c.png"]
    )
    assert work(source, out, engine) == []
    (out / "b-1.png").unlink()
    (out / "a.json").write_text("{")
    assert [outcome.id for outcome in work(source, out, engine)] == ["a", "b"]
    assert engine.made == [1, 2, 3, 3, 3], "of two images the one that was lost"
    assert [outcome.id for outcome in work(source, out, engine, save_masks=True)] == ["a", "b", "c"]
    assert np.asarray(Image.open(out / "b-1.mask.dog.png")).max() == 3
    assert work(source, out, engine, save_masks=True) == []


def test_a_changed_line_is_noticed_with_all_that_uses_its_result(write, tmp_path):
    lines = [job("a", seed=1, num_images=2), job("b", subjects={"dog": "@a#0"}), job("c", seed=3)]
    out = tmp_path / "out"
    work(write(*lines), out, StubEngine(), save_masks=True)
    reordered = [lines[2], {"seed": 1, **lines[0]}, lines[1]]
    assert work(write(*reordered), out, StubEngine()) == []
    source = write({**lines[0], "seed": 9, "num_images": 1}, job("b", subjects={"dog": "@a"}), lines[2])
    jobs, _ = read_jobs(source)
    hashes = outputs.hash_pictures(jobs)[0]
    plan = outputs.plan(jobs, hashes, MODEL, str(out), False)
    assert [entry.id for entry in plan.changed] == ["a", "b"]
    assert plan.finished == 1
    assert len(outputs.plan(jobs, hashes, {**MODEL, "model": "other"}, str(out), False).changed) == 3
    assert len(list(run_local(StubEngine(), plan.tasks))) == 2
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("a")) == ["a.json", "a.png"]
    picture(1).save(tmp_path / "rex.png")
    assert len(outputs.plan(jobs, outputs.hash_pictures(jobs)[0], MODEL, str(out), False).changed) == 3


def test_jobs_with_the_same_settings_are_made_together(write, tmp_path):
    lines = [job("a", seed=1), job("b", steps=3), job("c", seed=2, num_images=2), job("d", preset="fast"), job("e")]
    jobs, _ = read_jobs(write(*lines, job("f", subjects={}), job("g", negative_prompt="a cat")))
    hashes = outputs.hash_pictures(jobs)[0]
    tasks = outputs.plan(jobs, hashes, MODEL, str(tmp_path / "out"), False).tasks
    cut = [[task.id for task in group] for group in groups(tasks, 3)]
    assert cut == [["a", "c"], ["e"], ["b"], ["d"], ["f"], ["g"]]
    assert [[task.id for task in group] for group in groups(tasks[2:3], 1)] == [["c"]]


def test_a_refused_job_fails_with_those_that_need_it(write, tmp_path):
    source = write(job("a", seed=1), job("b", subjects={"dog": "@a"}), job("c", seed=3))
    outcomes = {outcome.id: outcome for outcome in work(source, tmp_path / "out", StubEngine(refuses=[1]))}
    assert outcomes["a"].error == "No seed 1."
    assert outcomes["b"].error == 'It needs "a", which could not be made.'
    assert outcomes["c"].images == 1
    assert [outcome.id for outcome in work(source, tmp_path / "out", StubEngine())] == ["a", "b"]


def test_input_and_output_in_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe_file("/in/rex.png", outputs.png_bytes(picture(0)))
    lines = [job("a", seed=1), job("b", seed=2, subjects={"dog": "@a"})]
    store.pipe_file("/in/jobs.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    source, out = "memory://in/jobs.jsonl", "memory://out"
    jobs, problems = read_jobs(source)
    jobs, more, hashes = outputs.check_files(jobs, source, out, False)
    assert problems + more == []
    assert jobs[0].request.subjects["dog"].images == ("memory://in/rex.png",)
    tasks = outputs.plan(jobs, hashes, MODEL, out, False).tasks
    assert tasks[1].request.subjects["dog"].images == ("memory://out/a.png",)
    places.make_folder(out)
    assert not outputs.is_finished(tasks[0])
    assert [outcome.images for outcome in run_local(StubEngine(), tasks)] == [1, 1]
    assert outputs.is_finished(tasks[0])
    assert outputs.plan(jobs, hashes, MODEL, out, False).tasks == ()


def plan_of(source: str, out: Path, save_settings: bool = True) -> outputs.Plan:
    jobs, problems = read_jobs(source)
    assert problems == []
    return outputs.plan(jobs, outputs.hash_pictures(jobs)[0], MODEL, str(out), False, save_settings)


def test_images_made_before_an_interruption_are_written(write, tmp_path):
    source, out = write(job("a", seed=4, num_images=8)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        work(source, out, StubEngine(interrupted_at=5))
    assert sorted(path.name for path in out.iterdir()) == [f"a-{index}.png" for index in range(5)]
    stub = StubEngine().run(Request(prompt="a dog", seed=8))
    assert np.array_equal(np.asarray(Image.open(out / "a-4.png")), np.asarray(stub.images[0]))
    assert plan_of(source, out).foreign == ()
    engine = StubEngine()
    assert [outcome.images for outcome in work(source, out, engine)] == [3]
    assert engine.made == [9, 10, 11], "those that are there are not made again"
    record = json.loads((out / "a.json").read_text())
    assert [settings["request"]["seed"] for settings in record["settings"]] == list(range(4, 12))


def test_images_left_of_another_line_or_without_their_masks_are_made_again(write, tmp_path):
    source, out = write(job("a", seed=4, num_images=3)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        work(source, out, StubEngine(interrupted_at=2), save_masks=True)
    (out / "a-1.mask.dog.png").unlink()
    engine = StubEngine()
    assert [outcome.images for outcome in work(source, out, engine, save_masks=True)] == [2]
    (out / "a.json").unlink()
    moved = StubEngine()
    assert [outcome.images for outcome in work(write(job("a", seed=5, num_images=3)), out, moved, True)] == [3]
    assert moved.made == [5, 6, 7]


def test_a_job_of_which_only_the_record_was_lost_is_recorded_again(write, tmp_path):
    source, out = write(job("a", num_images=2), job("b")), tmp_path / "out"
    work(source, out, StubEngine())
    before = (out / "a.json").read_text()
    for name in ("a.json", "b.json"):
        (out / name).unlink()
    engine = StubEngine()
    assert [outcome.images for outcome in work(source, out, engine)] == [0, 0]
    assert engine.made == []
    assert (out / "a.json").read_text() == before


def test_a_random_seed_is_drawn_once_and_the_job_stays_finished(write, tmp_path):
    source, out = write(job("a", seed=-1, num_images=3), job("b", subjects={"dog": "@a#1"})), tmp_path / "out"
    engine = StubEngine(interrupted_at=2)
    with pytest.raises(KeyboardInterrupt):
        work(source, out, engine)
    again = StubEngine()
    work(source, out, again)
    assert again.made[0] == engine.made[0] + 2, "the job goes on with the seed that was drawn"
    assert json.loads((out / "a.json").read_text())["settings"][0]["request"]["seed"] == engine.made[0]
    assert plan_of(source, out).tasks == ()
    other = write(job("a", seed=-1, num_images=3), job("b", seed=-1, subjects={}))
    assert [entry.id for entry in plan_of(other, out).changed] == ["b"]


def test_images_of_others_are_in_the_way(write, tmp_path):
    source, out = write(job("a"), job("b", num_images=2), job("c")), tmp_path / "out"
    out.mkdir()
    picture(0).save(out / "a.png")
    (out / "b-1.png").write_bytes(
        outputs.png_bytes(picture(0), {"request": {"prompt": "a cat", "seed": 0}, "model": 0})
    )
    assert [entry.id for entry in plan_of(source, out).foreign] == ["a", "b"]
    assert len(plan_of(source, out).tasks) == 3


def test_images_without_settings(write, tmp_path):
    source, out = write(job("a")), tmp_path / "out"
    out.mkdir()
    list(run_local(StubEngine(), plan_of(source, out, save_settings=False).tasks))
    with pytest.raises(ValueError, match="carries no settings"):
        read_metadata(out / "a.png")
    assert plan_of(source, out).tasks == ()


def test_a_mask_is_hashed_as_it_is_read(write, tmp_path):
    """White paint on a transparent ground: laid over white, every such mask would be the same picture."""
    painted = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    region = {"dog": {"images": "mask.png", "region": "mask.png"}}
    hashes = []
    for x in (0, 1):
        painted.putpixel((x, 0), (255, 255, 255, 255))
        painted.save(tmp_path / "mask.png")
        jobs, problems = read_jobs(write(job("a", subjects=region)))
        assert problems == []
        hashes.append(outputs.hash_pictures(jobs)[0])
    place = str(tmp_path / "mask.png")
    assert hashes[0][place] == hashes[1][place]
    assert hashes[0][outputs.mask_key(place)] != hashes[1][outputs.mask_key(place)]
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    assert "black everywhere" in outputs.hash_pictures(jobs)[1][1]


def test_every_place_of_a_home_is_found(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jobs, _ = read_jobs(write(job("a", subjects={"dog": "~/rex.png"})))
    assert jobs[0].request.subjects["dog"].images == (str(tmp_path / "rex.png"),)
    with pytest.raises(ValueError, match="A path is empty"):
        places.absolute("")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps([job("a"), job("b")]), "is one JSON array"),
        (json.dumps([job("a"), job("b")], indent=1), "is one JSON array"),
        ("\ufeff\n [" + json.dumps(job("a")) + ",\n" + json.dumps(job("b")) + "]", "is one JSON array"),
        (json.dumps(job("a"), indent=1), "is a JSON object over several lines"),
        (json.dumps(job("a")).encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(write, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_jobs(write(content))


def test_names_in_a_reason_keep_their_letters():
    reasons = [places._reason(ValueError(text)) for text in ("HTTPFileSystem needs more.", "Protocol not known: x")]
    assert reasons == ["HTTPFileSystem needs more", "protocol not known: x"]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("none.jsonl", "There is no file"),
        ("nonsense://x/y", "cannot be reached"),
        ("memory://none", "There is no file"),
    ],
)
def test_jobs_files_that_cannot_be_read(place, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_jobs(place)


def test_an_empty_jobs_file_is_refused(write):
    with pytest.raises(ValueError, match="holds no jobs"):
        read_jobs(write("", " "))
