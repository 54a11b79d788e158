"""A cut of bench E on every machine: the shipped experts as adapters, merged by their factors and given back,
and a search over them.

The bars are far wider than what moves between machines; a method that is broken falls through them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo.families import HERE
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from quality.adapters import applied
from quality.bench import Family, Scored, Split
from quality.candidates import Candidate, candidate, candidates, told
from quality.pouring import Weights, tensors_of
from quality.runner import Runner
from quality.shipped import Items, ShippedBench
from quality.tried import Tried
from quality.tuner import Tuner
from quality.tunings import tunings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
BASE = HERE / "family/base"
TRIED: Mapping[str, tuple[Candidate, float | None]] = {
    "linear": (candidate("linear"), None),
    "cat_svd": (candidate("cat_svd"), 0.6),
    "sum": (candidate("task_arithmetic"), 0.6),
    "core_space": (candidate("core_space"), 1.0),
    "lora_lego": (candidate("lora_lego"), 1.0),
    "rmm": (candidate("rmm"), 1.0),
}


class AdaptersBench(ShippedBench):
    """The shipped experts, each as an adapter of rank 16 over the base, as the engine extracts it."""

    name = "adapters"
    adapters = True

    def family(self, seed: int) -> Family:
        whole = super().family(seed)
        return Family(
            whole.base, {task: self.folder / task for task in self.tasks}, whole.texts, adapters=True
        )

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        if isinstance(model, Path) and model.parent == self.folder:
            model = applied(self.home / "base", model)
        return super().score(model, split, seed, tasks)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> AdaptersBench:
    found = AdaptersBench(tmp_path_factory.mktemp("adapters"), Items(validation=6, test=12))
    for task in found.tasks:
        expert = HERE / "family" / task
        document = {
            "base": str(BASE),
            "sources": [{"id": task, "model": str(expert)}],
            "steps": ["passthrough"],
            "result": {"form": "adapter", "rank": 16},
        }
        models = {"base": index_folder(BASE), task: index_folder(expert)}
        plan = make_plan(recipe_from(document), models, budget=1 << 30)
        folders = {"base": BASE, task: expert}
        run(plan, folders, found.folder / task, budget_bytes=1 << 30, threads=1, survey="none")
    return found


@pytest.fixture(scope="module")
def runner(bench: AdaptersBench) -> Runner:
    return Runner(bench, (0,), lambda _: None)


@pytest.fixture(scope="module")
def tried(runner: Runner) -> Mapping[str, Tried]:
    return {name: runner.tried(*each) for name, each in TRIED.items()}


def test_adapters_are_applied_by_peft_as_the_engine_reads_them(bench: AdaptersBench) -> None:
    adapter = bench.folder / "python"
    weights, base = dict(tensors_of(applied(BASE, adapter))), load_file(BASE / "model.safetensors")
    factors, name = load_file(adapter / "adapter_model.safetensors"), "model.layers.0.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    wanted = base[f"{name}.weight"].float() + b @ a
    assert torch.allclose(weights[f"{name}.weight"].float(), wanted, atol=4e-3)


@pytest.mark.parametrize("name", TRIED)
def test_merged_adapters_keep_a_good_part_of_what_each_gained(tried: Mapping[str, Tried], name: str) -> None:
    assert tried[name].why_not is None
    assert 25 < tried[name].headlines[0] < 100


def test_the_sum_of_products_is_the_sum_of_the_models(tried: Mapping[str, Tried]) -> None:
    assert tried["cat_svd"].headlines[0] == pytest.approx(tried["sum"].headlines[0], abs=0.5)


def test_what_is_given_back_is_the_adapter_itself_where_nothing_is_cut(runner: Runner) -> None:
    cut, whole = (runner.given_back(components) for components in (0, 1))
    assert whole.label == "rmm (given back by 1 direction)"
    assert whole.headlines[0] == pytest.approx(100, abs=1)
    assert cut.headlines[0] < 90


def test_a_search_tunes_what_is_kept_of_every_adapter(runner: Runner, bench: AdaptersBench) -> None:
    (tuning,) = tunings(bench)
    found = Tuner(runner, bench).tuned(replace(tuning, evaluations=8))
    assert tuning.method == "evo_merging" and tuning.chain == "`cat_svd`"
    assert found.why_not is None and found.found[0]["failed"] == 0
    tried = [each["values"][0] for each in found.found[0]["trials"]]
    assert found.found[0]["values"][0] == max(*tried, found.found[0]["untuned"]) and len(set(tried)) > 4


def test_adapters_are_merged_by_their_factors_and_in_variants() -> None:
    found = [each for each in candidates(5, adapters=True) if isinstance(each, Candidate)]
    names = {each.name for each in found if not each.variant}
    assert {"cat_svd", "core_space", "lora_lego", "rmm", "ties", "dare", "linear"} <= names
    variants = {each.variant for each in found if each.name == "core_space"}
    assert variants == {"", "rule sum", "rule iso", "rule tsv_iso", "rule ties", "rule ties, no balance"}
    saying: Callable[[Mapping[str, object]], str] = partial(told)
    assert saying({"balance": False, "rank": 3}) == "no balance, rank 3"
