"""What becomes of a candidate whose scores are wrong, or whose scorer breaks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from merge.checkpoint.index import index_folder
from merge.errors import DiskFull
from merge.in_memory import InMemory
from scoring.candidates import Candidates
from scoring.errors import HarnessFailed, HarnessMissing, ScoringStopped
from scoring.harness.task import HarnessTask
from scoring.score import Score
from scoring.settings import LmEvalSettings
from scoring.tasks import parse_task
from search.drive import Candidate
from search.errors import MetricMissing
from search.order import Objective
from search.trial import Ask, Told
from tests import tiny
from worker.candidates import Bench, Nothing, examples_of, score_of, value_of
from worker.makers import Ground, InHand, Sets
from worker.measures import Heads

BUDGET = 1 << 28
RECIPE = {"base": "base", "sources": [{"id": "a", "model": "expert1"}], "steps": ["task_arithmetic"]}


METRICS = [{"metric": "brier_score"}, {"metric": "acc"}]


class Scorer:
    """A model whose scores are given, or the error in place of them."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.tasks = (parse_task("t", "perplexity", b'{"text": "to be"}\n' * 4, file="t.jsonl"),)

    def score(self, weights: Any, **_: Any) -> list[Score]:
        assert dict(weights)
        if isinstance(self.found, BaseException):
            raise self.found
        return [
            Score("t", "bits_per_byte", self.found, None, 4, (1.0,) * 4, None),
            Score("t", "perplexity", 2.0, None, 4, None, None),
        ]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[InMemory, dict[str, Path]]]:
    root = tmp_path_factory.mktemp("models")
    base, expert = tiny.family(root, experts=1)
    folders = {"base": base, "a": expert}
    with InMemory(folders, budget_bytes=BUDGET) as opened:
        yield opened, folders


def told(
    memory: tuple[InMemory, dict[str, Path]],
    found: Any,
    objectives: Sequence[Objective] = (Objective(set="t"),),
    recipe: Mapping[str, Any] = RECIPE,
    **ask: Any,
) -> Told:
    opened, folders = memory
    models = {key: index_folder(folder) for key, folder in folders.items()}
    scorer = Scorer(found)
    ground = Ground(folders, {}, Heads(None, "cpu"), Path("none"), "cpu", BUDGET, 1)
    maker = InHand(ground, opened, cast(Candidates, scorer))
    bench = Bench(maker, Sets(scorer.tasks), models, {}, objectives, BUDGET, Nothing())
    return bench.told(Candidate("key", recipe, Ask({"x": 1.0}, **ask)))


def test_scores_are_turned_so_that_higher_is_better_and_examples_come_when_asked_for(memory: Any) -> None:
    assert told(memory, 3.0).values == (-3.0,) and told(memory, 3.0).examples is None
    assert told(memory, 3.0, examples=True).examples == pytest.approx([0.3678794] * 4)


@pytest.mark.parametrize(
    ("metric", "goal", "wanted"),
    [("acc", None, 0.9), ("acc", "min", 0.1), ("brier_score", None, 0.1), ("brier_score", "max", 0.9)],
)
def test_examples_point_the_way_of_the_goal(metric: str, goal: Any, wanted: float) -> None:
    """As the objective's own number does: an example counts most where the objective wants it."""
    task = HarnessTask("own", (), settings=LmEvalSettings(task="arc_easy"))
    scores = [Score("own", metric, 0.5, None, 3, (0.9, 0.5, 0.1))]
    objective = Objective(set="own", metric=metric, goal=goal)
    found = examples_of(objective, scores, [task])
    assert found is not None and min(found) >= 0
    assert scores[0].per_example is not None
    assert scores[0].per_example[found.index(max(found))] == wanted


