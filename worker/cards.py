"""What is told of a finished merge: its model card, its merge report, and what a bundle holds."""

import json
from pathlib import Path
from typing import Any

from hub.card import CardInput, render_card
from jobs.planning import Planned
from merge.plan import Plan
from merge.report import Report
from merge.results.finish import SURVEY_FILE
from worker.evaluation import Verdict

CARD = "README.md"


def survey_of(out: Path) -> dict[str, Any] | None:
    """What the merge did to the weights; nothing for a bundle of changes, which is no merged model. The
    numbers of single tensors may be many: they stay in the file.
    """
    if not (out / SURVEY_FILE).is_file():
        return None
    survey: dict[str, Any] = json.loads((out / SURVEY_FILE).read_bytes())
    groups = [{name: told for name, told in group.items() if name != "tensors"} for group in survey["groups"]]
    return {**survey, "groups": groups}


def bundle_of(plan: Plan) -> dict[str, Any]:
    """What a bundle holds, for the job's result; nothing for other forms."""
    if plan.bundle is None:
        return {}
    base = plan.models["base"].label if "base" in plan.models and not plan.members else None
    return {"bundle": {"kind": plan.bundle.kind, "members": list(plan.bundle.members), "base": base}}


def write_card(report: Report, planned: Planned, verdict: Verdict, title: str, hub: str) -> None:
    """Puts the model card beside the weights; ``hub`` is the address that its links begin with."""
    reference = next((each.snapshot for each in planned.inputs if each.role == planned.plan.origin), None)
    inputs = [
        CardInput(
            each.role,
            each.pinned_name,
            each.snapshot.repo if each.snapshot else None,
            each.snapshot.sha if each.snapshot else None,
            each.snapshot.license if each.snapshot else None,
        )
        for each in planned.inputs
    ]
    card = render_card(
        report.manifest,
        verdict.card_scores,
        title=title,
        inputs=inputs,
        library_name=library_of(planned.plan),
        is_adapter=planned.plan.adapter is not None,
        pipeline_tag=reference.pipeline_tag if reference else None,
        endpoint=hub,
    )
    (report.out / CARD).write_text(card, encoding="utf-8")


def library_of(plan: Plan) -> str | None:
    """What loads the result; nothing where there is no config."""
    if plan.adapter is not None:
        return "peft"
    if plan.bundle is not None:
        return None
    config = plan.models[plan.reference].config
    return "diffusers" if "_class_name" in config else "transformers" if config else None
