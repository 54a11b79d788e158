"""Evo-Merging (arXiv:2509.12951): CMA-ES in two stages, first what to keep, then how far to scale.

The published code carries the penalised best of the first stage over into the second, where the penalty is
another; here each stage compares its own values only.
"""

from collections.abc import Sequence

from search.evolution import evolve
from search.settings import EvoMergingSettings
from search.space import Point, Space
from search.trial import Found, Search, Task


def search(space: Space, p: EvoMergingSettings, task: Task) -> Search:
    """The dimensions of ``denoise`` vary with the others at their start, then the others with the best
    found; a small say of mean |value| keeps both sparse.
    """
    rest = [name for name in space.dimensions if name not in p.denoise]
    best = space.first
    spent = max(p.population, round(task.evaluations * p.first_share))
    for number, (names, evaluations) in enumerate(((p.denoise, spent), (rest, task.evaluations - spent))):
        part = Space(dimensions={name: space.dimensions[name] for name in names})
        fixed = {name: value for name, value in best.items() if name not in names}

        def point(vector: Sequence[float], part: Space = part, fixed: Point = fixed) -> Point:
            made = part.point(list(vector))
            return {name: made.get(name, fixed.get(name)) for name in space.dimensions}

        def size(vector: Sequence[float], part: Space = part) -> float:
            return p.penalty * mean_size(part.point(list(vector)))

        found = yield from evolve(
            part.vector({name: best[name] for name in names}), point, task.value, penalty=size,
            evaluations=evaluations, sigma=p.sigma, population=p.population, seed=task.seed + number,
        )  # fmt: skip
        best = point(found)
    return Found(point=best)


def mean_size(point: Point) -> float:
    """Mean of |value| over the numbers of a point."""
    values = (value if isinstance(value, list) else [value] for value in point.values())
    numbers = [abs(float(number)) for value in values for number in value]
    return sum(numbers) / len(numbers)
