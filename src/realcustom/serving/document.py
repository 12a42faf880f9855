"""The OpenAPI document, as the server really answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from realcustom.serving import schema
from realcustom.serving.guard import COOKIE, OPEN

REFERENCE = "#/components/schemas/{model}"
BODIES = (
    schema.GenerationBody,
    schema.ImageBody,
    schema.EditBody,
    schema.CharacterBody,
    schema.ProgressEvent,
    schema.NewsEvent,
    schema.Nothing,
    schema.JobView,
    schema.Problem,
)
# What FastAPI would answer to a wrong parameter; here every refusal is a `Problem`.
FOREIGN = ("HTTPValidationError", "ValidationError")
ALWAYS = {
    "403": "The request comes from a page of another site, or under a foreign name.",
    "503": "The data folder cannot be used at the moment.",
    "507": "There is no room left for what the request would keep.",
}
HEADERS = {
    "202": ("Location", "Path of the generation.", "string"),
    "401": ("WWW-Authenticate", "How to bring the token.", "string"),
    "429": ("Retry-After", "Seconds after which there may be room.", "integer"),
    "503": ("Retry-After", "Seconds after which to try again.", "integer"),
}


def describe(app: FastAPI, token: bool, root_path: str = "") -> dict[str, Any]:
    """The document of an application's routes.

    token: whether requests must bring one. root_path: under which a proxy shows them.
    """
    record = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    if root_path:
        record["servers"] = [{"url": root_path}]
    schemas = record["components"]["schemas"]
    schemas |= _schemas(BODIES)
    for name in FOREIGN:
        schemas.pop(name, None)
    for path, operations in record["paths"].items():
        for operation in operations.values():
            _complete(operation, token and path not in OPEN)
    if token:
        record["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
    return record


def _complete(operation: dict[str, Any], token: bool) -> None:
    """Add what is the same for all operations."""
    if token:
        operation["security"] = [{"bearer": []}, {"cookie": []}]
    answers = operation["responses"]
    texts = {**ALWAYS, **({"401": "The token is missing or wrong."} if token else {})}
    for code, text in texts.items():
        answers.setdefault(code, {"description": text, "content": _problem()})
    if "422" in answers:
        answers["422"]["content"] = _problem()
    for code, (name, text, kind) in HEADERS.items():
        if code in answers:
            answers[code]["headers"] = {name: {"description": text, "schema": {"type": kind}}}


def _problem() -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(model="Problem")}}}


def _schemas(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    _, record = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    return record["$defs"]
