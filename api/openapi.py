"""The OpenAPI document: ``python -m api.openapi`` writes ``docs/openapi.json``, ``--check`` only compares."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import SecretStr

from api.schemas.common import ProblemOut
from api.schemas.jobs import order_schemas
from settings import Settings

FILE = Path(__file__).parent.parent / "docs" / "openapi.json"


def document(app: FastAPI) -> dict[str, Any]:
    """The document of ``app``, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = made["components"]["schemas"]
        problem = ProblemOut.model_json_schema(
            ref_template="#/components/schemas/{model}", mode="serialization"
        )
        schemas |= problem.pop("$defs")
        schemas |= {"ProblemOut": problem, **order_schemas()}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        _share_problems(made)
        _say_how_to_prove_oneself(made)
        made["components"]["schemas"] = dict(sorted(schemas.items()))
        app.openapi_schema = made
    return app.openapi_schema


def _say_how_to_prove_oneself(made: dict[str, Any]) -> None:
    """Everything below /v1 needs an API key."""
    about = "An API key: `mk_live_…`"
    made["components"]["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "description": about}
    }
    for path, operations in made["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"apiKey": []}]


def _share_problems(made: dict[str, Any]) -> None:
    """Says each kind of refusal once and refers to it from every path."""
    shared: dict[str, Any] = {}
    for path in made["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if "application/problem+json" in answer.get("content", {}):
                    shared.setdefault(f"Problem{status}", answer)
                    operation["responses"][status] = {"$ref": f"#/components/responses/Problem{status}"}
    made["components"]["responses"] = dict(sorted(shared.items()))


def text() -> str:
    """The document of this code, as the committed file has it; no setting of the machine changes it."""
    from api.app import create_app

    settings = Settings(secret_key=SecretStr("for the document only"), database_url=None, broker_url=None)
    return json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m api.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is fresh")
    if not parser.parse_args().check:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if FILE.read_text(encoding="utf-8") == text():
        return 0
    sys.stderr.write(f"{FILE.name} is stale: run python -m api.openapi\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
