"""Everything that the page of one job shows, and the stream that keeps it up to date."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.dashboard import views
from api.dashboard.bars import bars_of, differences_of
from api.dashboard.bundles import bundle_view
from api.dashboard.fronts import front_view
from api.dashboard.proven import checks_of
from api.dashboard.render import page, text
from api.dashboard.searches import search_view
from api.dashboard.teach import router_view
from api.dashboard.visit import PageRoute, Visit, Visitor
from api.deps import Id, LastSeq, own_job
from api.errors import Problem
from db import artifacts, evaluations, jobs, reports, trials
from db import events as rows
from db.models.job import Job, JobEvent
from db.models.webhook import WebhookEndpoint
from db.session import Session
from jobs import events, webhooks
from jobs.errors import JobError, OrderOutdated
from jobs.fronts import front_if_any
from jobs.keys import Caller
from jobs.searching import workers_of
from jobs.states import is_terminal
from search.choice import Among

BATCH = 1000
LOG_MOST = 100
PAUSE_SECONDS = 0.25
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass
class Watch:
    """One visitor looking at one job.

    The first look reads the newest events of the log, the marks of the phases and some points of the chart,
    however long the job has run; every further look reads only the events that are new.
    """

    visit: Visit
    job_id: str
    say: tuple[str, ...] = ()
    """How much each objective counts, as a form says it, for a point of a front to be chosen."""
    among: Among = "measured"
    seq: int = 0
    """Number of the last event read."""
    log: list[JobEvent] = field(default_factory=list)
    marks: list[JobEvent] = field(default_factory=list)
    points: list[JobEvent] = field(default_factory=list)

    def look(self) -> tuple[Job, dict[str, Any]]:
        """The job, and all that its page shows; raises the 404 problem, ``JobError`` for a revoked key."""
        caller = self.visit.desk.caller_of_session(self.visit.caller.key_id)
        caller.require("merges:read")
        with self.visit.desk.begin() as session:
            job = own_job(session, caller, self.job_id)
            self._read(session, job)
            scored = evaluations.of_job(session, job.id)
            subjects, scores = views.scores_of(scored)
            log = self.log[-LOG_MOST:]
            return job, {
                "job": views.job_view(job),
                "unattended": views.unattended_said(job, jobs.unattended_seconds(session, job)),
                "bundle": bundle_view(job),
                "router": router_view(job),
                **self._search(session, job),
                "csrf": self.visit.csrf,
                "phases": views.phases_of(job, self.marks),
                "measured": views.measured_of(self.marks),
                "inputs": jobs.inputs(session, job.id),
                "artifacts": artifacts.of_job(session, job.id),
                "hooks": self._hooks(session, job, caller),
                "report": reports.has(session, job.id),
                "subjects": subjects,
                "scores": scores,
                "bars": bars_of(scored),
                "differences": differences_of(scored),
                "checks": checks_of(scored),
                "events": views.log_of(log),
                "earlier": log[0].seq if len(self.log) > LOG_MOST else None,
                "points": views.points_of(self.points),
            }

    def _search(self, session: Session, job: Job) -> dict[str, Any]:
        """What the page says of a search and of its front; nothing of other jobs."""
        if job.kind != "search":
            return {"search": None, "front": None}
        try:
            found = front_if_any(session, job)
        except OrderOutdated:
            found = None
        front = front_view(found, self.say, self.among) if found else None
        chosen = front["chosen"]["number"] if front and front["chosen"] else None
        tried, workers = trials.of_search(session, job.root_id), workers_of(session, job)
        points = found.points if found else ()
        return {"search": search_view(job, tried, workers, points, chosen), "front": front}

    @staticmethod
    def _hooks(session: Session, job: Job, caller: Caller) -> Sequence[WebhookEndpoint]:
        """The webhook that was ordered with the job, for those who may see what became of its messages."""
        told = job.spec.get("webhook") and caller.may("webhooks")
        return webhooks.list_endpoints(session, job.tenant_id, job) if told else ()

    def forget_sent(self) -> None:
        """Drops what no further look shows: a stream may be open for hours."""
        self.points.clear()
        del self.log[: -(LOG_MOST + 1)]

    def _read(self, session: Session, job: Job) -> None:
        if not self.seq:
            end = job.event_seq + 1
            self.log = list(rows.newest(session, job.id, end, LOG_MOST + 1))[::-1]
            self.marks = list(rows.marks(session, job.id, end))
            self.points = list(rows.progress(session, job.id, end, views.POINTS_MOST))
            self.seq = job.event_seq
            return
        while fresh := events.after(session, job.id, self.seq, BATCH):
            self.seq = fresh[-1].seq
            for event in fresh:
                if event.type.endswith(".progress"):
                    self.points.append(event)
                    continue
                self.log.append(event)
                if event.type.endswith((".started", ".phase", ".measured")):
                    self.marks.append(event)


@router.get("/jobs/{job_id}/log")
def log(visit: Visitor, job_id: Id, before: Annotated[int, Query(ge=1, lt=1 << 62)] = 1 << 61) -> Response:
    """The events before a certain one, page by page."""
    visit.caller.require("merges:read")
    with visit.desk.begin() as session:
        job = own_job(session, visit.caller, job_id)
        shown = rows.newest(session, job.id, before, LOG_MOST + 1)
    kept = shown[:LOG_MOST]
    earlier = kept[-1].seq if len(shown) > LOG_MOST else None
    return page(
        "log.html",
        here="/jobs",
        csrf=visit.csrf,
        job=views.job_row(job),
        events=views.log_of(reversed(kept)),
        earlier=earlier,
    )


@router.get("/jobs/{job_id}/live")
async def live(
    request: Request,
    visit: Visitor,
    job_id: Id,
    after: Annotated[int, Query(ge=0, lt=1 << 62)] = 0,
    last: LastSeq = None,
) -> Response:
    """The page as it changes: HTML in unnamed messages, chart points in ``progress``, at last ``ended``."""
    if not visit.desk.feed.has_room:
        raise Problem("too_many_streams", "reload the page instead, or come back later")
    resumed = after if last is None else last
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
                for event in watch.points:
                    if event.seq > sent:
                        yield format_sse_event(event="progress", data_str=json.dumps(views.point_of(event)))
                sent = watch.seq
                watch.forget_sent()
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
