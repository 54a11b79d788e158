"""What is known of the metrics of lm-evaluation-harness without it: which way is better, and how the values
of items become one number. ``make eval`` holds this table against the harness's own registry.
"""

from collections.abc import Mapping
from typing import NamedTuple

MEAN = "mean"


class Known(NamedTuple):
    """Whether more is better, and the name of the aggregation that makes one number of all items."""

    higher_is_better: bool
    aggregation: str


KNOWN: Mapping[str, Known] = {
    "acc": Known(True, MEAN),
    "acc_norm": Known(True, MEAN),
    "acc_bytes": Known(True, MEAN),
    "acc_mutual_info": Known(True, MEAN),
    "exact_match": Known(True, MEAN),
    "f1": Known(True, "f1"),
    "mcc": Known(True, "matthews_corrcoef"),
    "bleu": Known(True, "bleu"),
    "chrf": Known(True, "chrf"),
    "chrf++": Known(True, "chrf++"),
    "ter": Known(False, "ter"),
    "brier_score": Known(False, "brier_score"),
    "perplexity": Known(False, "perplexity"),
    "word_perplexity": Known(False, "weighted_perplexity"),
    "byte_perplexity": Known(False, "weighted_perplexity"),
    "bits_per_byte": Known(False, "bits_per_byte"),
}
BY_OUTPUT: Mapping[str, frozenset[str]] = {
    "multiple_choice": frozenset({"acc", "acc_norm", "acc_bytes", "brier_score", "f1", "mcc"}),
    "generate_until": frozenset({"exact_match", "bleu", "chrf", "ter"}),
    "loglikelihood_rolling": frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte"}),
}
"""The metrics that a task of one's own may name, by the kind of request that they are made for."""
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
"""What is measured where a task names no metric."""
WEIGHTED = frozenset(
    name for name, known in KNOWN.items() if known.aggregation in ("weighted_perplexity", "bits_per_byte")
)
"""Metrics of which an item gives a log-likelihood and what it is divided by."""
OF_ITEMS = WEIGHTED | {name for name, known in KNOWN.items() if known.aggregation == MEAN}
"""Metrics of which every item has a value of its own."""


def bare(metric: str) -> str:
    """A metric without the subtask before it and the filter behind it.

    >>> bare("mmlu_law:exact_match,strict-match")
    'exact_match'
    """
    return metric.rpartition(":")[2].partition(",")[0]
