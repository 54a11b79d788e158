"""Retrieval: are the passages that answer a query the nearest ones? nDCG@10 and recall@k.

A passage of grade g at place r of the first ten counts g / log2(r + 1); the sum is divided by the best there
could be. Of passages at the same distance the earlier in the file comes first.
"""

import math

import torch

from scoring.embedding import embedded, tokenised
from scoring.model import LoadedModel
from scoring.score import mean_score
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.tasks import Query, RetrievalTask

CUT = 10
QUERIES_AT_ONCE = 256


def prepare(loaded: LoadedModel, task: RetrievalTask, how: How) -> Prepared:
    """Passages and queries in tokens."""
    asked = task.settings
    before = asked.prefix if asked.query_prefix is None else asked.query_prefix
    passages = tokenised(loaded, [asked.prefix + text for text in task.passages])
    queries = tokenised(loaded, [before + query.text for query in task.queries])
    deep = max(CUT, asked.k)

    def measure(loaded: LoadedModel) -> Measuring:
        found = yield from embedded(loaded, passages, asked.pooling, how.batch_tokens)
        wanted = yield from embedded(loaded, queries, asked.pooling, how.batch_tokens)
        gains, recalls = [], []
        for begin in range(0, len(wanted), QUERIES_AT_ONCE):
            near = wanted[begin : begin + QUERIES_AT_ONCE] @ found.T
            order = torch.sort(near, dim=1, descending=True, stable=True).indices[:, :deep].tolist()
            for query, places in zip(task.queries[begin:], order, strict=False):
                gains.append(ndcg(places[:CUT], query))
                recalls.append(recall(places[: asked.k], query))
        return [
            mean_score(task.name, f"ndcg_at_{CUT}", gains, how.per_example),
            mean_score(task.name, f"recall_at_{asked.k}", recalls, how.per_example),
        ]

    return Prepared(len(passages) + len(queries), measure)


def ndcg(places: list[int], query: Query) -> float:
    """Normalised discounted cumulative gain of passages in the order in which they were found."""
    grades = dict(query.relevant)
    best = sorted(grades.values(), reverse=True)[:CUT]
    gain = math.fsum(grades.get(each, 0.0) / math.log2(rank + 2) for rank, each in enumerate(places))
    return gain / math.fsum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def recall(places: list[int], query: Query) -> float:
    """Share of the relevant passages that were found."""
    relevant = {index for index, _ in query.relevant}
    return len(relevant & set(places)) / len(relevant)
