"""Whatever is sent to the REST interface, its answer is no 5xx and as the document says: Schemathesis."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi import checks

from .conftest import png

EXAMPLES = 25  # of every operation and way of making them
TRUE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
HERE = {"host": "127.0.0.1"}


@pytest.fixture
def document(service):
    from realcustom.serving.app import create_app

    # Something to find, so that not every id is unknown.
    picture = service.store.add_upload(png(), service.limits)["id"]
    service.save_character({"name": "rex", "word": "dog", "images": [picture]})
    service.submit({"prompt": "a dog", "steps": 1, "subjects": {"dog": picture}})
    return schemathesis.openapi.from_asgi("/v1/openapi.json", create_app(service, studio=False), headers=HERE)


def exercise(operation, mode: schemathesis.GenerationMode, statuses: Counter) -> None:
    """Send examples of one operation."""

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        response = case.call(headers=HERE)
        statuses[response.status_code] += 1
        assert response.status_code < 500, f"{operation.label}: {response.status_code} {response.text[:200]}"
        case.validate_response(response, checks=TRUE)

    # What has neither parameters nor a body cannot be made wrong.
    with contextlib.suppress(Unsatisfiable):
        send()


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_answer_is_a_server_error(document, mode):
    statuses: Counter = Counter()
    for entry in document.get_all_operations():
        exercise(entry.ok(), schemathesis.GenerationMode(mode), statuses)
    assert sum(statuses.values()) > 200, statuses
    assert statuses[422] + statuses[404] + statuses[400] > 100, statuses
    assert mode == "negative" or statuses[200] > 4, statuses
