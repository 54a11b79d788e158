"""One attempt at a job: what it is given, and what the stories of all kinds of jobs do alike."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from db import jobs as rows
from db.models.job import Job
from hub.snapshot import Hub
from jobs import recording
from jobs.asking import Asking, Ready
from jobs.kinds import plan_order
from jobs.planning import Planner
from jobs.request import JobOrder
from worker.context import JobContext
from worker.measuring import Measurer
from worker.scratch import WorkFolder
from worker.statistics import Store
from worker.workshop import Workshop

Found = TypeVar("Found", bound=Ready)


@dataclass
class Attempt:
    """Everything that a story of a job is given."""

    workshop: Workshop
    job: Job
    context: JobContext
    work: WorkFolder
    store: Store
    planner: Planner
    hub: Hub
    token: str | None

    @property
    def asking(self) -> Asking:
        """With what an order is planned."""
        return Asking(self.planner, self.token, self.job.tenant_id)

    @cached_property
    def measurer(self) -> Measurer:
        """What runs models on texts."""
        return Measurer(self.workshop, self.job.tenant_id, self.context, self.work, self.store)

    def pinned(self) -> dict[str, str]:
        """By role, the models that were pinned: each with its commit, and the folder or file of the
        repository that it is.
        """
        with self.workshop.transaction() as session:
            found = [row for row in rows.inputs(session, self.job.id) if row.sha is not None]
        return {
            row.role: f"{row.repo}@{row.sha}" + (f":{inside}" if (inside := row.params.get("inside")) else "")
            for row in found
        }

    def plan_again(self, order: JobOrder, kind: type[Found]) -> Found:
        """The plan of an order, at the commits that its models were pinned to; of a job that has none yet it
        is recorded. Raises what planning raises.
        """
        self.context.checkpoint()
        planned = plan_order(order, self.asking)
        assert isinstance(planned, kind)
        if self.job.plan is None:
            self.context.write(recording.record_inputs, [each.row() for each in planned.inputs])
            self.context.write(recording.record_plan, planned.summary, planned.queue)
        return planned
