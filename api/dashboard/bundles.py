"""Bundles on the page of the job that made them: their members, and a form that gives one back as a model."""

from typing import Any

from fastapi import APIRouter, Response
from starlette.datastructures import FormData

from api.dashboard.visit import Author, Form, PageRoute, Visit, ordered
from api.deps import Id, own_job
from api.intake import Order, order_of
from db.models.job import Job
from jobs.errors import IllegalState
from jobs.states import State

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.post("/jobs/{job_id}/materialise")
async def materialise(visit: Author, form: Form, job_id: Id) -> Response:
    """Orders a member of the bundle that a job has made as an ordinary model, as a new job."""
    visit.caller.require("merges:write")
    return await ordered(visit, lambda: _order(visit, job_id, form))


def _order(visit: Visit, job_id: str, form: FormData) -> Order:
    with visit.desk.begin() as session:
        row = own_job(session, visit.caller, job_id)
        if bundle_view(row) is None:
            raise IllegalState(f"The job {job_id} has made no bundle.")
        credential = row.hub_credential_id
    repo = str(form.get("repo") or "").strip()
    wishes: dict[str, Any] = {"output": {"repo": repo}} if repo else {}
    wishes |= {"hub_credential": credential} if credential else {}
    member = str(form.get("member") or "")
    return order_of({"kind": "materialise", "bundle": job_id, "member": member, **wishes})


def bundle_view(job: Job) -> dict[str, Any] | None:
    """What the page says of a bundle that is there; nothing for other results."""
    told = (job.result or {}).get("bundle")
    if job.state != State.SUCCEEDED or not told:
        return None
    sizes = ((job.plan or {}).get("result") or {}).get("member_bytes") or {}
    models = {each["id"]: each.get("adapter") or each["model"] for each in job.recipe.get("sources", ())}
    members = [
        {"id": name, "model": models.get(name, ""), "bytes": sizes.get(name)} for name in told["members"]
    ]
    return {"kind": told["kind"], "base": told.get("base"), "members": members}
