"""Candidates that are held in memory and those that are written score as the result of a merge does."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.candidates import way_of
from merge.__main__ import main
from merge.local import index_models, model_folders
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from scoring.errors import ScoringStopped
from scoring.harness.task import HarnessTask
from scoring.runner import score_model
from scoring.score import Score
from scoring.settings import LmEvalSettings, ZeroShotSettings
from scoring.tasks import Labelled, PerplexityTask, Task, ZeroShotTask, parse_task
from search.drive import Candidate
from search.order import Objective
from search.trial import Ask
from tests import tiny
from worker import makers
from worker.candidates import Bench, Nothing
from worker.makers import Ground, Maker, Part, Sets, part_of
from worker.measures import Heads
from worker.scorer import Subject

BUDGET = 1 << 30
TASKS: tuple[Task, ...] = (PerplexityTask("texts", ("Some words to be scored.", "And a few more.")),)
FAMILY: dict[str, Any] = {
    "base": "base",
    "sources": [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}],
    "steps": [{"method": "task_arithmetic", "scale": 0.7}],
}
PROMPTS = [{"id": n, "model": f"expert{at}", "prompts": [n]} for at, n in enumerate("ab", 1)]
WRITTEN: Mapping[str, dict[str, Any]] = {
    "a chain of stages": {
        "stages": {"mean": {"sources": ["expert1", "expert2"], "steps": ["linear"]}},
        "sources": ["stage:mean"],
    },
    "a mixture": {
        "sources": PROMPTS,
        "result": {"form": "moe", "architecture": "mixtral", "gate": "cheap_embed"},
    },
    "an adapter": {"result": {"form": "adapter", "rank": 2}},
    "an adapter over a stage": {
        "stages": {
            "mean": {"sources": ["expert1", "stage:inner"], "steps": ["linear"]},
            "inner": {"base": "base", "sources": ["expert2"], "steps": ["task_arithmetic"]},
            "other": {"sources": ["expert1", "expert2"], "steps": ["linear"]},
        },
        "base": "stage:mean",
        "sources": [{"id": "a", "model": "expert1"}, {"id": "b", "model": "stage:other"}],
        "result": {"form": "adapter", "rank": 2},
    },
    "a bundle": {"result": {"form": "bundle", "kind": "tall"}},
    "a bundle with its base": {"result": {"form": "bundle", "kind": "emr", "base": "inside"}},
    "a twin": {"result": {"form": "bundle", "kind": "twin", "keep": 0.5}},
    "fewer layers": {
        "slices": [
            {"sources": [{"id": "a", "layers": [0, 1]}, {"id": "b", "layers": [0, 1]}], "base_layers": [0, 1]}
        ],
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    return root


def planned(root: Path, recipe: dict[str, Any]) -> tuple[Plan, dict[str, Path]]:
    whole = recipe_from({**FAMILY, **recipe})
    return make_plan(whole, index_models(whole, root), budget=BUDGET), model_folders(whole, root)


def ground(folders: Mapping[str, Path], scratch: Path, **more: Any) -> Ground:
    return Ground(folders, {}, Heads(None, "cpu"), scratch, "cpu", BUDGET, 1, **more)


def merged(root: Path, recipe: dict[str, Any], member: str | None, at: Path) -> list[Score]:
    """What a merge and, of what is no model by itself, another one give when they are done by hand."""
    at.mkdir()
    (root / "recipe.yaml").write_text(yaml.safe_dump({**FAMILY, **recipe}))
    assert main(["run", str(root / "recipe.yaml"), str(at / "made")]) == 0
    form = recipe.get("result", {}).get("form", "checkpoint")
    if form == "bundle":
        more = (
            []
            if recipe["result"]["kind"] == "twin" or "base" in recipe["result"]
            else ["--base", str(root / "base")]
        )
        assert main(["materialise", str(at / "made"), str(member), str(at / "member"), *more]) == 0
    if form == "adapter":
        base = root / "base"
        if "stages" in recipe:
            base, stages = at / "base", {name: recipe["stages"][name] for name in ("mean", "inner")}
            below = {"stages": stages, "sources": ["stage:mean"], "steps": ["passthrough"]}
            (root / "below.yaml").write_text(yaml.safe_dump(below))
            assert main(["run", str(root / "below.yaml"), str(base)]) == 0
        over = {
            "base": str(base),
            "sources": [{"adapter": str(at / "made")}],
            "steps": ["task_arithmetic"],
        }
        (at / "over.yaml").write_text(yaml.safe_dump(over))
        assert main(["run", str(at / "over.yaml"), str(at / "member")]) == 0
    scored = at / ("member" if (at / "member").is_dir() else "made")
    return score_model(scored, TASKS, per_example=True)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_cannot_be_held_is_written_and_scores_as_the_merge_does(
    name: str, root: Path, tmp_path: Path
) -> None:
    recipe, part = WRITTEN[name], Sets(TASKS).part(1.0, ["texts"])
    plan, folders = planned(root, recipe)
    assert way_of(plan, ()).made == "disk"
    members = (None,) if plan.bundle is None else plan.bundle.members
    with ground(folders, tmp_path / "scratch").maker(plan, TASKS, written=True) as maker:
        found = maker.scores(plan, dict.fromkeys(members, part))
    assert list(found) == list(members)
    for at, (member, scores) in enumerate(found.items()):
        assert scores == merged(root, recipe, member, tmp_path / str(at)), member
    assert not (tmp_path / "scratch").exists()


def both(count: int) -> tuple[Task, ...]:
    """So many texts, and so many to be told apart by a head of the base's."""
    asked = ZeroShotSettings(classes=("red", "green"), head="base")
    items = tuple(Labelled(f"{'red' if at % 2 else 'green'} thing {at}", at % 2) for at in range(count))
    texts = tuple(f"Text number {at}." for at in range(count))
    return PerplexityTask("texts", texts), ZeroShotTask("colours", items, asked)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_written_or_held_the_scores_are_the_same(root: Path, tmp_path: Path, share: float) -> None:
    plan, folders = planned(root, {})
    tasks, heads = both(8), Heads(Subject(folders["base"], {}), "cpu")
    wanted: dict[str | None, Part] = {None: Sets(tasks).part(share, ["texts", "colours"])}
    found = []
    for written in (False, True):
        at = replace(ground(folders, tmp_path / "scratch"), heads=heads)
        with at.maker(plan, tasks, written=written) as maker:
            found.append(maker.scores(plan, wanted))
    assert found[0] == found[1] and {score.n for score in found[0][None]} == {8 * share}


