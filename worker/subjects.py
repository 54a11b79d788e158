"""What the evaluation of a merge looks at: the result, or what it holds, and what it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jobs.evaluating import given_back, is_alone, parents, result_bytes, whole_bytes
from jobs.fetching import parts_of
from jobs.planning import Planned
from merge.checkpoint.index import ModelIndex
from merge.recipe.stages import ADAPTER, leaves, stage_of
from merge.report import Report
from worker.given_back import BASE, Desk, GivenBack, Member, give_back, is_whole, with_adapter
from worker.scorer import Looked, Subject

RESULT, SOURCE = "result", "its source"
NO_BASE = (
    "the result can only be checked over its base, of which not all is here; it is fetched where evaluation "
    "sets are ordered"
)
NOT_ALONE = "the result is not a Transformers model by itself, so it was not loaded and not scored"


@dataclass(frozen=True)
class Outcome:
    """The result, or a ``member`` of it, and the ``parents`` that it is compared with, by role. ``labels``
    are what the model card calls these.
    """

    member: Member
    model: Looked
    parents: Mapping[str, Looked]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its scores are called by."""
        return RESULT if self.member is None else f"{RESULT}:{self.member}"


def parents_of(
    planned: Planned, folders: Mapping[str, Path], desk: Desk, *, adapters: bool
) -> dict[str, Looked]:
    """The models that the result is compared with, by role: those that are here with all of their files, and,
    where ``adapters`` are wanted, models with an adapter merged into them.
    """
    found: dict[str, Looked] = {}
    wanted, again = parents(planned), given_back(planned) if adapters else {}
    members = {each.role: each.member for each in leaves(planned.recipe)}
    for each in planned.inputs:
        role = each.role
        if role in again:
            own = (folders[role], folders[role + ADAPTER], members[role + ADAPTER])
            make = partial(with_adapter, *own, desk.means)
            found[role] = GivenBack(desk, make, whole_bytes(again[role]))
        elif role in wanted and _is_plain(wanted[role]) and _is_here(planned, role):
            found[role] = Subject(folders[role], each.listed_sums)
    return found


def obstacle(planned: Planned) -> str | None:
    """Why the result cannot be loaded here, if so."""
    plan = planned.plan
    if plan.code or not is_alone(plan.models[plan.reference]):
        return NOT_ALONE
    if is_whole(plan) or stage_of(plan.recipe.base or "") is not None:
        return None
    holds_base = plan.bundle is not None and (bool(plan.members) or plan.bundle.keeps_base)
    return None if holds_base or _is_here(planned, BASE) else NO_BASE


def outcomes_of(
    planned: Planned,
    report: Report,
    folders: Mapping[str, Path],
    desk: Desk,
    beside: Mapping[str, Looked],
) -> list[Outcome]:
    """The result as it can be loaded: itself, its adapter over the base, or every member of its bundle. A
    member's parents are the base and the source that it stands for.
    """
    plan = planned.plan
    if is_whole(plan):
        own = Subject(report.out, {file.file: file.sha256 for file in report.files})
        return [Outcome(None, own, beside, {role: role for role in beside})]
    members = plan.bundle.members if plan.bundle is not None else (None,)
    found = []
    for member in members:
        labels = {role: role for role in beside}
        if member is not None:
            labels = {role: label for role, label in ((BASE, BASE), (member, SOURCE)) if role in beside}
        make = partial(give_back, plan, report.out, member, folders, desk.means)
        model = GivenBack(desk, make, result_bytes(plan))
        found.append(Outcome(member, model, {role: beside[role] for role in labels}, labels))
    return found


def _is_plain(index: ModelIndex) -> bool:
    return index.adapter is None and is_alone(index)


def _is_here(planned: Planned, role: str) -> bool:
    """Whether a model lies here with all of its weights."""
    each = next(each for each in planned.inputs if each.role == role)
    if planned.whole or each.folder is not None:
        return True
    plan = planned.plan
    return plan.weight_files(role) == plan.models[role].shards and not parts_of(plan, role)
