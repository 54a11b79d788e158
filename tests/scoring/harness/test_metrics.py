"""The table of the harness's metrics and what scores say agree; ``make eval`` holds both to the harness."""

import pytest

from scoring.harness.metrics import BY_OUTPUT, DEFAULTS, KNOWN, OF_ITEMS, WEIGHTED
from scoring.score import Score, higher_is_better


@pytest.mark.parametrize("metric", KNOWN)
def test_a_score_knows_which_way_is_better_whatever_stands_around_its_metric(metric: str) -> None:
    known = KNOWN[metric].higher_is_better
    for shown in (metric, f"mmlu_law:{metric}", f"{metric},strict-match", f"a:{metric},none"):
        assert higher_is_better(shown) is Score("t", shown, 0.5, None, 1).higher_is_better is known


def test_every_metric_that_a_task_may_name_is_known() -> None:
    for kind, names in BY_OUTPUT.items():
        assert names <= KNOWN.keys() and set(DEFAULTS[kind]) <= names


def test_items_have_values_by_means_and_by_weighted_means_alone() -> None:
    assert WEIGHTED == {"word_perplexity", "byte_perplexity", "bits_per_byte"} < OF_ITEMS
    assert "acc" in OF_ITEMS and not {"f1", "mcc", "bleu", "brier_score", "perplexity"} & OF_ITEMS
