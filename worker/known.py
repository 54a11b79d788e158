"""Scores of candidates that jobs of a tenant have had before, by what they are made of: the same recipe over
the same bytes by the same methods, on the same items, is never scored twice.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from db import scores as rows
from jobs.pinned import PinnedInput
from jobs.places import WEIGHTS
from jobs.planning import Planned
from merge.checkpoint.index import ModelIndex
from merge.plan import ENGINE_VERSION, Plan
from merge.recipe.recipe import canonical
from merge.recipe.stages import ADAPTER, leaves
from scoring.digest import score_key
from scoring.score import Score
from scoring.tasks import ZeroShotTask
from worker.candidates import Scores, Wanted, without_examples
from worker.context import Transaction
from worker.given_back import Member
from worker.inputs import wanted_names
from worker.makers import Part
from worker.measures import Heads
from worker.scorer import Subject
from worker.workshop import Workshop

VERSION = 1
"""Goes up whenever the same facts would stand for another candidate."""


@dataclass(frozen=True)
class KnownCandidates:
    """``contents`` are the digests of the models by role, ``statistics`` those of what was measured on data
    by key; ``heads`` makes the zero-shot heads of all.
    """

    transaction: Transaction
    tenant_id: str
    contents: Mapping[str, str]
    statistics: Mapping[str, str]
    heads: Heads
    device: str

    @classmethod
    def of(
        cls,
        workshop: Workshop,
        tenant_id: str,
        planned: Planned,
        folders: Mapping[str, Path],
        statistics: Mapping[str, Path],
        heads: Heads,
    ) -> "KnownCandidates":
        """Over the models of a plan in these folders; what the Hub lists no digest of is read once."""
        contents = contents_of(planned.inputs, planned.models, folders)
        measured = {key: folder.name for key, folder in statistics.items()}
        return cls(workshop.transaction, tenant_id, contents, measured, heads, workshop.device)

    def find(self, plan: Plan, wanted: Wanted, examples: bool) -> Scores:
        """What is known of all that is wanted. Scores with the values of items serve where these are not
        asked for too.
        """
        ways, content = (True,) if examples else (True, False), self._content(plan)
        keys = {
            (member, name, way): key
            for member, part in wanted.items()
            for way in ways
            for name, key in self._keys(_made(content, member, way), part).items()
        }
        with self.transaction() as session:
            known = rows.recall(session, self.tenant_id, set(keys.values()))
        found: Scores = {member: [] for member in wanted}
        for (member, name, _), key in keys.items():
            if key in known and name not in {each.task for each in found[member]}:
                own = [replace(Score.from_dict(each), task=name) for each in known[key]]
                found[member] += own if examples else without_examples(own)
        return found

    def keep(self, plan: Plan, wanted: Wanted, examples: bool, found: Scores) -> None:
        """Remembers what was scored; the values of items where a search has asked for them, since there are
        so many of these.
        """
        content = self._content(plan)
        with self.transaction() as session:
            for member, part in wanted.items():
                made = _made(content, member, examples)
                for name, key in self._keys(made, part).items():
                    own = [each for each in found[member] if each.task == name]
                    told = [each.as_dict() for each in (own if examples else without_examples(own))]
                    facts = {"model": made, "task": part.digests[name]}
                    rows.put(session, self.tenant_id, key, told, **facts)

    def _keys(self, made: str, part: Part) -> dict[str, str]:
        """By what the scores on each set are found."""
        return {
            task.name: score_key(made, part.digests[task.name], self.device, self._head(task))
            for task in part.tasks
        }

    def _head(self, task: Any) -> str | None:
        from_base = isinstance(task, ZeroShotTask) and task.settings.head == "base"
        return self.heads.digest if from_base else None

    def _content(self, plan: Plan) -> dict[str, Any]:
        """Everything that decides what the candidate is; names of models do not."""
        used = {each.role for each in leaves(plan.recipe)}
        contents = {role: digest for role, digest in self.contents.items() if role in used}
        return {
            "version": VERSION,
            "engine": ENGINE_VERSION,
            "methods": {step.name: step.version for part in plan.parts() for step in part.steps},
            "recipe": canonical(plan.recipe.renamed(contents)).decode(),
            "models": contents,
            "statistics": dict(self.statistics),
        }


def _made(content: Mapping[str, Any], member: Member, examples: bool) -> str:
    """sha256 (hex) of a candidate's content and of what is wanted of it."""
    facts = {**content, "member": member, "examples": examples}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def are_listed(planned: Planned) -> bool:
    """Whether the Hub lists a digest of every weight file, so that none has to be read for its content."""
    return all(
        name in each.listed_sums
        for each in planned.inputs
        for name in _read(each, planned.models)
        if name.endswith(WEIGHTS)
    )


def base_of(planned: Planned, folders: Mapping[str, Path]) -> Subject | None:
    """The recipe's base as a model that makes zero-shot heads, if it has one that is no stage."""
    found = next((each for each in planned.inputs if each.role == "base"), None)
    if found is None:
        return None
    return Subject(folders["base"], found.listed_sums, planned.plan.models["base"].shards)


def contents_of(
    inputs: Iterable[PinnedInput], models: Mapping[str, ModelIndex], folders: Mapping[str, Path]
) -> dict[str, str]:
    """The digest of every model and adapter by its role: of what its headers say and of its files. What the
    Hub lists a digest of is not read.
    """
    return {each.role: _content(each, models, folders[each.role]) for each in inputs}


def _content(each: PinnedInput, models: Mapping[str, ModelIndex], place: Path) -> str:
    index, folder = models[each.role.removesuffix(ADAPTER)], place if place.is_dir() else place.parent
    read, sums = _read(each, models), each.listed_sums
    there = (path.name for path in folder.iterdir() if path.is_file())
    files = {name: sums.get(name) or _sha256(folder / name) for name in wanted_names(there, read)}
    facts = {"structure": index.digest, "read": sorted(read), "files": files}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(each: PinnedInput, models: Mapping[str, ModelIndex]) -> list[str]:
    """The files that tensors are read from, and those of a bundle's member."""
    index = models[each.role.removesuffix(ADAPTER)]
    if not each.role.endswith(ADAPTER):
        return list(index.shards)
    assert index.adapter is not None  # it was attached when it was looked at
    return [*index.adapter.files, *index.adapter.small]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
