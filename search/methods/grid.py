"""Every combination of evenly spaced values."""

import itertools

from search.settings import GridSettings
from search.space import Space
from search.trial import Ask, Found, Search, Task

BATCH = 64


def search(space: Space, p: GridSettings, task: Task) -> Search:
    """All combinations in order, the last dimension fastest; ends included, choices as they are."""
    del task
    axes = []
    for each in space.dimensions.values():
        count = len(each.choices) if each.choices is not None else p.levels
        units = [(at + 0.5) / count if each.choices is not None else at / (count - 1) for at in range(count)]
        axes += [units] * each.width
    vectors = itertools.product(*axes)
    while batch := list(itertools.islice(vectors, BATCH)):
        yield [Ask(space.point(vector)) for vector in batch]
    return Found()
