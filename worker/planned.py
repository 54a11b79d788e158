"""What a job plans, looked at again by every attempt at the commits that its models were pinned to."""

from db.models.job import Job
from jobs import lifecycle
from jobs.kinds import Asking, Ready, plan_order
from jobs.request import JobOrder
from worker.context import JobContext


def plan_again(context: JobContext, job: Job, order: JobOrder, asking: Asking) -> Ready:
    """The plan of an order; of a job that has none yet it is recorded. Raises what planning raises."""
    context.checkpoint()
    planned = plan_order(order, asking)
    if job.plan is None:
        context.write(lifecycle.record_inputs, [each.row() for each in planned.inputs])
        context.write(lifecycle.record_plan, planned.summary, planned.queue)
    return planned
