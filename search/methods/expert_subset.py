"""Which sources help: a walk over subsets, one source in or out at a time."""

import math

from search.settings import ExpertSubsetSettings
from search.space import Point, Space
from search.trial import Ask, Found, Search, Task


def search(space: Space, p: ExpertSubsetSettings, task: Task) -> Search:
    """Every neighbour of the best subset is scored, and the best of them is taken if it is better; a source
    that is worth nothing falls out. The last round's differences say what each source is worth.
    """
    names = list(space.dimensions)
    known: dict[frozenset[str], float] = {}
    begin = [{name} for name in names] if p.begin == "best" else [set(names)]
    wanted = [frozenset(each) for each in begin]
    best: frozenset[str] | None = None
    for _ in range(p.rounds + 1):
        wanted = wanted[: max(0, task.evaluations - len(known))]
        if wanted:
            told = yield [Ask(_point(names, subset)) for subset in wanted]
            known |= {subset: task.value(each) for subset, each in zip(wanted, told, strict=True)}
        top = max(known, key=lambda subset: (known[subset], -len(subset)))
        if top == best or not wanted:
            break
        best = top
        wanted = [each for each in _neighbours(names, best) if each not in known]
    assert best is not None
    worth = {name: _worth(name, best, known) for name in names}
    return Found(point=_point(names, best), notes={"worth": worth})


def _point(names: list[str], subset: frozenset[str]) -> Point:
    return {name: name in subset for name in names}


def _neighbours(names: list[str], subset: frozenset[str]) -> list[frozenset[str]]:
    return [each for each in (subset ^ {name} for name in names) if each]


def _worth(name: str, best: frozenset[str], known: dict[frozenset[str], float]) -> float | None:
    """What the best subset gains by having the source in it; ``None`` where that has no score."""
    other = known.get(best ^ {name})
    if other is None or not math.isfinite(other):
        return None
    return known[best] - other if name in best else other - known[best]
