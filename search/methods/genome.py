"""GENOME and GENOME+ (arXiv:2503.01155): evolution and particle swarms, on the settings of a recipe.

The paper breeds adapter tensors; here a genome is a point of the space (weights of the sources, curves over
the depth), so that an individual is a small recipe that can be rebuilt bit for bit, and a child of equal
parents is that parent. Repaired beside the published code: elites are at least one, an individual remembers
its own best place, the step shrinks once a generation, and each draw of the swarm is its own.
"""

from dataclasses import dataclass

import numpy as np

from search.settings import GenomeSettings
from search.space import Space
from search.surrogate import Array
from search.trial import Ask, Found, Search, Task

TINY = 2.0**-64
"""Perplexities may be as large as numbers go; sums of so small shares of them are numbers still."""
PATIENCE = 10_000
"""So many times nobody may have a child or a copy before the search ends."""
LEAST = 1e-3
"""What the worst has, as a share of how far the best is above it; a failed one has as much less again."""


@dataclass
class Individual:
    """A genome (numbers between 0 and 1), what it scored, where it was best, and its last move."""

    genome: Array
    value: float = -np.inf
    own: Array | None = None
    own_value: float = -np.inf
    move: Array | None = None

    def scored(self, value: float) -> None:
        """Takes a score; remembers the place if none was better."""
        self.value = value
        if self.own is None or value > self.own_value:
            self.own, self.own_value = self.genome.copy(), value


def search(space: Space, p: GenomeSettings, task: Task) -> Search:
    """Generations of children and changed copies; elites stay, tournaments choose the rest."""
    rng = np.random.default_rng(task.seed)
    population = [Individual(genome) for genome in _first(space, p.population, rng)]
    fresh, left, step = population, task.evaluations, p.step
    while fresh and left > 0:
        fresh = fresh[:left]
        told = yield [Ask(space.point(each.genome.tolist())) for each in fresh]
        left -= len(fresh)
        for each, answer in zip(fresh, told, strict=True):
            each.scored(task.value(answer))
        population = survivors([each for each in population if each.own is not None], p, rng)
        if p.plus and left > 0:
            moved = swarm(population, p, step, rng, left)
            told = yield [Ask(space.point(each.genome.tolist())) for each in moved]
            left -= len(moved)
            for each, answer in zip(moved, told, strict=True):
                each.scored(task.value(answer))
            step *= p.decay
        fresh = _offspring(population, p, rng)
        population = population + fresh
    return Found(
        notes={
            "population": [space.point(each.genome.tolist()) for each in population if each.own is not None]
        }
    )


def _first(space: Space, count: int, rng: np.random.Generator) -> list[Array]:
    start = np.array(space.vector(space.first))
    return [start, *rng.random((count - 1, space.width))]


def _offspring(population: list[Individual], p: GenomeSettings, rng: np.random.Generator) -> list[Individual]:
    """Children of parents drawn by fitness, and copies with changes; none at all only where the chances of
    both are next to nothing.
    """
    made: list[Individual] = []
    chance = by_fitness([each.value for each in population])
    for _ in range(PATIENCE if p.crossover or p.mutation else 0):
        for _ in range(len(population) // 2):
            if rng.random() < p.crossover and len(population) > 1:
                one, other = rng.choice(len(population), 2, replace=False, p=chance)
                made.append(Individual(crossed(population[one], population[other])))
        for each in population:
            if rng.random() < p.mutation:
                made.append(Individual(mutated(each.genome, p, rng)))
        if made:
            break
    return made


def by_fitness(values: list[float]) -> Array:
    """Chances in proportion to how far each is above the worst, none of them zero; failed ones least."""
    shrunk = [value * TINY for value in values]
    known = [value for value in shrunk if np.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    least = LEAST * ((high - low) or 1.0)
    above = np.array([value - low + least if np.isfinite(value) else LEAST * least for value in shrunk])
    return np.asarray(above / above.sum())


def crossed(one: Individual, other: Individual) -> Array:
    """The mean of two genomes, the fitter having more say."""
    share = by_fitness([one.value, other.value])
    return np.asarray(share[0] * one.genome + share[1] * other.genome)


def mutated(genome: Array, p: GenomeSettings, rng: np.random.Generator) -> Array:
    """A copy in which some numbers changed."""
    changed = rng.random(len(genome)) < p.gene_mutation
    return np.clip(genome + changed * rng.normal(0, p.sigma, len(genome)), 0, 1)


def survivors(everybody: list[Individual], p: GenomeSettings, rng: np.random.Generator) -> list[Individual]:
    """The elites, and winners of tournaments without replacement, ``population`` in all."""
    rest = sorted(everybody, key=lambda each: -each.value)
    kept, rest = rest[: p.elites], rest[p.elites :]
    while len(kept) < p.population and rest:
        entrants = rng.choice(len(rest), min(p.tournament, len(rest)), replace=False)
        kept.append(rest.pop(int(min(entrants))))  # sorted: the first is the fittest
    return kept


def swarm(
    population: list[Individual], p: GenomeSettings, step: float, rng: np.random.Generator, most: int
) -> list[Individual]:
    """The ``most`` fittest but the elites, moved towards their own best and the best of all, away from the
    worst.
    """
    ranked = sorted(population, key=lambda each: -each.value)
    best, worst = ranked[0].genome, ranked[-1].genome
    moved = ranked[p.elites :][:most]
    for each in moved:
        draws = rng.random(4) * np.array([p.inertia, p.own, p.best, p.worst])
        last = each.move if each.move is not None else np.zeros_like(each.genome)
        assert each.own is not None
        pulls = [last, each.own - each.genome, best - each.genome, each.genome - worst]
        total = draws.sum() or 1.0
        each.move = np.asarray(sum(d * pull for d, pull in zip(draws, pulls, strict=True)) / total)
        each.genome = np.clip(each.genome + step * each.move, 0, 1)
    return moved
