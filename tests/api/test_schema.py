"""Requests made from the OpenAPI document: whatever they hold, the answer is one that the document names."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
import yaml
from fastapi import FastAPI
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

from api.errors import Problem
from api.intake import order_of
from tests.api.conftest import ORDER, Who

EXAMPLES = 8
DOCS = Path(__file__).parents[2] / "docs"
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
CURL = re.compile(r"-d '(\{.*?\})'", re.DOTALL)
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


def told_orders() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every order, and every recipe as an order, that the documentation shows."""
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        text = page.read_text(encoding="utf-8")
        for body in (*YAML.findall(text), *CURL.findall(text)):
            shown = None
            with suppress(yaml.YAMLError):  # what is cut short for the eye
                shown = yaml.safe_load(body)
            if isinstance(shown, dict) and "steps" in shown:
                yield page.name, {"recipe": shown}
            elif isinstance(shown, dict) and {"recipe", "kind"} & shown.keys():
                yield page.name, shown


def test_the_document_takes_what_the_documentation_shows() -> None:
    document = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    order = {"$ref": "#/components/schemas/JobCreate", "components": document["components"]}
    taken = []
    for page, shown in told_orders():
        with suppress(Problem):  # what the service does not take either
            order_of(shown)
            jsonschema_rs.validate(order, shown)
            taken.append(page)
    assert len(taken) > 10


def test_every_route_names_the_answer_while_the_database_is_away() -> None:
    paths = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))["paths"]
    of_v1 = [each for path, found in paths.items() if path.startswith("/v1/") for each in found.values()]
    assert [each["operationId"] for each in of_v1 if "503" not in each["responses"]] == []


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
