"""What a check of a model has to say. Plain data, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """One thing the check has to say: an error means the model does not work, a warning that it looks odd."""

    severity: Literal["error", "warning"]
    code: str
    message: str


def not_compared(why: str = "what is compared is how models predict tokens of texts") -> CheckFinding:
    """What to say of a model that works and was held against none."""
    return CheckFinding("warning", "not_compared", f"held against no parent: {why}")


@dataclass(frozen=True, slots=True)
class Vitals:
    """``bits_per_byte`` on the texts; ``entropy`` of the next token there, as a share of what knowing nothing
    would give; ``repetition``, the share of three-token runs in greedy continuations that were there before;
    None where nothing was written.
    """

    bits_per_byte: float
    entropy: float
    repetition: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Vitals":
        """What ``as_dict`` gave."""
        return cls(told["bits_per_byte"], told["entropy"], told["repetition"])


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the check found out. ``ok`` is False as soon as one finding is an error.

    ``round_trip`` and ``chat_template`` are None where there is nothing to try; ``generated`` is the greedy
    continuation of ``prompt`` (None for a model without a causal head). ``vitals`` are there for a model
    that predicts tokens and was tried on texts, ``parents`` are those it was compared with.
    """

    findings: tuple[CheckFinding, ...]
    architecture: str | None = None
    parameters: int | None = None
    causal: bool | None = None
    round_trip: bool | None = None
    chat_template: bool | None = None
    finite: bool | None = None
    prompt: str | None = None
    generated: str | None = None
    vitals: Vitals | None = None
    parents: Mapping[str, Vitals] | None = None

    @property
    def ok(self) -> bool:
        """Whether the model can be published."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def errors(self) -> tuple[CheckFinding, ...]:
        """The findings that are errors."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def sentence(self) -> str:
        """The first error and how many more there are; empty for a model that works."""
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        return self.errors[0].message + more if self.errors else ""

    def beside(self, parents: Mapping[str, Vitals], found: Sequence[CheckFinding]) -> "CheckReport":
        """The report with what came of comparing the model with its parents."""
        return replace(self, parents=dict(parents), findings=(*self.findings, *found))

    def as_dict(self) -> dict[str, Any]:
        """JSON form, with ``ok``."""
        return {"ok": self.ok, **asdict(self)}
