"""Which recipes are tried for a method: its steps, and the one coefficient that is tuned.

Nothing here has to know a method: what combines is run by itself, what prepares task vectors is followed by
task arithmetic, what adjusts a result follows it. The coefficient is ``scale`` where the chain has one. It is
looked for on one ladder of values, the same for all: from its start upwards while the validation score gets
better, else downwards. All other settings stay at their defaults.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merge.catalog import MethodEntry, catalogue

Steps = tuple[Mapping[str, Any], ...]
AVERAGE = "linear"
LADDER = (0.1, 0.2, 0.35, 0.6, 1.0, 1.6, 2.5)
SUMMED = "task_arithmetic"

STARTS: Mapping[str, float] = {
    SUMMED: 0.35,  # sums over the sources overshoot sooner the more there are
    "ram": 0.6,
    "consensus_ta": 0.35,
    "widen": 0.6,
    "optmerge": 0.2,
}
"""Where to begin, for those whose default is far from what several experts want; the climb does the rest."""

OTHERS: Mapping[str, tuple[str, tuple[float, ...], float]] = {
    "regmean": ("alpha", (0.5, 0.7, 0.9, 1.0), 0.9),
    "regmean_pp": ("alpha", (0.5, 0.7, 0.9, 1.0), 0.9),
}
"""Methods with another coefficient than ``scale``: its name, its ladder and its start."""

NOT_A_MERGE: Mapping[str, str] = {
    "unlearn": "takes abilities away; it merges none in",
    "passthrough": "copies one model",
}


VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (("wudi", {"filter": "none", "start": "sum"}),)
"""Methods for whole models that are tried with other settings than their defaults, too."""
ADAPTER_VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("core_space", {"rule": "sum"}),
    ("core_space", {"rule": "iso"}),
    ("core_space", {"rule": "tsv_iso"}),
    ("core_space", {"rule": "ties"}),
    ("core_space", {"rule": "ties", "balance": False}),
    ("lora_lego", {"features": "normalized"}),
    ("lora_lego", {"units": "singular"}),
)
"""The same of methods for adapters."""


@dataclass(frozen=True)
class Candidate:
    """A method with the chain it is tried in; ``rungs`` are the values of ``setting`` of step ``at``, and
    ``variant`` names the settings that are not the defaults.
    """

    name: str
    steps: Steps
    at: int = 0
    setting: str | None = None
    rungs: tuple[float, ...] = ()
    start: float = 0.0
    variant: str = ""

    def with_value(self, value: float | None) -> Steps:
        """The steps with the coefficient put in."""
        if self.setting is None or value is None:
            return self.steps
        step = {**self.steps[self.at], self.setting: value}
        return (*self.steps[: self.at], step, *self.steps[self.at + 1 :])


def candidates(sources: int, *, adapters: bool = False) -> Iterator[Candidate | tuple[str, str]]:
    """A candidate for every method of the catalogue, or its name and why it cannot be run on so many
    sources; then variants of some.
    """
    for name, entry in catalogue().items():
        beside = None if adapters else _of_adapters(entry)
        why_not = NOT_A_MERGE.get(name) or beside or _too_few(entry, sources)
        yield (name, why_not) if why_not else candidate(name)
    for name, settings in ADAPTER_VARIANTS if adapters else VARIANTS:
        yield replace(candidate(name, settings={name: settings}), variant=told(settings))


def told(settings: Mapping[str, Any]) -> str:
    """Settings in a few words.

    >>> told({"rule": "ties", "balance": False})
    'rule ties, no balance'
    """
    return ", ".join(
        f"no {name}" if value is False else f"{name} {value}" for name, value in settings.items()
    )


def candidate(*names: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Candidate:
    """The chain of these methods, task arithmetic put in where nothing combines, with its coefficient."""
    given = settings or {}
    chain = [catalogue()[name] for name in names]
    if not any(entry.kind == "combine" for entry in chain):
        place = sum(entry.kind == "prepare" for entry in chain)
        chain.insert(place, catalogue()[SUMMED])
    steps = tuple({"method": entry.name, **given.get(entry.name, {})} for entry in chain)
    label = "+".join(names)
    at = next(i for i, entry in enumerate(chain) if entry.kind == "combine")
    combine = chain[at].name
    if combine in OTHERS:
        setting, rungs, start = OTHERS[combine]
        return Candidate(label, steps, at, setting, rungs, start)
    if "scale" not in chain[at].settings:
        return Candidate(label, steps)
    default = float(chain[at].settings["scale"]["default"])
    start = STARTS.get(combine, min(LADDER, key=lambda rung: abs(rung - default)))
    return Candidate(label, steps, at, "scale", LADDER, start)


def _of_adapters(entry: MethodEntry) -> str | None:
    return "merges LoRA adapters; the experts are whole models" if entry.needs.get("factors") else None


def _too_few(entry: MethodEntry, sources: int) -> str | None:
    least, most = entry.needs["sources"]
    if most is not None and most < sources:
        return f"takes {'one model' if most == 1 else f'{most} models'}; there are {sources} experts"
    if least > sources:
        return f"takes {least} models or more"
    return None


def climb(rungs: Sequence[float], start: float, measure: Callable[[float], float]) -> tuple[float, float]:
    """The best rung and its score: upwards from ``start`` while it gets better, else downwards.

    >>> climb((1, 2, 3, 4), 2, lambda x: -abs(x - 3))
    (3, 0)
    """
    place = list(rungs).index(start)
    best = (rungs[place], measure(rungs[place]))
    for way in (1, -1):
        at = place + way
        while 0 <= at < len(rungs) and (score := measure(rungs[at])) > best[1]:
            best = (rungs[at], score)
            at += way
        if best[0] != start:
            break
    return best
