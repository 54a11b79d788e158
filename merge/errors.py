"""Everything that can go wrong in the engine, as one tree.

MergeError
├── RecipeInvalid        a field of the recipe is wrong
├── PlanRefused          the recipe and the models do not fit together (carries every finding)
├── Stopped              the caller asked the run to stop
└── ...                  one class for each other failure, below
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal


class MergeError(Exception):
    """Base of all engine failures. ``str(error)`` is one sentence that says what is wrong and what to do."""

    code: ClassVar[str] = "merge_error"


@dataclass(frozen=True)
class Finding:
    """One thing the planner has to say about a recipe: an error stops the job, a warning does not.

    ``pointer`` is a JSON pointer into the recipe, ``model`` a source id or ``base``, ``tensor`` a tensor name.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str
    pointer: str | None = None
    model: str | None = None
    tensor: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form without the fields that are empty."""
        return {key: value for key, value in self.__dict__.items() if value is not None}


class FindingsError(MergeError):
    """A failure that carries one or more findings."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        errors = [f.message for f in findings if f.severity == "error"]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__((errors[0] if errors else "refused") + more)


class RecipeInvalid(FindingsError):
    """The recipe itself is wrong: an unknown or ill-typed field."""

    code = "recipe_invalid"


class PlanRefused(FindingsError):
    """The recipe is well formed but cannot work on these models."""

    code = "plan_refused"


class Stopped(MergeError):
    """The caller's ``should_stop`` said so; finished shards stay and a later run goes on from them."""

    code = "stopped"