def test_examples_of_perplexities_differ_however_large_these_are() -> None:
    """exp(-perplexity) is 0 for most models, by which no method could tell one from another."""
    task = HarnessTask("own", (), settings=LmEvalSettings(task="wikitext"))
    scores = [Score("own", "word_perplexity", 2e3, None, 2, (1000.0, 4000.0), (5.0, 5.0))]
    found = examples_of(Objective(set="own", metric="word_perplexity"), scores, [task])
    assert found == pytest.approx((1e-3, 2.5e-4))


def test_a_candidate_that_leaves_nothing_to_merge_is_recorded(memory: Any) -> None:
    found = told(memory, 3.0, recipe={**RECIPE, "sources": []})
    assert found.values is None and found.error == "RecipeInvalid: /sources must not be empty."


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_a_failure_that_can_be_stored(memory: Any, score: float) -> None:
    found = told(memory, score, examples=True)
    assert found.values is None and found.error == "a score is not a finite number"
    assert "examples" not in found.as_dict()


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("lm_head"), ZeroDivisionError("0")]
)
def test_a_scorer_that_breaks_on_a_candidate_is_recorded(memory: Any, error: Exception) -> None:
    found = told(memory, error)
    assert found.values is None and found.error == f"{type(error).__name__}: {error}"


def test_a_scorer_that_breaks_tells_nobody_a_password(memory: Any) -> None:
    found = told(memory, HarnessFailed("404 for url https://ann:pass@hub.example/x"))
    assert found.error == "HarnessFailed: 404 for url https://[redacted]@hub.example/x"


@pytest.mark.parametrize(
    "error",
    [
        OSError("gone"), MemoryError(), torch.OutOfMemoryError("GPU"), ScoringStopped("stop"),
        DiskFull("full"), HarnessMissing("install it"),
    ],
)  # fmt: skip
def test_what_is_no_fault_of_the_candidate_is_not_recorded(memory: Any, error: Exception) -> None:
    with pytest.raises(type(error)):
        told(memory, error)


def test_a_metric_that_no_candidate_will_have_ends_the_search(memory: Any) -> None:
    objectives = [Objective(set="t", metric="acc", goal="max")]
    with pytest.raises(MetricMissing, match="'t' does not measure 'acc', but bits_per_byte, perplexity"):
        told(memory, 3.0, objectives=objectives)


def test_a_metric_that_is_missing_is_told_with_some_of_those_that_are_there() -> None:
    task = HarnessTask("mmlu", (), settings=LmEvalSettings(task="mmlu"))
    scores = [Score("mmlu", f"law{at}:acc", 0.5, None, 4) for at in range(50)]
    with pytest.raises(MetricMissing, match="law19:acc and 30 more: name one"):
        score_of(Objective(set="mmlu", metric="acc"), scores, [task])


def test_a_metric_may_be_named_as_the_harness_writes_it() -> None:
    task = HarnessTask("arc", (), settings=LmEvalSettings(task="arc_easy"))
    strict = Score("arc", "exact_match,strict", 0.25, None, 4)
    scores = [Score("arc", "acc", 0.5, None, 4), strict]
    assert score_of(Objective(set="arc", metric="acc,none"), scores, [task]) is scores[0]
    assert score_of(Objective(set="arc", metric="exact_match,strict"), scores, [task]) is strict
    with pytest.raises(MetricMissing):
        score_of(Objective(set="arc", metric="exact_match,none"), scores, [task])


def test_of_a_task_of_one_s_own_the_first_metric_counts_and_the_goal_may_turn_it() -> None:
    config = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "metric_list": METRICS}
    task = HarnessTask("own", (), settings=LmEvalSettings(config=config))
    scores = [Score("own", "acc", 0.5, None, 4), Score("own", "brier_score", 0.25, None, 4)]
    assert value_of(Objective(set="own"), scores, [task]) == -0.25
    assert value_of(Objective(set="own", goal="max"), scores, [task]) == 0.25
    assert value_of(Objective(set="own", metric="acc"), scores, [task]) == 0.5
