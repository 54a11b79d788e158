"""What happened to a job: as a list, and as a stream that goes on where it broke off."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic_core import to_json

from api.answers import Answer
from api.deps import Desk, Id, InDesk, LastSeq, Reader, found
from api.errors import NothingMore, Problem
from api.schemas.common import problems
from api.schemas.jobs import EventsOut, event_out
from db import jobs
from jobs import events
from jobs.errors import Unauthenticated
from jobs.keys import Caller
from jobs.states import is_terminal

BATCH = 200
RETRY_MILLISECONDS = 2000

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"], responses=problems(404))


def look(
    desk: Desk, caller: Caller, job_id: str, after: int, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Events above ``after``, and whether the job had ended before they were read and none is left."""
    with desk.read() as session:
        state, last_seq = found(jobs.standing(session, caller.tenant_id, job_id), "job", job_id)
        rows = events.after(session, job_id, after, limit)
        last = rows[-1].seq if rows else after
        return [event_out(row) for row in rows], is_terminal(state) and last >= last_seq


def look_again(
    desk: Desk, caller: Caller, job_id: str, after: int
) -> tuple[list[dict[str, Any]], bool] | None:
    """As ``look``, for one who has been let in long ago; nothing when the key was revoked or is over."""
    try:
        desk.caller_of_session(caller.key_id)
    except Unauthenticated:
        return None
    return look(desk, caller, job_id, after, BATCH)


@router.get("", response_model=EventsOut)
def list_events(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    after: Annotated[int, Query(ge=0, lt=1 << 62, description="The last `seq` you have")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Events in order."""
    rows, _ = look(desk, caller, job_id, after, limit + 1)
    return Answer({"data": rows[:limit], "has_more": len(rows) > limit})


def resume_point(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    after: Annotated[int, Query(ge=0, lt=1 << 62)] = 0,
    last: LastSeq = None,
) -> int:
    """The ``seq`` after which the stream begins. Raises 404, or ``NothingMore`` for one read to its end."""
    if not desk.feed.has_room:
        raise Problem("too_many_streams", "poll the job instead, or come back later")
    seq = after if last is None else last
    fresh, over = look(desk, caller, job_id, seq, 1)
    if last is not None and over and not fresh:
        raise NothingMore
    return seq


@router.get(
    "/stream",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job has ended and `Last-Event-ID` was its last event"}},
)
async def stream_events(
    desk: InDesk, caller: Reader, job_id: Id, seq: Annotated[int, Depends(resume_point)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events as they happen, each with its ``seq`` as id; ``done`` when the job has ended.

    After a break, send the last id as ``Last-Event-ID``: nothing is missed and nothing comes twice.
    """
    desk.metrics.streams.inc()
    try:
        async with desk.feed.waiting(job_id) as waiter:
            yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment="connected")
            over = False
            while not over and not desk.feed.closed.is_set():
                news = await anyio.to_thread.run_sync(look_again, desk, caller, job_id, seq)
                if news is None:
                    return
                fresh, over = news
                for event in fresh:
                    seq = event["seq"]
                    yield ServerSentEvent(raw_data=to_json(event).decode(), event=event["type"], id=str(seq))
                if not over and len(fresh) < BATCH:
                    await waiter.wait(desk.poll_seconds)
            if over:
                yield ServerSentEvent(data={"seq": seq}, event="done")
    finally:
        desk.metrics.streams.dec()
