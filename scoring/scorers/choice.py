"""Multiple choice by likelihood: the choice that a model finds likeliest, for its length, is its answer."""

from collections.abc import Sequence

from scoring.errors import ModelUnusable
from scoring.likelihood import grouped, longest, measured
from scoring.model import LoadedModel
from scoring.score import Score, choice_loss, choice_scores, elected
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.tasks import ChoiceTask
from scoring.windows import Row, choice_rows

WINDOW = 2048


def prepare(loaded: LoadedModel, task: ChoiceTask, how: How) -> Prepared:
    """One row a choice; choices that share a beginning share a forward pass."""
    rows = list(choice_rows(loaded.tokenizer, task.questions, longest(loaded, how.window or WINDOW)))
    if any(row.scored == 0 for row in rows):
        message = (
            f"the tokenizer of {loaded.folder.name} has no start token, so set {task.name!r} cannot have"
        )
        raise ModelUnusable("no_start_token", f"{message} questions without a context")
    groups = grouped(loaded, rows, how.batch_tokens)

    def measure(loaded: LoadedModel) -> Measuring:
        values = yield from measured(loaded, rows, groups)
        return _scores(task, rows, values, how.per_example)

    return Prepared(len(rows), measure)


def _scores(task: ChoiceTask, rows: Sequence[Row], values: Sequence[float], per_example: bool) -> list[Score]:
    right, losses, begin = list[bool](), list[float](), 0
    for question in task.questions:
        end = begin + len(question.choices)
        sizes = {
            "bytes": [len(choice.encode()) for choice in question.choices],
            "tokens": [row.scored for row in rows[begin:end]],
            "none": [1] * len(question.choices),
        }[task.settings.normalise]
        right.append(elected(values[begin:end], sizes) == question.answer)
        losses.append(choice_loss(values[begin:end], question.answer))
        begin = end
    return choice_scores(task.name, right, losses, per_example)
