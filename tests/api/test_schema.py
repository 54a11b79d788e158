"""Requests made from the OpenAPI document: whatever they hold, the answer is one that the document names."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

from tests.api.conftest import ORDER, Who

EXAMPLES = 8
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.fixture
def ids(api: TestClient) -> dict[str, str]:
    """Objects for the paths to find."""
    endpoint = {"url": "https://example.org/hook"}
    return {
        "job_id": api.post("/v1/jobs", json=ORDER).json()["id"],
        "endpoint_id": api.post("/v1/webhook-endpoints", json=endpoint).json()["id"],
        "name": "ties",
    }


def operations(app: FastAPI) -> Iterator[Any]:
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        yield found.ok()  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_as_documented(
    app: FastAPI, ids: dict[str, str], anna: Who, mode: GenerationMode
) -> None:
    load_all_checks()
    checks: Any = CHECKS.get_by_names(CHECKED)
    tried = set()

    def send(case: Any) -> None:
        for name in case.path_parameters or {}:
            if name in ids and mode is GenerationMode.POSITIVE and case.method != "DELETE":
                case.path_parameters[name] = ids[name]
        case.headers.pop("Prefer", None)
        tried.add(case.operation.label)
        case.call_and_validate(headers=anna.headers, checks=checks)

    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    for operation in operations(app):
        strategy = operation.as_strategy(generation_mode=mode)
        with suppress(hypothesis.errors.Unsatisfiable):  # an operation with nothing that could be wrong
            given: Any = hypothesis.given(strategy)
            run: Any = settings(given(send))
            run()
    assert len(tried) > 15, sorted(tried)
