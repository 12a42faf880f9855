"""The OpenAPI document: complete, true, and good enough for a client that is generated from it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from fastapi.testclient import TestClient

from realcustom import Request
from realcustom.serving.app import create_app
from realcustom.serving.guard import OPEN

from .conftest import data_url, png

ASK = {"prompt": "a dog on the beach", "steps": 1}


def operations(document: dict):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


@pytest.fixture
def document(idle_client) -> dict:
    return idle_client.get("/v1/openapi.json").json()


def test_no_reference_dangles(document):
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= set(document["components"]["schemas"])
    assert {"SubjectBody", "GenerationBody", "ProgressEvent", "Problem"} <= names
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_field_of_a_request_is_told_and_null_is_its_default(document, idle_client):
    told = document["components"]["schemas"]["GenerationBody"]["properties"]
    assert {field.name for field in fields(Request)} <= set(told)
    nulls = {name: None for name in told if name != "prompt"}
    subject = dict.fromkeys(document["components"]["schemas"]["SubjectBody"]["properties"])
    subjects = {"dog": {**subject, "images": data_url(png())}}
    for record in (nulls, {**nulls, "subjects": subjects}):
        made = idle_client.post("/v1/generations", json={**record, "prompt": "a dog"})
        assert made.status_code == 202, made.text
        assert (made.json()["request"]["seed"], made.json()["request"]["num_images"]) == (0, 1)


def test_refusals_headers_events_and_names(document):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert "create_generation" in names
    for path, method, operation in operations(document):
        for code, answer in operation["responses"].items():
            if code >= "400" and path != "/v1/ready":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (path, method, code)
    made = document["paths"]["/v1/generations"]["post"]["responses"]
    assert "Location" in made["202"]["headers"]
    assert "Retry-After" in made["429"]["headers"]
    events = document["paths"]["/v1/generations/{id}/events"]["get"]["responses"]["200"]["content"]
    assert "ProgressEvent" in json.dumps(events["text/event-stream"])


def test_the_token_is_told_where_there_is_one(service, document):
    assert "securitySchemes" not in document["components"]
    client = TestClient(create_app(service, token="secret-token", studio=False), base_url="http://127.0.0.1")
    told = client.get("/v1/openapi.json", headers={"authorization": "Bearer secret-token"}).json()
    assert set(told["components"]["securitySchemes"]) == {"bearer", "cookie"}
    for path, _, operation in operations(told):
        assert ("401" in operation["responses"], "security" in operation) == (path not in OPEN,) * 2
