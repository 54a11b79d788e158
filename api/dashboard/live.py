"""Everything that the page of one job shows, and the stream that keeps it up to date."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.dashboard import views
from api.dashboard.render import text
from api.dashboard.visit import PageRoute, Visit, Visitor
from api.deps import Id, found
from api.errors import Problem
from db import artifacts, evaluations, jobs
from db.models.job import Job, JobEvent
from jobs import events
from jobs.errors import JobError
from jobs.states import is_terminal

BATCH = 1000
PAUSE_SECONDS = 0.25
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass
class Watch:
    """One visitor looking at one job; every look reads only the events that are new."""

    visit: Visit
    job_id: str
    seen: list[JobEvent] = field(default_factory=list)

    @property
    def seq(self) -> int:
        """Number of the last event read."""
        return self.seen[-1].seq if self.seen else 0

    def look(self) -> tuple[Job, dict[str, Any]]:
        """The job, and all that its page shows; raises the 404 problem, ``JobError`` for a revoked key."""
        caller = self.visit.desk.caller_of_session(self.visit.caller.key_id)
        caller.require("merges:read")
        with self.visit.desk.begin() as session:
            job = found(jobs.of_tenant(session, caller.tenant_id, self.job_id), "job", self.job_id)
            while fresh := events.after(session, job.id, self.seq, BATCH):
                self.seen += fresh
            scored = evaluations.of_job(session, job.id)
            subjects, scores = views.scores_of(scored)
            return job, {
                "job": views.job_view(job),
                "csrf": self.visit.csrf,
                "phases": views.phases_of(job, self.seen),
                "inputs": jobs.inputs(session, job.id),
                "artifacts": artifacts.of_job(session, job.id),
                "subjects": subjects,
                "scores": scores,
                "checks": views.checks_of(scored),
                "events": views.log_of(self.seen),
                "points": views.points_of(self.seen),
            }


@router.get("/jobs/{job_id}/live")
async def live(
    request: Request,
    visit: Visitor,
    job_id: Id,
    after: Annotated[int, Query(ge=0)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The page as it changes: HTML in unnamed messages, chart points in ``progress``, at last ``ended``."""
    if not visit.desk.feed.has_room:
        raise Problem("too_many_streams", "reload the page instead, or come back later")
    resumed = int(last_event_id) if last_event_id and last_event_id.isdecimal() else after
    watch = Watch(visit, job_id)
    await run_in_threadpool(watch.look)
    stream = _messages(request, watch, resumed)
    return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)


async def _messages(request: Request, watch: Watch, sent: int) -> AsyncIterator[bytes]:
    desk = watch.visit.desk
    desk.metrics.streams.inc()
    try:
        async with desk.feed.waiting(watch.job_id) as waiter:
            last = ""
            while not desk.feed.closed.is_set() and not await request.is_disconnected():
                job, shown = await run_in_threadpool(watch.look)
                for event in watch.seen:
                    if event.seq > sent and event.type.endswith(".progress"):
                        yield format_sse_event(event="progress", data_str=json.dumps(views.point_of(event)))
                sent = watch.seq
                html = text("_live.html", **shown | {"points": []})
                if html != last:
                    yield format_sse_event(data_str=html, id=str(sent))
                    last = html
                if is_terminal(job.state):
                    yield format_sse_event(event="ended", data_str=job.state)
                    return
                if not await waiter.wait(desk.poll_seconds):
                    yield KEEPALIVE_COMMENT
                await asyncio.sleep(PAUSE_SECONDS)
    except (Problem, JobError):
        return
    finally:
        desk.metrics.streams.dec()
