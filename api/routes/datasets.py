"""Small texts and JSONL files that jobs may be scored on. The same bytes are kept once."""

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from api.bodies import load_json
from api.deps import Id, InDesk, Reader, Writer, content_type_of, found, takes
from api.errors import Problem
from api.schemas.common import PageOut, problems
from api.schemas.datasets import DatasetOut
from db import artifacts

TYPES = ("application/x-ndjson", "application/jsonl", "text/plain")
PATH = "/v1/datasets"
_NAME = re.compile(r"[\w][\w .()+-]{0,126}")

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=problems())

UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {each: {"schema": {"type": "string", "minLength": 1}} for each in TYPES},
    }
}


async def upload(request: Request) -> bytes:
    """The bytes of an upload."""
    return await request.body()


@router.post(
    "",
    status_code=201,
    responses=problems(413, 415),
    dependencies=[Depends(takes(*TYPES))],
    openapi_extra=UPLOAD,
)
def upload_dataset(
    desk: InDesk,
    caller: Writer,
    request: Request,
    body: Annotated[bytes, Depends(upload)],
    response: Response,
    name: Annotated[str, Query(min_length=1, max_length=127, description="A file name")] = "data",
) -> DatasetOut:
    """Keeps a UTF-8 text or JSONL file. Uploading the same bytes again gives the same data set."""
    _check(name, body, content_type_of(request))
    digest = hashlib.sha256(body).hexdigest()
    with desk.begin() as session:
        row = artifacts.put_dataset(session, caller.tenant_id, name, digest, body)
        response.headers["Location"] = f"{PATH}/{row.id}"
        return DatasetOut.model_validate(row)


@router.get("")
def list_datasets(desk: InDesk, caller: Reader) -> PageOut[DatasetOut]:
    """The tenant's data sets, newest first."""
    with desk.read() as session:
        rows = artifacts.datasets(session, caller.tenant_id)
        return PageOut(data=[DatasetOut.model_validate(row) for row in rows])


@router.get("/{dataset_id}", responses=problems(404))
def get_dataset(desk: InDesk, caller: Reader, dataset_id: Id) -> DatasetOut:
    """One data set, without its bytes."""
    with desk.read() as session:
        row = artifacts.dataset(session, caller.tenant_id, dataset_id)
        return DatasetOut.model_validate(found(row, "data set", dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=problems(404))
def delete_dataset(desk: InDesk, caller: Writer, dataset_id: Id) -> None:
    """Forgets a data set. Jobs that name it and have not been scored yet will fail."""
    with desk.begin() as session:
        row = found(artifacts.dataset(session, caller.tenant_id, dataset_id), "data set", dataset_id)
        artifacts.remove_dataset(session, row)


def _check(name: str, body: bytes, content_type: str) -> None:
    if not _NAME.fullmatch(name):
        raise Problem("validation_failed", "name: letters, digits, spaces and . ( ) + - _ only")
    if not body:
        raise Problem("validation_failed", "the data set is empty")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("malformed", f"the data set is not UTF-8: byte {error.start}") from None
    if "\0" in text:
        raise Problem("malformed", "the data set holds a NUL")
    if content_type != "text/plain":
        _check_lines(text)


def _check_lines(text: str) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = load_json(line.encode())
        except Problem as problem:
            raise Problem("malformed", f"line {number}: {problem.detail}") from None
        if not isinstance(value, dict):
            raise Problem("malformed", f"line {number}: each line must be a JSON object")
