"""A sampler of optuna, asked for whole batches and told what came out."""

from collections.abc import Generator

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from search.space import Dimension, Point, Space
from search.trial import Ask, Task, Told

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Sampled:
    """The study of one search, in memory: it can be made again from the answers."""

    def __init__(
        self, space: Space, sampler: optuna.samplers.BaseSampler, task: Task, *, several: bool = False
    ) -> None:
        self._space, self._task, self._several = space, task, several
        count = len(task.weights) if several else 1
        self._study = optuna.create_study(sampler=sampler, directions=["maximize"] * count)
        self._axes = {
            f"{name}.{at}": _axis(each) for name, each in space.dimensions.items() for at in range(each.width)
        }

    def batches(self, size: int) -> Generator[list[Ask], list[Told], None]:
        """Batches of ``size`` while the evaluations last."""
        left = self._task.evaluations
        while left > 0:
            trials = [self._study.ask(self._axes) for _ in range(min(size, left))]
            told = yield [Ask(self._point(trial.params)) for trial in trials]
            left -= len(trials)
            for trial, each in zip(trials, told, strict=True):
                if each.values is None:
                    self._study.tell(trial, state=TrialState.FAIL)
                else:
                    self._study.tell(trial, each.values if self._several else self._task.value(each))

    def _point(self, drawn: dict[str, float]) -> Point:
        return {
            name: each.choices[int(drawn[f"{name}.0"])]
            if each.choices is not None
            else each.value([drawn[f"{name}.{at}"] for at in range(each.width)])
            for name, each in self._space.dimensions.items()
        }


def _axis(dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(list(range(len(dimension.choices))))
    return FloatDistribution(0.0, 1.0)
