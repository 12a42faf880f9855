"""What a server writes about its work: a line a request, a line a generation, never a prompt unless it is asked to.

Lines below WARNING are written only where the operator chose so; see `configure`.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from realcustom.serving.log_form import LogForm
from realcustom.serving.records import Job
from realcustom.serving.tracing import REQUEST_ID, Origin

access = logging.getLogger("realcustom.access")
generations = logging.getLogger("realcustom.generations")


class Lines(logging.Formatter):
    """One record a line, its facts as name=value or as JSON; what a client sent cannot begin a line of its own."""

    def __init__(self, form: LogForm):
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self.form is LogForm.json:
            about = {"time": moment, "level": record.levelname, "logger": record.name, "message": text}
            request_id = REQUEST_ID.get()
            return json.dumps(about | ({"request_id": request_id} if request_id else {}) | facts)
        return f"{moment} {record.levelname} {record.name}: {text}" + "".join(
            f" {name}={json.dumps(value)}" for name, value in facts.items() if value is not None
        )


class Prompts(logging.Filter):
    """Takes the prompts out of all records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        if hasattr(record, "facts"):
            record.facts = {name: value for name, value in record.facts.items() if name != "prompt"}
        return True


def configure(form: LogForm, prompts: bool, *filters: logging.Filter) -> None:
    """Write to standard error from now on, through `filters`; with `prompts` those of generations, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(form))
    for one in (*filters, *(() if prompts else (Prompts(),))):
        handler.addFilter(one)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for log in (access, generations):
        log.setLevel(logging.WARNING if form is LogForm.quiet else logging.INFO)


def log_generation(job: Job, seconds: float, batch: int, origin: Origin | None) -> None:
    """A line of a generation that has ended or was handed back; `seconds` its run of `batch` generations took."""
    request = job.request
    facts = {
        "id": job.id,
        "state": job.state,
        "request_id": origin and origin.request_id,
        "owner": job.owner or None,
        "width": request.get("width"),
        "height": request.get("height"),
        "steps": request.get("steps"),
        "images": request.get("num_images"),
        "subjects": len(request.get("subjects", {})),
        "preset": request.get("preset"),
        "batch": batch,
        "attempts": job.attempts,
        "waited_s": None if job.started is None else round(job.started - job.created, 3),
        "ran_s": round(seconds, 3),
        "prompt": request.get("prompt"),
    }
    generations.info("generation", extra={"facts": facts})
