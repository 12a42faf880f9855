"""Whatever is sent to the REST interface, its answer is no 5xx."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from .conftest import png

EXAMPLES = 12  # of every operation; more with --hypothesis-profile or by running the document against a real server


@pytest.fixture
def document(service):
    from realcustom.serving.app import create_app

    # Something to find, so that not every id is unknown.
    picture = service.store.add_upload(png(), service.limits)["id"]
    service.save_character({"name": "rex", "word": "dog", "images": [picture]})
    service.submit({"prompt": "a dog", "steps": 1, "subjects": {"dog": picture}})
    return schemathesis.openapi.from_asgi("/v1/openapi.json", create_app(service, studio=False))


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_no_answer_is_a_server_error(case):
    case.headers["host"] = "127.0.0.1"
    response = case.call()
    not_a_server_error(None, response, case)
