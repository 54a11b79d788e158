"""Candidates that are never written to disk score as folders of them would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.checkpoint.index import index_folder
from merge.in_memory import InMemory
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from scoring.candidates import Candidates
from scoring.errors import CandidateUnfit, ModelUnusable, ScoringStopped
from scoring.runner import score_model
from scoring.tasks import ChoiceTask, PerplexityTask, Question
from tests import tiny

TASKS = (
    PerplexityTask("texts", ("Some words to be scored.", "And a few more of them.")),
    ChoiceTask("questions", (Question("2+2=", ("4", "five"), 0),)),
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.moe])
def test_weights_in_memory_score_as_their_folder_does(make: Callable[..., Path], tmp_path: Path) -> None:
    first, other = make(tmp_path / "first"), make(tmp_path / "other", expert=1)
    held = Candidates.open(first, TASKS, per_example=True)
    assert held.score() == score_model(first, TASKS, per_example=True)
    assert held.score(iter(weights(other).items())) == score_model(other, TASKS, per_example=True)
    assert held.score(weights(first).items()) == score_model(first, TASKS, per_example=True)


def test_tied_embeddings_are_replaced_once_for_both_ends(tmp_path: Path) -> None:
    first, other = tiny.llama(tmp_path / "a", tied=True), tiny.llama(tmp_path / "b", tied=True, expert=1)
    held = Candidates.open(first, TASKS)
    assert held.score(weights(other).items()) == score_model(other, TASKS)


def test_a_merge_that_was_never_written_scores_as_the_written_one(tmp_path: Path) -> None:
    folders = {"base": tiny.llama(tmp_path / "base")}
    folders |= {key: tiny.llama(tmp_path / key, expert=n) for n, key in enumerate("ab", 1)}
    recipe = recipe_from(
        {
            "base": "base",
            "sources": [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}],
            "steps": [{"method": "ties", "density": 0.5}],
        }
    )
    models = {key: index_folder(path, key) for key, path in folders.items()}
    plan = make_plan(recipe, models, budget=1 << 30)
    run(plan, folders, tmp_path / "out", budget_bytes=1 << 30, threads=1)
    held = Candidates.open(folders["base"], TASKS)
    with InMemory(folders, budget_bytes=1 << 30) as merging:
        assert held.score(merging.tensors(plan)) == score_model(tmp_path / "out", TASKS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w | {"stray.weight": torch.zeros(2)}, "stray.weight has no place"),
        (lambda w: w | {"model.norm.weight": torch.zeros(3)}, r"shape \[3\]"),
        (lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"}, "lacks model.norm.weight"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    model: Path, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    held = Candidates.open(model, TASKS)
    with pytest.raises(CandidateUnfit, match=said):
        held.score(change(weights(model)).items())


def test_a_rearranged_model_names_what_is_missing(tmp_path: Path) -> None:
    folder = tiny.moe(tmp_path / "m")
    held = Candidates.open(folder, TASKS)
    lacking = {name: each for name, each in weights(folder).items() if name != "model.norm.weight"}
    with pytest.raises(ModelUnusable, match=r"model\.norm\.weight"):
        held.score(lacking.items())


def test_a_stop_is_heard(model: Path) -> None:
    held = Candidates.open(model, TASKS)
    with pytest.raises(ScoringStopped):
        held.score(should_stop=lambda: True)
