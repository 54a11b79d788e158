"""Bits per byte and perplexity: how surprised a model is by texts, one by one or as one stream."""

from scoring.errors import ModelUnusable
from scoring.likelihood import grouped, longest, measured
from scoring.model import LoadedModel
from scoring.score import Measured, stream_scores, text_scores
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.tasks import PerplexityTask
from scoring.windows import stream_rows, text_rows


def prepare(loaded: LoadedModel, task: PerplexityTask, how: How) -> Prepared:
    """Cuts the texts into overlapping windows, each token scored once."""
    length = longest(loaded, how.window or task.settings.window)
    streams = task.settings.form == "stream"
    cut = stream_rows if streams else text_rows
    rows = list(cut(loaded.tokenizer, task.texts, length))
    groups = grouped(loaded, rows, how.batch_tokens)

    def measure(loaded: LoadedModel) -> Measuring:
        values = yield from measured(loaded, rows, groups)
        windows = [Measured(row.item, value, row.scored) for row, value in zip(rows, values, strict=True)]
        sizes = [len(text.encode()) for text in task.texts]
        if streams:
            scores = stream_scores(task.name, sum(sizes), windows, how.per_example)
        else:
            scores = text_scores(task.name, sizes, windows, how.per_example)
        if not scores:
            message = f"no token of set {task.name!r} can be scored with {loaded.folder.name}"
            raise ModelUnusable("nothing_scored", message)
        return scores

    return Prepared(sum(row.scored > 0 for row in rows), measure)
