"""Similarity: do the cosines of pairs of texts rank the pairs as people do? Spearman's correlation."""

from scoring.embedding import embedded, tokenised
from scoring.model import LoadedModel
from scoring.paired import resampled_stderr
from scoring.score import Score, spearman
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.tasks import SimilarityTask


def prepare(loaded: LoadedModel, task: SimilarityTask, how: How) -> Prepared:
    """Every different text once, in tokens."""
    asked = task.settings
    texts = list(dict.fromkeys(text for pair in task.pairs for text in (pair.left, pair.right)))
    place = {text: index for index, text in enumerate(texts)}
    rows = tokenised(loaded, [asked.prefix + text for text in texts])
    told = [pair.score for pair in task.pairs]

    def measure(loaded: LoadedModel) -> Measuring:
        vectors = yield from embedded(loaded, rows, asked.pooling, how.batch_tokens)
        left = vectors[[place[pair.left] for pair in task.pairs]]
        right = vectors[[place[pair.right] for pair in task.pairs]]
        cosines = [float(each) for each in (left * right).sum(dim=1)]
        score = Score(
            task.name, "spearman", spearman(cosines, told), None, len(told), tuple(cosines), tuple(told)
        )
        stderr = resampled_stderr(score)
        each = (score.per_example, score.weights) if how.per_example else (None, None)
        return [Score(task.name, "spearman", score.value, stderr, score.n, *each)]

    return Prepared(len(rows), measure)
