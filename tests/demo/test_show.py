"""What the demo prints is what the job did."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo.families import EvaluationSet, Family
from demo.show import Lines, Phase, Story, amounts_of, follow, score_table, size, standing

PLAN = {"estimate": {"output_bytes": 2_000_000, "download_bytes": 6_000_000}, "counts": {"tensors": 38}}
FAMILY = Family(
    prefix="x",
    about="",
    folders={"base": Path("b"), "a": Path("a")},
    steps=(),
    sets=(
        EvaluationSet("t", "perplexity", Path("t")),
        EvaluationSet("u", "perplexity", Path("u")),
        EvaluationSet("q", "choice", Path("q"), counts=False),
    ),
    metric="bits_per_byte",
    higher_is_better=False,
)


def event(seq: int, type_: str, second: float, **data: Any) -> dict[str, Any]:
    return {"seq": seq, "type": f"merge.{type_}", "at": f"2026-01-01T00:00:{second:06.3f}Z", "data": data}


def job(phase: str | None, state: str = "running", **progress: Any) -> dict[str, Any]:
    return {"id": "job_1", "state": state, "phase": phase, "progress": progress, "plan": PLAN}


def evaluations(**means: tuple[float, float, float]) -> list[dict[str, Any]]:
    def scores(index: int, metric: str) -> list[dict[str, Any]]:
        other = {"metric": "perplexity", "value": 99.0}
        return [
            {"subject": name, **score}
            for name, values in means.items()
            for score in ({"metric": metric, "value": values[index]}, other)
        ]

    return [
        {"name": "check", "scores": []},
        {"name": "t", "scores": scores(0, "bits_per_byte")},
        {"name": "u", "scores": scores(1, "bits_per_byte")},
        {"name": "q", "scores": scores(2, "accuracy")},
    ]


def test_a_phase_ends_where_the_next_one_begins() -> None:
    story = Story()
    story.hear([event(1, "phase", 1.0, phase="downloading"), event(2, "phase", 3.5, phase="merging")])
    story.hear([event(3, "succeeded", 4.0)])
    assert [(each.name, each.seconds) for each in story.phases] == [("downloading", 2.5), ("merging", 0.5)]
    assert story.seq == 3


def test_progress_belongs_to_the_phase_it_was_reported_in_and_never_goes_back() -> None:
    story = Story()
    story.hear([event(1, "phase", 1.0, phase="merging")])
    story.see(
        job("merging", fraction=0.5, tensors_done=19, tensors_total=38, bytes_done=1e6, bytes_total=2e6)
    )
    assert story.phases[0].amounts == "19/38 tensors, 1.0 MB of 2.0 MB"
    story.see(job("merging", fraction=0.25))
    story.see(job("uploading", fraction=0.9))
    assert story.phases[0].fraction == 0.5


def test_a_phase_too_quick_to_be_seen_is_told_from_the_plan() -> None:
    story = Story()
    story.see(job("downloading"))
    story.hear([event(1, "phase", 1.0, phase="merging"), event(2, "phase", 1.1, phase="uploading")])
    assert story.phases[0] == Phase("merging", story.phases[0].began, 1.0, "38 tensors, 2.0 MB", 0.1)


def test_what_is_counted_while_scoring_is_not_shown_as_bytes() -> None:
    assert amounts_of({"rows_done": 5, "rows_total": 9}) == "5/9 texts"


def test_without_a_terminal_there_is_one_line_a_phase_and_each_only_once() -> None:
    out = io.StringIO()
    view, story = Lines(Console(file=out)), Story()
    story.hear([event(1, "phase", 1.0, phase="downloading")])
    view.draw(story)
    story.hear([event(2, "phase", 2.0, phase="merging"), event(3, "succeeded", 2.5)])
    view.draw(story)
    view.draw(story)
    assert out.getvalue().split() == ["downloading", "1.0", "s", "merging", "0.5", "s"]


@pytest.mark.parametrize("terminal", [True, False])
def test_following_ends_with_the_job_and_misses_no_event(terminal: bool) -> None:
    asked: list[str] = []
    jobs = iter([job("downloading"), job("merging"), job(None, "succeeded")])
    batches = iter(
        [
            [],
            [event(1, "phase", 1.0, phase="downloading")],
            [event(2, "phase", 2.0, phase="merging")],
            [event(3, "succeeded", 2.5)],
        ]
    )

    def get(path: str) -> Mapping[str, Any]:
        asked.append(path)
        return {"data": next(batches)} if "/events" in path else next(jobs)

    out = io.StringIO()
    done = follow("job_1", get, Console(file=out, force_terminal=terminal, width=120))
    assert done["state"] == "succeeded" and asked[-1].endswith("after=2&limit=1000")
    assert "merging" in out.getvalue() and "0.5 s" in out.getvalue()


def test_means_are_of_the_sets_that_count_and_the_result_must_beat_every_parent() -> None:
    won = standing(evaluations(result=(1.0, 2.0, 0.1), base=(2.0, 2.0, 0.9), a=(0.5, 3.0, 0.9)), FAMILY)
    assert won.means == {"result": 1.5, "base": 2.0, "a": 1.75}
    assert won.best_parent() == "a" and won.result_wins()
    lost = standing(evaluations(result=(1.0, 2.5, 0.1), base=(2.0, 2.0, 0.9), a=(0.5, 3.0, 0.9)), FAMILY)
    assert not lost.result_wins()


def test_the_table_has_the_result_first_and_every_number() -> None:
    scores = standing(evaluations(result=(1.0, 2.0, 0.1), base=(2.0, 2.0, 0.9), a=(0.5, 3.0, 0.8)), FAMILY)
    out = io.StringIO()
    Console(file=out, width=100).print(score_table(scores, FAMILY))
    text = out.getvalue()
    assert text.index("merged") < text.index("base") and "mean of 2" in text
    assert all(number in text for number in ("1.0000", "0.5000", "0.1000", "1.7500"))


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (5_200_000, "5.2 MB"), (2.5e9, "2.5 GB"), (3e12, "3000.0 GB")],
)
def test_sizes_are_said_in_the_unit_that_fits(count: float, said: str) -> None:
    assert size(count) == said
