"""Scores a model folder on evaluation sets: load once, turn each set into tokens once, measure in batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoring.errors import ModelUnusable, NotCausal, ScoringStopped, SetInvalid
from scoring.model import LoadedModel, fitting_threads, load, names
from scoring.score import Score
from scoring.scorers import choice, classification, exact_match, perplexity, retrieval, similarity, zero_shot
from scoring.scorers.prepared import BATCH_TOKENS, How, Prepared
from scoring.settings import EMBEDDING, LIKELIHOOD
from scoring.tasks import Task, ZeroShotTask
from scoring.trial import looks_ahead

POOLER = "pooler."
"""Weights that a checkpoint may lack where only hidden states are read."""
SCORERS: Mapping[str, Callable[[LoadedModel, Any, How], Prepared]] = {
    "perplexity": perplexity.prepare,
    "choice": choice.prepare,
    "exact_match": exact_match.prepare,
    "classification": classification.prepare,
    "zero_shot": zero_shot.prepare,
    "similarity": similarity.prepare,
    "retrieval": retrieval.prepare,
}
NO_HEADS: Mapping[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class ScoreProgress:
    """How far scoring has come: rows of tokens done and in all, over every task of the call."""

    task: str
    done: int
    total: int


OnProgress = Callable[[ScoreProgress], None]


def _ignore(_: ScoreProgress) -> None:
    return


def score_model(
    folder: Path,
    tasks: Sequence[Task],
    *,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    per_example: bool = False,
    heads: Mapping[str, Tensor] = NO_HEADS,
    on_progress: OnProgress = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """Scores of one model on every task, in the order of the tasks.

    A perplexity task gives ``bits_per_byte`` and ``perplexity``, exact match ``exact_match``, choice,
    classification and zero-shot ``accuracy`` and ``log_loss``, similarity ``spearman``, retrieval
    ``ndcg_at_10`` and ``recall_at_<k>``. ``heads`` are zero-shot heads, [classes, features], by task
    name. The same folder, tasks and device give the same numbers. Raises ModelUnusable, NotCausal,
    ScoreNotFinite or ScoringStopped (asked before every batch).
    """
    if should_stop():
        raise ScoringStopped("scoring was asked to stop")
    return score_loaded(
        load(folder, device=device),
        tasks,
        batch_tokens=batch_tokens,
        per_example=per_example,
        heads=heads,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def score_loaded(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    *,
    window: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    per_example: bool = False,
    heads: Mapping[str, Tensor] = NO_HEADS,
    on_progress: OnProgress = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """As score_model, for a model that is already loaded. ``window`` is the longest context in tokens in
    place of what the tasks say (less where the model allows less).
    """
    how = How(batch_tokens, window, per_example)
    with fitting_threads(loaded):
        prepared = prepare(loaded, tasks, how, heads)
        return measure(loaded, tasks, prepared, on_progress=on_progress, should_stop=should_stop)


def base_heads(folder: Path, tasks: Sequence[Task], *, device: str = "cpu") -> dict[str, Tensor]:
    """The heads, by task name, that a model makes for those zero-shot tasks whose ``head`` is the base's;
    raises ``ModelUnusable``.
    """
    asked = [each for each in tasks if isinstance(each, ZeroShotTask) and each.settings.head == "base"]
    if not asked:
        return {}
    loaded = load(folder, device=device)
    require_fit(loaded, asked)
    return {each.name: zero_shot.head_of(loaded, each) for each in asked}


def prepare(
    loaded: LoadedModel, tasks: Sequence[Task], how: How, heads: Mapping[str, Tensor] = NO_HEADS
) -> list[Prepared]:
    """Every task in tokens of this model, to be measured with any weights that it has later."""
    require_fit(loaded, tasks)
    for task in tasks:
        if task.kind not in SCORERS:
            raise SetInvalid(task.name, None, "kind", f"is {task.kind!r}, which scoring.harness.run measures")
    return [
        zero_shot.prepare(loaded, task, how, heads.get(task.name))
        if isinstance(task, ZeroShotTask)
        else SCORERS[task.kind](loaded, task, how)
        for task in tasks
    ]


def measure(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    prepared: Sequence[Prepared],
    *,
    on_progress: OnProgress = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """The scores of prepared tasks."""
    total, done = sum(each.total for each in prepared), 0
    scores: list[Score] = []
    for task, each in zip(tasks, prepared, strict=True):
        measuring = each.measure(loaded)
        while True:
            if should_stop():
                raise ScoringStopped(f"scoring of {loaded.folder.name} was asked to stop")
            try:
                done += next(measuring)
            except StopIteration as end:
                scores += end.value
                break
            on_progress(ScoreProgress(task.name, done, total))
    return scores


def require_scorable(loaded: LoadedModel) -> None:
    """Refuses what has no next-token likelihoods (NotCausal) or cannot be trusted to be itself
    (ModelUnusable).
    """
    name = loaded.folder.name
    if not loaded.causal:
        raise NotCausal(
            f"{name} is a {loaded.architecture}, which has no causal language-model head; "
            "score it on nothing, or merge language models"
        )
    _require_whole(loaded, loaded.missing)
    require_blind(loaded)


def require_blind(loaded: LoadedModel) -> None:
    """Refuses what sees the tokens that it is to predict (NotCausal)."""
    if looks_ahead(loaded):
        raise NotCausal(
            f"{loaded.folder.name} is a {loaded.architecture} that sees the tokens it is to predict (it is "
            "no decoder), so likelihoods of texts mean nothing; score it on nothing, or merge language models"
        )


def require_fit(loaded: LoadedModel, tasks: Sequence[Task]) -> None:
    """Refuses models that cannot be scored on these tasks; raises NotCausal or ModelUnusable."""
    kinds = {task.kind for task in tasks}
    if kinds & LIKELIHOOD:
        require_scorable(loaded)
    missing = loaded.missing
    if kinds <= EMBEDDING:
        missing = tuple(each for each in missing if POOLER not in each)
    _require_whole(loaded, missing)


def _require_whole(loaded: LoadedModel, missing: Sequence[str]) -> None:
    name = loaded.folder.name
    if loaded.tokenizer is None:
        raise ModelUnusable("no_tokenizer", f"{name} has no tokenizer files, so texts cannot be scored on it")
    if missing:
        raise ModelUnusable("missing_tensors", f"{name} lacks {names(missing)}; its scores would be chance")
