"""Greedy soup (Wortsman et al., arXiv:2203.05482)."""

import math

from search.settings import GreedySoupSettings
from search.space import Space
from search.trial import Ask, Found, Search, Task


def search(space: Space, p: GreedySoupSettings, task: Task) -> Search:
    """Each source is scored alone; from the best one, the next best joins if the soup does not get worse."""
    names = list(space.dimensions)
    alone = [{name: name == one for name in names} for one in names][: task.evaluations]
    told = yield [Ask(point) for point in alone]
    values = {name: task.value(each) for name, each in zip(names, told, strict=False)}
    ranked = sorted(values, key=lambda name: -values[name])
    soup, score = {ranked[0]}, values[ranked[0]]
    for name in ranked[1 : 1 + max(0, task.evaluations - len(alone))]:
        (answer,) = yield [Ask({each: each in soup | {name} for each in names})]
        if task.value(answer) >= score - p.tolerance:
            soup, score = soup | {name}, max(score, task.value(answer))
    alone_told = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return Found(point={name: name in soup for name in names}, notes={"alone": alone_told})