def test_a_part_of_a_set_of_lm_eval_is_its_first_rows_or_a_limit() -> None:
    own = HarnessTask("own", tuple({"q": at} for at in range(8)), settings=LmEvalSettings(config={"x": 1}))
    assert part_of(own, 0.5) == replace(own, rows=own.rows[:4])
    built_in = HarnessTask("arc", (), settings=LmEvalSettings(task="arc_easy"))
    assert part_of(built_in, 0.25) == replace(built_in, limit=0.25)
    limited = replace(built_in, limit=100)
    assert part_of(limited, 0.25) == replace(limited, limit=25)
    assert part_of(limited, 0.001) == replace(limited, limit=3)


@pytest.mark.parametrize(("share", "kept"), [(0.001, 3), (0.25, 3), (0.31, 4), (0.99, 10), (1.0, 10)])
def test_a_part_of_a_set_is_never_too_small_to_tell_candidates_apart(share: float, kept: int) -> None:
    whole = parse_task("t", "perplexity", b'{"text": "to be"}\n' * 10, file="t.jsonl")
    part = part_of(whole, share)
    assert isinstance(part, PerplexityTask) and len(part.texts) == kept


@pytest.fixture
def breaking(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Plan, Maker, list[str]]]:
    """A maker whose scorer looks at what is there, and breaks."""
    seen = list[str]()

    def measure(folder: Path, *_: Any, **__: Any) -> list[Score]:
        seen.extend(path.name for path in folder.iterdir())
        raise ScoringStopped("stop")

    monkeypatch.setattr(makers, "measure", measure)
    plan, folders = planned(root, {})
    (tmp_path / "scratch" / "made.partial").mkdir(parents=True)
    with ground(folders, tmp_path / "scratch").maker(plan, TASKS, written=True) as maker:
        assert not (tmp_path / "scratch").exists(), "what an earlier search left is gone"
        yield plan, maker, seen


def test_nothing_is_left_of_a_candidate_whose_scoring_ends_early(
    breaking: tuple[Plan, Maker, list[str]], tmp_path: Path
) -> None:
    plan, maker, seen = breaking
    with pytest.raises(ScoringStopped):
        maker.scores(plan, {None: Sets(TASKS).part(1.0, ["texts"])})
    assert "config.json" in seen and not (tmp_path / "scratch").exists()


class Members:
    """Gives every member a score by its name, and remembers what was wanted."""

    def __init__(self) -> None:
        self.wanted: dict[str | None, tuple[str, ...]] = {}

    def scores(self, plan: Plan, wanted: Mapping[str | None, Part]) -> dict[str | None, list[Score]]:
        assert plan.bundle is not None
        self.wanted = {member: part.names for member, part in wanted.items()}
        value = {"a": 1.0, "b": 3.0}
        return {
            member: [
                Score(name, "bits_per_byte", value[str(member)], None, 2, (value[str(member)],) * 2)
                for name in part.names
            ]
            for member, part in wanted.items()
        }


def told(
    root: Path, objectives: list[Objective], sources: list[dict[str, Any]] | None = None
) -> tuple[Any, Members]:
    recipe = {**FAMILY, "sources": sources or FAMILY["sources"], "result": {"form": "bundle", "kind": "tall"}}
    models, maker = index_models(recipe_from(FAMILY), root), Members()
    tasks = (TASKS[0], PerplexityTask("others", ("More texts.",)))
    bench = Bench(maker, Sets(tasks), models, {}, objectives, BUDGET, Nothing())
    return bench.told(Candidate("key", recipe, Ask({}, examples=True))), maker


def test_an_objective_looks_at_one_member_or_at_the_mean_of_all(root: Path) -> None:
    found, maker = told(root, [Objective(set="texts"), Objective(set="others", member="b")])
    assert found.values == (-2.0, -3.0)
    assert found.examples == pytest.approx([(2.718281828**-1 + 2.718281828**-3) / 2] * 2)
    assert maker.wanted == {"a": ("texts",), "b": ("texts", "others")}


def test_a_candidate_without_the_member_that_is_scored_has_failed(root: Path) -> None:
    found, _ = told(root, [Objective(set="texts", member="b")], [{"id": "a", "model": "expert1"}])
    assert found.values is None and "no member 'b'" in str(found.error)
