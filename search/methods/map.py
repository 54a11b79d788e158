"""MAP: amortised Pareto fronts (arXiv:2406.07529).

A few candidates are scored, a quadratic is fitted to each objective, and the front of the quadratics is
computed without another merge. Unlike the published code, the front is looked for inside the box that was
sampled (a quadratic says little outside it), points are spread by a Sobol sequence and not drawn anew,
and points of the front are measured in the end: those that add most volume, with another fit after every few
of them, in which points far behind the front count little.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from search.choice import suited
from search.clouds import Model, largest_gains, predicted_front, sample, spread, where_unsure
from search.front import behind, not_dominated
from search.order import unknowns
from search.settings import MapSettings
from search.space import Space
from search.surrogate import Array, Surrogate, Undetermined, fit
from search.trial import Ask, Found, Predicted, Search, Task, Told

PAIR_SAMPLES = 20
SHOWN = 64
"""Points of a predicted front that are told."""
NEAR = 0.2
LEAST_WEIGHT = 0.1
"""How far behind the front, as a share of its range, a point still counts in a fit, and how little then."""
MOST = 1e100
"""Perplexities may be as large as numbers go; of these the squares are numbers still."""
MARGIN = 0.1
"""How far the reference lies below the front where none is given, as a share of its range."""
Place = Callable[[Sequence[float]], Ask]


def search(space: Space, p: MapSettings, task: Task) -> Search:
    """Samples, fits, predicts the front, and measures points of it, fitting again in between. Where too few
    candidates could be scored for that, it ends with what was measured and says so.
    """
    try:
        return (yield from (_nested if p.mode == "nested" else _amortised)(space, p, task))
    except Undetermined as error:
        return Found(notes={"surrogate": f"too few candidates could be scored to predict a front: {error}"})


def _amortised(space: Space, p: MapSettings, task: Task) -> Search:
    def place(vector: Sequence[float]) -> Ask:
        return Ask(space.point(list(vector)))

    known = _Known.nothing(space.width, len(task.weights))
    yield from _sampled(known, p, task, place)
    models = known.models(p, near=True)
    cloud, values = predicted_front(models, space.width, task.seed)
    left = min(p.verify, task.evaluations - known.asked)
    for at in range(p.rounds):
        picks = worth(values, known.scores, task, -(-left // (p.rounds - at)))
        if not picks:
            break
        yield from known.measured(cloud[picks], place)
        left -= len(picks)
        models = known.models(p, near=True)
        cloud, values = predicted_front(models, space.width, task.seed)
    shown = spread(values, SHOWN)
    front = tuple(Predicted(space.point(cloud[at].tolist()), tuple(values[at].tolist())) for at in shown)
    return Found(front=front, notes={"surrogate_error": [model.told_error for model in models]})


@dataclass
class _Known:
    """What was scored: points of the unit box (rows, width) and their scores; ``asked`` counts failures
    too.
    """

    points: Array
    scores: Array
    asked: int = 0

    @classmethod
    def nothing(cls, width: int, objectives: int) -> "_Known":
        return cls(np.empty((0, width)), np.empty((0, objectives)))

    def measured(self, wanted: Array, place: Place) -> Generator[list[Ask], list[Told], None]:
        """Has points scored, and keeps what came out."""
        told = yield [place(vector) for vector in wanted.tolist()]
        good = [(at, each.values) for at, each in enumerate(told) if each.values is not None]
        self.points = np.vstack([self.points, wanted[[at for at, _ in good]]])
        self.scores = np.vstack([self.scores, *(np.clip(values, -MOST, MOST) for _, values in good)])
        self.asked += len(wanted)

    def models(self, p: MapSettings, *, near: bool = False) -> list[Surrogate]:
        """A quadratic for each objective; ``near`` the front above all."""
        weights = None
        if near and len(self.scores):  # of nothing there is no front; the fit says that it is too little
            weights = np.maximum(LEAST_WEIGHT, np.exp(-((behind(self.scores) / NEAR) ** 2)))
        return [fit(self.points, column, p.link, weights) for column in self.scores.T]


def worth(predicted: Array, measured: Array, task: Task, count: int) -> list[int]:
    """Rows of a predicted front to be measured: what suits the preference, then what adds most volume over
    the reference. Without one, or one that nothing beats, it is a little below the front in every objective.
    """
    front = np.vstack([predicted, measured[not_dominated(measured)]])
    reference = front.min(axis=0) - MARGIN * np.ptp(front, axis=0)
    if task.reference is not None and np.any(np.all(front > task.reference, axis=1)):
        reference = np.asarray(task.reference)
    first = [] if task.preference is None else [suited(predicted.tolist(), task.preference)]
    known = np.vstack([measured, predicted[first]])
    return [*first, *largest_gains(predicted, known, reference, count - len(first))][:count]


def _sampled(
    known: _Known, p: MapSettings, task: Task, place: Place
) -> Generator[list[Ask], list[Told], None]:
    """Scores samples: all at once, or after the first ones where quadratics are unsure."""
    width, rng = known.points.shape[1], np.random.default_rng(task.seed)
    first, *later = batches(width, p, task.evaluations)
    yield from known.measured(sample(width, first, task.seed), place)
    for count in later:
        unsure = where_unsure(known.points, known.scores, known.models(p), count, rng)
        yield from known.measured(unsure, place)


def batches(width: int, p: MapSettings, evaluations: int) -> list[int]:
    """How many samples at a time: all at once, or half of them and the rest in rounds."""
    least = unknowns(width)
    total = max(least, min(p.samples or 2 * least, evaluations))
    first = total if p.mode != "bayesian" else max(least, total // 2)
    shared, over = divmod(total - first, p.rounds)
    return [first, *(count for at in range(p.rounds) if (count := shared + (at < over)))]


def _nested(space: Space, p: MapSettings, task: Task) -> Search:
    """Nested MAP: the two groups whose objectives are closest in value are put together by a search in two
    numbers, again and again; dimension i is the weight of the source of objective i.
    """
    count = len(task.weights)
    say = task.preference or (1.0,) * count
    each = (task.evaluations - count) // max(1, count - 1)
    samples = min(p.samples or PAIR_SAMPLES, max(unknowns(2), each))
    told = yield [Ask(space.point(row)) for row in np.eye(count).tolist()]
    scores = [t.values[at] if t.values else -np.inf for at, t in enumerate(told)]
    groups: list[tuple[list[int], Array]] = [([at], np.eye(count)[at]) for at in range(count)]
    pairs = []
    while len(groups) > 1:
        one, other = _closest([float(np.mean([scores[at] for at in group])) for group, _ in groups])
        (first, a), (second, b) = groups[one], groups[other]
        weights = [sum(say[at] for at in first), sum(say[at] for at in second)]
        pair = Task(samples, task.weights, task.seed)

        def place(vector: Sequence[float], a: Array = a, b: Array = b) -> Ask:
            return Ask(space.point((vector[0] * a + vector[1] * b).clip(0, 1).tolist()))

        known = _Known.nothing(2, count)
        yield from _sampled(known, p.model_copy(update={"samples": samples, "mode": "plain"}), pair, place)
        models = known.models(p)
        cloud, values = predicted_front([_mean(models, first), _mean(models, second)], 2, task.seed)
        best = cloud[suited(values.tolist(), weights if sum(weights) else [1.0, 1.0])]
        pairs.append({"pair": [first, second], "weights": best.tolist()})
        groups = [g for at, g in enumerate(groups) if at not in (one, other)]
        groups.append((first + second, (best[0] * a + best[1] * b).clip(0, 1)))
    chosen = space.point(groups[0][1].tolist())
    yield [Ask(chosen)]
    return Found(point=chosen, notes={"pairs": pairs})


def _mean(models: Sequence[Model], members: Sequence[int]) -> Model:
    """What a group of objectives scores on average."""
    return lambda points: np.asarray(np.mean([models[at](points) for at in members], axis=0))


def _closest(values: Sequence[float]) -> tuple[int, int]:
    pairs = [
        (abs(values[i] - values[j]), i, j) for i in range(len(values)) for j in range(i + 1, len(values))
    ]
    _, one, other = min(pairs)
    return one, other
