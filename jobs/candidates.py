"""How the candidates of a search are made: in memory, or written to the work disk, and why. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from jobs.errors import RequestInvalid
from jobs.evaluating import FLOAT_BYTES, over_base_bytes
from jobs.planning import Planned
from jobs.request import SearchRequest
from jobs.sets import EvalSet
from merge.errors import Finding, PlanRefused
from merge.plan import Plan
from search.order import most


@dataclass(frozen=True)
class Way:
    """``why`` says, as a clause for the reader, why candidates are written; it is ``None`` where they are
    made in memory. ``model_bytes`` are in memory while one is scored, ``merge_bytes`` while it is merged, and
    ``disk_bytes`` are what one takes on the disk if it is written, until it is scored.
    """

    why: str | None
    model_bytes: int
    merge_bytes: int
    disk_bytes: int

    @property
    def made(self) -> Literal["memory", "disk"]:
        """Where a candidate is made."""
        return "memory" if self.why is None else "disk"

    @property
    def peak_bytes(self) -> int:
        """Memory that is needed: in memory a candidate is held beside the merge, on disk after it."""
        together = self.model_bytes + self.merge_bytes
        return together if self.why is None else max(self.model_bytes, self.merge_bytes)

    def within(self, free: int) -> "Way":
        """The way to go where ``free`` bytes of memory are free."""
        if self.why is not None or self.peak_bytes <= free:
            return self
        why = (
            f"a candidate ({self.model_bytes} bytes) and the merge beside it ({self.merge_bytes}) do not fit "
            f"into the {free} bytes of memory that are free"
        )
        return replace(self, why=why)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON for people."""
        return {"made": self.made, "why": self.why, "bytes": self.disk_bytes}


def way_of(plan: Plan, sets: Iterable[EvalSet]) -> Way:
    """How the candidates of a search over this plan's recipe are made, to be scored on these sets. Raises
    ``RequestInvalid`` where no candidate could be scored at all.
    """
    _check_loadable(plan)
    base = plan.models[plan.reference]
    over_base = plan.adapter is not None or (plan.bundle is not None and not plan.members)
    entries = base.parameters if over_base else sum(prod(output.shape) for output in plan.outputs)
    written = plan.estimate.disk_bytes - plan.estimate.download_bytes + over_base_bytes(plan)
    return Way(
        _reason(plan) or _reason_of(sets), FLOAT_BYTES * entries, plan.estimate.peak_memory_bytes, written
    )


def _reason(plan: Plan) -> str | None:
    """What makes the result another model than the one that would be held in memory."""
    index = plan.models[plan.reference]
    if plan.written_because is not None:
        return plan.written_because
    if plan.recipe.chat_template is not None:
        return "it has a chat template of its own"
    if plan.result_config() != dict(index.config):
        return "its result has other layers than its models"
    if index.decoding is not None:
        return f"{index.label} is quantised, and is decoded for the result"
    if index.adapter is not None and (index.adapter.small or index.adapter.model_config is not None):
        return f"{index.adapter.label} brings a config or a tokenizer of its own"
    return None


def _reason_of(sets: Iterable[EvalSet]) -> str | None:
    """What scores models from their files alone."""
    for each in sets:
        if each.kind == "lm_eval":
            return f"its set {each.name} is scored by lm-evaluation-harness, which loads a folder"
    return None


def _check_loadable(plan: Plan) -> None:
    if plan.code:
        kind = plan.result_config().get("model_type")
        raise RequestInvalid(
            f"its candidates cannot be scored: Transformers has no class for a {kind} mixture of this make, "
            "and code that comes with a model is never run; ask for another kind of mixture",
            "/recipe/result",
        )


def told(planned: Planned, order: SearchRequest, scratch_free: int | None) -> Planned:
    """The plan of a search, with how candidates are made, and what that takes. Raises ``RequestInvalid``
    where they cannot be scored, ``PlanRefused`` where the disk cannot hold one that must be written.
    """
    way = way_of(planned.plan, order.evaluation_sets)
    estimate, asked = planned.summary["estimate"], order.search
    disk = _disk_bytes(way, estimate)
    if scratch_free is not None and disk > scratch_free:
        said = f"Inputs and one candidate need {disk} bytes of disk, but {scratch_free} are free."
        raise PlanRefused((Finding("error", "disk_too_small", said),))
    needs = {"output_bytes": 0, "peak_memory_bytes": way.peak_bytes, "disk_bytes": disk}
    search = {
        "method": asked.method,
        "numbers": asked.spaces.width,
        "evaluations": most(asked),
        "candidates": way.as_dict(),
    }
    return planned.saying({"estimate": {**estimate, **needs}, "search": search})


def _disk_bytes(way: Way, estimate: Mapping[str, Any]) -> int:
    """In memory, what is fetched and measured; else one candidate beside it."""
    spared = estimate["output_bytes"] if way.why is None else 0
    return int(estimate["download_bytes"] + way.disk_bytes - spared)
