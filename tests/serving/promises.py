"""Every answer that a test sees is held against the OpenAPI document: status, type, headers, body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jsonschema_rs
import schemathesis
from schemathesis.specs.openapi import checks

TRUE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
UNTOLD = (401, 403, 404, 405)  # of paths and methods that do not exist
STREAM = "text/event-stream"  # which has no end that could be waited for


@lru_cache(maxsize=4)
def operations(document: str) -> dict[tuple[str, str], Any]:
    """The operations of a document (JSON) by method and path."""
    schema = schemathesis.openapi.from_dict(json.loads(document))
    found = [entry.ok() for entry in schema.get_all_operations()]
    return {(operation.method.upper(), operation.path): operation for operation in found}


def template(found: Iterable[tuple[str, str]], path: str) -> str | None:
    """Of operations the path that a request's path is of, the one with the most text of its own; None for none."""
    for known in sorted(
        {known for _, known in found}, key=lambda known: len(re.sub(r"{\w+}", "", known)), reverse=True
    ):
        if re.fullmatch(re.sub(r"{\w+}", ".+", known), path, re.DOTALL):
            return known
    return None


@lru_cache(maxsize=1)
def operations_of(app) -> dict[tuple[str, str], Any]:
    """The operations of the document of an application."""
    return operations(json.dumps(app.openapi()))


def hold(found: dict[tuple[str, str], Any], method: str, path: str, response) -> None:
    """AssertionError, or a group of failures, where a response is not as the document says."""
    operation = found.get((method, template(found, path)))
    if operation is None:
        assert response.status_code in UNTOLD, f"{method} {path}: {response.status_code} is told nowhere"
        return
    names = re.findall(r"{(\w+)}", operation.path)
    operation.Case(path_parameters=dict.fromkeys(names, "any")).validate_response(response, checks=TRUE)


def hold_event(app, kind: str, record: Any) -> None:
    """jsonschema's error where the data of a server-sent event are not as the document says."""
    document = app.openapi()
    (events,) = document["paths"]["/v1/generations/{id}/events"]["get"]["responses"]["200"]["content"].values()
    told = {
        entry["properties"]["event"]["const"]: entry["properties"]["data"] for entry in events["itemSchema"]["oneOf"]
    }
    schema = {**told[kind]["contentSchema"], "components": document["components"]}
    jsonschema_rs.validator_for(schema).validate(record)


def watched(send):
    """`TestClient.send` that holds every answer of /v1 against the document of its application."""

    def sending(client, request, *, stream: bool = False, **options):
        response = send(client, request, stream=stream, **options)
        path, app = request.url.path, client.app
        if not path.startswith("/v1/") or path == app.openapi_url or request.method in ("OPTIONS", "HEAD"):
            return response
        if response.headers.get("content-type", "").startswith(STREAM):
            return response
        response.read()
        hold(operations_of(app), request.method, path, response)
        return response

    return sending
