"""Points of the unit box: spread evenly, along a front of surrogates, where surrogates are unsure, or where a
front would gain most.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import qmc

from search.front import covered, not_dominated
from search.surrogate import Array

Model = Callable[[Array], Array]
"""Predicted scores of points (rows, width)."""
CLOUD = 1 << 11
"""Points at which surrogates are looked at, each time."""
REFINED = 4
MOST = 1 << 9
"""Points of a front that are kept each time."""
PROBES = 1 << 13
"""Points of the space of scores on which volumes are counted."""
TEMPERATURE = 0.07
SPREAD = 0.5
LEAST_RADIUS, MOST_RADIUS = 0.2, 0.8


def sample(width: int, count: int, seed: int) -> Array:
    """So many points of the unit box: origin, single axes, all ones, and a scrambled Sobol sequence."""
    corner = [np.ones(width)] if width > 1 else []  # of one number, the axis is the corner
    fixed = np.vstack([np.zeros(width), np.eye(width), *corner])[:count]
    more = count - len(fixed)
    if not more:
        return fixed
    power = max(1, int(np.ceil(np.log2(more))))
    return np.vstack([fixed, qmc.Sobol(width, seed=seed).random_base2(power)[:more]])


def predicted_front(models: Sequence[Model], width: int, seed: int) -> tuple[Array, Array]:
    """Points of the unit box that no other beats by the surrogates, and what these say of them; the cloud is
    drawn again around the front a few times, ever closer.
    """
    rng = np.random.default_rng(seed)
    cloud = sample(width, CLOUD, seed)
    reach = 0.2
    for _ in range(REFINED + 1):
        values = np.column_stack([model(cloud) for model in models])
        kept = not_dominated(values)
        if len(kept) > MOST:
            kept = rng.choice(kept, MOST, replace=False).tolist()
        front, scores = cloud[kept], values[kept]
        near = front[rng.integers(len(front), size=CLOUD)] + rng.normal(0, reach, (CLOUD, width))
        cloud = np.vstack([front, np.clip(near, 0, 1)])
        reach /= 3
    return front, scores


def spread(values: Array, count: int) -> list[int]:
    """So many rows of a front, far from each other: the best of each objective first, then always the row
    farthest from all that were taken.
    """
    if not count:
        return []
    size = values.max(axis=0) - values.min(axis=0)
    scaled = values / np.where(size > 0, size, 1.0)
    taken = list(dict.fromkeys(int(at) for at in scaled.argmax(axis=0)))[:count]
    distance = np.min([np.linalg.norm(scaled - scaled[at], axis=1) for at in taken], axis=0)
    while len(taken) < min(count, len(values)) and distance.max() > 0:
        taken.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[taken[-1]], axis=1))
    return taken


def largest_gains(predicted: Array, measured: Array, reference: Array, count: int) -> list[int]:
    """So many rows of a predicted front, or fewer: always the one that adds most to the volume between the
    reference and all that was measured or taken. Volumes are counted on a Sobol sequence.
    """
    best = np.vstack([predicted, measured]).max(axis=0)
    if not np.all(best > reference):
        return []
    probes = qmc.Sobol(len(reference), seed=0).random_base2(PROBES.bit_length() - 1)
    probes = reference + probes * (best - reference)
    open_probes = probes[~covered(probes, measured).any(axis=0)]
    gains = covered(open_probes, predicted)
    taken = list[int]()
    while len(taken) < count and gains.any():
        taken.append(int(gains.sum(axis=1).argmax()))
        gains = gains[:, ~gains[taken[-1]]]
    return taken


def where_unsure(
    points: Array, scores: Array, models: Sequence[Model], count: int, rng: np.random.Generator
) -> Array:
    """New points in directions where the surrogates err and the scores vary (Bayesian MAP): bins of the
    angles of points are drawn by softmax, radii evenly.
    """
    width = points.shape[1]
    cuts = 4 if width < 4 else 2
    bins = [tuple(each) for each in np.minimum(cuts - 1, angles(points) / (np.pi / 2) * cuts).astype(int)]
    wrong = np.mean(
        [(model(points) - column) ** 2 for model, column in zip(models, scores.T, strict=True)], axis=0
    )
    every = list(np.ndindex(*(cuts,) * (width - 1)))
    unsure = []
    for each in every:
        rows = [at for at, found in enumerate(bins) if found == each]
        spreading = (
            np.std(scores[rows], axis=0).mean() / np.sqrt(len(rows)) if len(rows) > 1 else scores.std()
        )
        unsure.append(float(np.mean(wrong[rows]) if rows else wrong.max()) + SPREAD * float(spreading))
    chance = np.exp((np.array(unsure) - max(unsure)) / TEMPERATURE)
    drawn = rng.choice(len(every), size=count, p=chance / chance.sum())
    inside = (np.array(every)[drawn] + rng.random((count, width - 1))) / cuts * np.pi / 2
    radius = rng.uniform(LEAST_RADIUS, MOST_RADIUS, count) * np.sqrt(width)
    return np.asarray(np.clip(radius[:, None] * directions(inside), 0, 1))


def angles(points: Array) -> Array:
    """The hyperspherical angles (rows, width - 1) of points with no negative number; 0 at the origin."""
    tails = np.sqrt(np.cumsum(points[:, ::-1] ** 2, axis=1))[:, ::-1]
    return np.asarray(np.arctan2(tails[:, 1:], points[:, :-1]))


def directions(inside: Array) -> Array:
    """Unit vectors (rows, width) of angles: the inverse of ``angles``."""
    rows = len(inside)
    sines = np.cumprod(np.hstack([np.ones((rows, 1)), np.sin(inside)]), axis=1)
    return np.asarray(sines * np.hstack([np.cos(inside), np.ones((rows, 1))]))
