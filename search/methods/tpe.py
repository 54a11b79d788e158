"""Tree-structured Parzen estimators, of optuna."""

from search.sampler import Sampled
from search.settings import TpeSettings
from search.space import Space
from search.trial import Found, Search, Task


def search(space: Space, p: TpeSettings, task: Task) -> Search:
    """Batches of candidates; those of one batch know of each other (constant liar)."""
    import optuna

    sampler = optuna.samplers.TPESampler(
        n_startup_trials=p.startup, multivariate=True, constant_liar=True, seed=task.seed
    )
    yield from Sampled(space, sampler, task).batches(p.batch)
    return Found()
