"""M2N2 (arXiv:2508.16204): natural niches. Models compete for examples; mates are chosen that are good where
one is not; a child is one mixture before a moving boundary and the reverse after it.

The paper keeps weights and cuts the flat vector of all of them; here an individual is a point of the space,
numbers are in the space's order (the points of a curve run over the depth), and mixtures are straight lines,
which siblings' spherical ones are too to within rounding. Guarded beside the published code: where nobody is
better than the first parent anywhere, the second is drawn by fitness.
"""

import numpy as np

from search.settings import M2n2Settings
from search.space import Point, Space
from search.surrogate import Array
from search.trial import Ask, Found, Search, Task


def search(space: Space, p: M2n2Settings, task: Task) -> Search:
    """Starts from each number alone at its end (each source alone, where numbers are weights) and the
    space's start; then a steady state of ``archive`` individuals.
    """
    rng = np.random.default_rng(task.seed)
    wanted = _first(space, min(p.archive, task.evaluations), rng)
    archive, scores, failed, left = np.empty((0, space.width)), np.empty((0, 0)), 0, task.evaluations
    while len(wanted):
        told = yield [Ask(space.point(vector), examples=True) for vector in wanted.tolist()]
        left -= len(wanted)
        for vector, each in zip(wanted, told, strict=True):
            if each.examples is None:
                failed += 1
                continue
            row = np.array(each.examples)[None]
            archive = np.vstack([archive, vector[None]])
            scores = np.vstack([scores, row]) if scores.size else row
            while len(archive) > p.archive:
                weakest = int(np.argmin(fitness(scores, p.alpha)))
                archive, scores = np.delete(archive, weakest, 0), np.delete(scores, weakest, 0)
        if len(archive) < 2:
            wanted = rng.random((min(2, left), space.width)) if left > 0 else np.empty((0, space.width))
        else:
            wanted = np.array([child(archive, scores, p, rng) for _ in range(min(p.batch, left))])
    return Found(notes={"archive": _kept(space, archive, scores), "without_examples": failed})


def _first(space: Space, count: int, rng: np.random.Generator) -> Array:
    axes = np.vstack([np.eye(space.width), np.array(space.vector(space.first))])
    more = max(0, count - len(axes))
    return np.vstack([axes, rng.random((more, space.width))])[:count]


def _kept(space: Space, archive: Array, scores: Array) -> list[dict[str, Point | float]]:
    return [
        {"point": space.point(vector.tolist()), "mean": float(row.mean())}
        for vector, row in zip(archive, scores, strict=True)
    ]


def supply(scores: Array, alpha: float) -> Array:
    """How contested each example is (examples,): the sum of its scores to the power alpha; 1 where nobody
    has any.
    """
    total = scores.sum(axis=0)
    return np.where(total > 0, np.where(total > 0, total, 1.0) ** alpha, 1.0)


def fitness(scores: Array, alpha: float) -> Array:
    """What each model gets of all examples (models,), each example being shared out among those who score."""
    return np.asarray((scores / supply(scores, alpha)).sum(axis=1))


def attraction(scores: Array, alpha: float, to: int) -> Array:
    """How much better every model is where model ``to`` is worse (models,)."""
    shares = scores / supply(scores, alpha)
    return np.asarray(np.maximum(0.0, shares - shares[to]).sum(axis=1))


def child(archive: Array, scores: Array, p: M2n2Settings, rng: np.random.Generator) -> Array:
    """Two parents, a boundary and a share: ``share`` of the second before it, of the first after it."""
    fit = fitness(scores, p.alpha)
    one = int(rng.choice(len(fit), p=_chances(fit)))
    pull = attraction(scores, p.alpha, one)
    other = int(rng.choice(len(fit), p=_chances(pull if pull.sum() > 0 else fit)))
    boundary, share = int(rng.integers(archive.shape[1])), rng.random()
    made = mixed(archive[one], archive[other], boundary, share)
    return np.clip(made + rng.normal(0, p.mutation, len(made)), 0, 1) if p.mutation else made


def mixed(one: Array, other: Array, boundary: int, share: float) -> Array:
    """``(1 - share) one + share other`` before the boundary, the reverse from there on."""
    t = np.where(np.arange(len(one)) < boundary, share, 1 - share)
    return np.asarray((1 - t) * one + t * other)


def _chances(amounts: Array) -> Array:
    total = amounts.sum()
    return np.asarray(amounts / total) if total > 0 else np.full(len(amounts), 1 / len(amounts))
