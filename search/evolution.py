"""CMA-ES on numbers between 0 and 1, for the methods that use it."""

from collections.abc import Callable, Generator, Sequence

import numpy as np
from cmaes import CMA

from search.space import Point
from search.trial import Ask, Told

WORST = 1e300
"""What a failed candidate counts as: the distribution only looks at the order."""


def evolve(
    start: Sequence[float],
    point: Callable[[list[float]], Point],
    value: Callable[[Told], float],
    *,
    evaluations: int,
    sigma: float,
    population: int | None,
    seed: int,
    penalty: Callable[[list[float]], float] = lambda _: 0.0,
) -> Generator[list[Ask], list[Told], list[float]]:
    """Whole generations while the evaluations last; gives the best vector seen, or ``start``.

    ``penalty`` is taken off the value of a vector.
    """
    bounds = np.tile([0.0, 1.0], (len(start), 1))
    cma = CMA(np.array(start, dtype=float), sigma, bounds=bounds, seed=seed, population_size=population)
    best, highest = list(start), -np.inf
    while evaluations >= cma.population_size and not cma.should_stop():
        vectors = [cma.ask() for _ in range(cma.population_size)]
        told = yield [Ask(point(vector.tolist())) for vector in vectors]
        evaluations -= len(vectors)
        found = [value(each) - penalty(vector.tolist()) for vector, each in zip(vectors, told, strict=True)]
        cma.tell([(v, -f if np.isfinite(f) else WORST) for v, f in zip(vectors, found, strict=True)])
        top = int(np.argmax(found))
        if found[top] > highest:
            best, highest = vectors[top].tolist(), found[top]
    return best
