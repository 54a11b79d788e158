"""MAP: amortised Pareto fronts (arXiv:2406.07529).

A few candidates are scored, a quadratic is fitted to each objective, and the front of the quadratics is
computed without another merge. Unlike the published code, the front is looked for inside the box that was
sampled (a quadratic says little outside it), points are spread by a Sobol sequence and not drawn anew,
and points of the front are measured in the end.
"""

from collections.abc import Callable, Generator, Sequence

import numpy as np

from search.clouds import Model, predicted_front, sample, spread, where_unsure
from search.front import suited
from search.order import unknowns
from search.settings import MapSettings
from search.space import Space
from search.surrogate import Array, Surrogate, fit
from search.trial import Ask, Found, Predicted, Search, Task, Told

PAIR_SAMPLES = 20
SHOWN = 64
"""Points of a predicted front that are told."""
Place = Callable[[Sequence[float]], Ask]


def search(space: Space, p: MapSettings, task: Task) -> Search:
    """Samples, fits, predicts the front, and measures points of it."""
    if p.mode == "nested":
        return (yield from _nested(space, p, task))

    def place(vector: Sequence[float]) -> Ask:
        return Ask(space.point(list(vector)))

    points, _, models = yield from _fitted(space.width, p, task, place)
    if models is None:
        return Found(notes={"surrogate": "too few candidates could be scored to fit quadratics"})
    cloud, values = predicted_front(models, space.width, task.seed)
    left = task.evaluations - len(points)
    picks = spread(values, min(p.verify, left))
    if picks:
        yield [place(cloud[at].tolist()) for at in picks]
    shown = spread(values, SHOWN)
    front = tuple(Predicted(space.point(cloud[at].tolist()), tuple(values[at].tolist())) for at in shown)
    return Found(front=front, notes={"surrogate_error": [model.error for model in models]})


Fitted = tuple[Array, Array, list[Surrogate] | None]


def _fitted(width: int, p: MapSettings, task: Task, place: Place) -> Generator[list[Ask], list[Told], Fitted]:
    """Scores samples in the unit box; gives points, scores and a quadratic for each objective."""
    rng = np.random.default_rng(task.seed)
    points, scores = np.empty((0, width)), np.empty((0, len(task.weights)))
    first, *later = batches(width, p, task.evaluations)
    wanted = sample(width, first, task.seed)
    for count in [*later, 0]:
        told = yield [place(vector) for vector in wanted.tolist()]
        good = [(at, each.values) for at, each in enumerate(told) if each.values is not None]
        points = np.vstack([points, wanted[[at for at, _ in good]]])
        scores = np.vstack([scores, *(np.array(values) for _, values in good)])
        if not count or len(points) < unknowns(width):
            break
        wanted = where_unsure(points, scores, _models(points, scores, p), count, rng)
    if len(points) < unknowns(width):
        return points, scores, None
    return points, scores, _models(points, scores, p)


def batches(width: int, p: MapSettings, evaluations: int) -> list[int]:
    """How many samples at a time: all at once, or half of them and the rest in rounds."""
    least = unknowns(width)
    total = max(least, min(p.samples or 2 * least, evaluations))
    first = total if p.mode != "bayesian" else max(least, total // 2)
    shared, over = divmod(total - first, p.rounds)
    return [first, *(count for at in range(p.rounds) if (count := shared + (at < over)))]


def _models(points: Array, scores: Array, p: MapSettings) -> list[Surrogate]:
    return [fit(points, column, p.link) for column in scores.T]


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

        _, _, models = yield from _fitted(
            2, p.model_copy(update={"samples": samples, "mode": "plain"}), pair, place
        )
        if models is None:
            return Found(notes={"surrogate": f"too few candidates of pair {first}, {second} could be scored"})
        cloud, values = predicted_front([_mean(models, first), _mean(models, second)], 2, task.seed)
        best = cloud[suited(values, weights if sum(weights) else [1.0, 1.0])]
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
