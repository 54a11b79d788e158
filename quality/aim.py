"""What AIM does to five merges: without it, at three strengths, and beside a control that shrinks as much.

The control (``control: uniform``) shrinks every tensor's change to the very norm that AIM leaves it, but all
channels alike: what AIM does better than it is the choice of channels, the rest is shrinking.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.learn.statistics import read_statistics
from quality.bench import Bench, Family
from quality.candidates import Candidate, candidate
from quality.merging import merged, planned, statistics_of
from quality.pouring import tensors_of
from quality.runner import Runner
from quality.tried import Tried

OMEGAS = (0.2, 0.4, 0.6)
PLAIN, AIM, UNIFORM = "none", "aim", "uniform"
DARE_TIES: Mapping[str, Mapping[str, Any]] = {"ties": {"density": 1.0, "normalize": False}}


def merges() -> tuple[Candidate, ...]:
    """The five merges that AIM follows."""
    return (
        candidate("linear"),
        candidate("task_arithmetic"),
        candidate("ties"),
        replace(candidate("dare", "ties", settings=DARE_TIES), start=0.35),
        candidate("widen"),
    )


@dataclass(frozen=True)
class Variant:
    """One merge with one way of holding it back."""

    merge: str
    control: str
    omega: float
    tried: Tried


def grid(runner: Runner) -> Iterator[Variant]:
    """Every merge plain and held back, on every seed; the coefficient is the one that is best without AIM."""
    for merge in merges():
        plain = runner.tried(merge)
        yield Variant(merge.name, PLAIN, 1.0, plain)
        for control in (AIM, UNIFORM):
            for omega in OMEGAS:
                more = {"omega": omega} | ({"control": UNIFORM} if control == UNIFORM else {})
                held = replace(
                    merge, name=f"{merge.name}+{control}", steps=(*merge.steps, {"method": "aim", **more})
                )
                yield Variant(merge.name, control, omega, runner.tried(held, plain.value))


def released(base: Tensor, merged_: Tensor, saliency: Tensor, omega: float) -> Tensor:
    """A weight (out, in) or a gain by the release's formula: the most active channel goes ``omega`` of the
    way from the base to the merge, one that is never active all of it. Float32, as the release computes.
    """
    share = saliency.abs() / saliency.abs().max()
    return base + (merged_ - base) * (1 - share * (1 - omega))


@dataclass(frozen=True)
class Agreement:
    """How far our result is from the release's formula: the largest difference in units of the last place of
    the larger of base and merged weight, over ``entries`` of ``tensors``.
    """

    tensors: int
    entries: int
    worst: float
    equal: float


def agreement(bench: Bench, family: Family, omega: float = 0.4) -> Agreement:
    """Compares ``task_arithmetic`` then ``aim`` of the engine with the formula on the same saliency."""
    work = bench.folder / "work"
    inner = ({"method": "task_arithmetic", "scale": 0.3},)
    with merged(family, inner, bench.tokens, work, output="float32") as (folder, _):
        plain = {name: values.float() for name, values in tensors_of(folder)}
    held = (*inner, {"method": "aim", "omega": omega})
    with merged(family, held, bench.tokens, work, output="float32") as (folder, _):
        ours = {name: values.float() for name, values in tensors_of(folder)}
    base = {name: values.float() for name, values in tensors_of(family.base)}
    plan, folders = planned(family, (*inner, {"method": "aim"}), bench.tokens)
    found = read_statistics(statistics_of(plan, folders, work)["base"])
    return _compared(base, plain, ours, {n: found.get("mean_abs_input", n) for n in base}, omega)


def _compared(
    base: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    saliency: Mapping[str, Tensor | None],
    omega: float,
) -> Agreement:
    worst, equal, entries, tensors = 0.0, 0, 0, 0
    for name, activity in saliency.items():
        if activity is None:
            continue
        theirs = released(base[name], plain[name], activity, omega)
        size = torch.maximum(base[name].abs(), plain[name].abs()).clamp(min=torch.finfo(torch.float32).tiny)
        unit = torch.exp2(torch.floor(torch.log2(size)) - 23)
        off = (ours[name] - theirs).abs() / unit
        worst, tensors, entries = max(worst, float(off.max())), tensors + 1, entries + off.numel()
        equal += int((off == 0).sum())
    return Agreement(tensors, entries, worst, equal / entries)


def names_of(variants: Sequence[Variant]) -> list[str]:
    """The merges, in their order."""
    return list(dict.fromkeys(variant.merge for variant in variants))
