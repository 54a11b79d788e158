"""Scores a model folder on evaluation sets: load once, measure likelihoods in batches, turn them into
scores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoring.errors import ModelUnusable, NotCausal, ScoreNotFinite, ScoringStopped
from scoring.model import LoadedModel, fitting_threads, load, names
from scoring.score import Measured, Score, choice_score, elected, text_scores
from scoring.tasks import ChoiceTask, PerplexityTask, Task
from scoring.windows import Pass, Row, batches, choice_rows, passes, text_rows

LOGIT_ENTRIES = 32 << 20  # float32 logits held at a time: 128 MiB
LONGEST_WINDOW = 1024


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
    dtype: str = "float32",
    window: int = 512,
    batch_tokens: int = 4096,
    per_example: bool = False,
    on_progress: OnProgress = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """Scores of one model on every task, in the order of the tasks.

    A perplexity task gives ``bits_per_byte`` and ``perplexity``, a choice task ``accuracy`` (the choice with
    the highest likelihood per UTF-8 byte is taken). ``window`` is the longest context in tokens (less where
    the model allows less). The same folder, tasks and device give the same numbers. Raises ModelUnusable,
    NotCausal, ScoreNotFinite or ScoringStopped (asked before every batch).
    """
    if should_stop():
        raise ScoringStopped("scoring was asked to stop")
    loaded = load(folder, device=device, dtype=dtype)
    return score_loaded(
        loaded,
        tasks,
        window=window,
        batch_tokens=batch_tokens,
        per_example=per_example,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def score_loaded(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    *,
    window: int = 512,
    batch_tokens: int = 4096,
    per_example: bool = False,
    on_progress: OnProgress = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """As score_model, for a model that is already loaded."""
    require_scorable(loaded)
    length = _window(loaded, window)
    rows = [_rows(loaded, task, length) for task in tasks]
    total, done = sum(row.scored > 0 for each in rows for row in each), 0
    scores: list[Score] = []
    with fitting_threads(loaded):
        for index, task in enumerate(tasks):
            likelihoods = [0.0] * len(rows[index])
            for values in _measure(loaded, rows[index], batch_tokens, should_stop):
                for position, value in values.items():
                    likelihoods[position] = value
                done += len(values)
                on_progress(ScoreProgress(task.name, done, total))
            scores += _scores(task, rows[index], likelihoods, per_example, loaded)
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
    if loaded.tokenizer is None:
        raise ModelUnusable("no_tokenizer", f"{name} has no tokenizer files, so texts cannot be scored on it")
    if loaded.missing:
        raise ModelUnusable(
            "missing_tensors", f"{name} lacks {names(loaded.missing)}; its scores would be chance"
        )


def _window(loaded: LoadedModel, window: int) -> int:
    config = loaded.model.config.get_text_config()
    own = (
        getattr(config, "max_position_embeddings", None)
        or getattr(config, "n_positions", None)
        or LONGEST_WINDOW
    )
    return max(8, min(window, int(own), LONGEST_WINDOW))


def _rows(loaded: LoadedModel, task: Task, length: int) -> list[Row]:
    if isinstance(task, PerplexityTask):
        return list(text_rows(loaded.tokenizer, task.texts, length))
    rows = list(choice_rows(loaded.tokenizer, task.questions, length))
    if any(row.scored == 0 for row in rows):
        message = (
            f"the tokenizer of {loaded.folder.name} has no start token, so set {task.name!r} cannot have"
        )
        raise ModelUnusable("no_start_token", f"{message} questions without a context")
    return rows


def _measure(
    loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, should_stop: Callable[[], bool]
) -> Iterator[dict[int, float]]:
    vocabulary = loaded.vocabulary or 1
    budget = max(1, min(batch_tokens, LOGIT_ENTRIES // vocabulary))
    for group in batches(passes(rows), budget):
        if should_stop():
            raise ScoringStopped(f"scoring of {loaded.folder.name} was asked to stop")
        yield log_likelihoods(loaded, rows, group)


def log_likelihoods(loaded: LoadedModel, rows: Sequence[Row], group: Sequence[Pass]) -> dict[int, float]:
    """Summed log-likelihood, in nats, of the scored part of each row of a group of passes; one forward
    pass.
    """
    width = max(len(each.ids) for each in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    mask = torch.zeros(len(group), width, dtype=torch.long)
    wanted: set[int] = set()
    for line, each in enumerate(group):
        ids[line, : len(each.ids)] = torch.tensor(each.ids)
        mask[line, : len(each.ids)] = 1
        for index in each.rows:
            _within_vocabulary(loaded, rows[index])
            wanted.update(range(rows[index].first - 1, len(rows[index].ids) - 1))
    positions = sorted(wanted)
    logits = loaded.logits(ids, mask, positions)
    place = {position: k for k, position in enumerate(positions)}
    values = {
        index: _row_likelihood(logits[line], place[rows[index].first - 1], rows[index])
        for line, each in enumerate(group)
        for index in each.rows
    }
    if not all(map(math.isfinite, values.values())):
        raise ScoreNotFinite(f"{loaded.folder.name} answers with NaN or infinity; its weights are broken")
    return values


def _within_vocabulary(loaded: LoadedModel, row: Row) -> None:
    if loaded.vocabulary is not None and max(row.ids) >= loaded.vocabulary:
        message = (
            f"the tokenizer of {loaded.folder.name} gives token {max(row.ids)}, "
            f"but the embedding has {loaded.vocabulary} rows; take the tokenizer that belongs to the model"
        )
        raise ModelUnusable("token_out_of_range", message)


def _row_likelihood(logits_TV: Tensor, begin: int, row: Row) -> float:  # noqa: N803
    predicted = logits_TV[begin : begin + row.scored]
    wanted = torch.tensor(row.ids[row.first :], device=predicted.device)
    chosen = predicted.gather(1, wanted[:, None])[:, 0]
    return float((chosen - predicted.logsumexp(dim=1)).double().sum())


def _scores(
    task: Task, rows: Sequence[Row], likelihoods: Sequence[float], per_example: bool, loaded: LoadedModel
) -> list[Score]:
    if isinstance(task, ChoiceTask):
        return [choice_score(task.name, _right(task, likelihoods), per_example)]
    measured = [Measured(row.item, value, row.scored) for row, value in zip(rows, likelihoods, strict=True)]
    scores = text_scores(task.name, [len(text.encode()) for text in task.texts], measured, per_example)
    if not scores:
        raise ModelUnusable(
            "nothing_scored", f"no token of set {task.name!r} can be scored with {loaded.folder.name}"
        )
    return scores


def _right(task: ChoiceTask, likelihoods: Sequence[float]) -> list[bool]:
    right, begin = [], 0
    for question in task.questions:
        end = begin + len(question.choices)
        sizes = [len(choice.encode()) for choice in question.choices]
        right.append(elected(likelihoods[begin:end], sizes) == question.answer)
        begin = end
    return right
