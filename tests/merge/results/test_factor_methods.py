"""Methods that merge the factors of adapters, through the engine: into checkpoints and into adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.errors import NotFinite, PlanRefused
from merge.planning.estimate import ASSUMED_THREADS
from merge.planning.sizing import sizes
from tests import tiny
from tests.merge.results.adapters import BUDGET, changes, made, planned, relative, weights

Q, V, DOWN = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
)
SHAPES = {Q: (16, 16), V: (8, 16), DOWN: (16, 32)}
METHODS = ("cat_svd", "core_space", "lora_lego", "rmm")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.llama(folder / "base", dtype=torch.float32)
    tiny.llama(folder / "other", expert=1)
    tiny.lora(folder / "one", SHAPES, seed=1, r=4, alpha=8)
    tiny.lora(folder / "two", {Q: SHAPES[Q], DOWN: SHAPES[DOWN]}, seed=2, r=2, alpha=3, use_rslora=True)
    tiny.lora(folder / "three", SHAPES, seed=3, r=4, alpha=4, rank_pattern={V: 2}, alpha_pattern={DOWN: 16})
    return folder


def merging(*names: str, step: Any, weights: Any = (1.0, -0.5, 2.0), **more: Any) -> dict[str, Any]:
    sources = [
        {"id": name, "adapter": name, "weight": weight} for name, weight in zip(names, weights, strict=False)
    ]
    return {"base": "base", "sources": sources, "steps": [step], **more}


def merged_change(root: Path, folder: Path, name: str) -> Tensor:
    return weights(folder)[f"{name}.weight"] - weights(root / "base")[f"{name}.weight"]


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_and_an_adapter_of_full_rank_are_the_same_merge(
    root: Path, tmp_path: Path, method: str
) -> None:
    document = merging("one", "two", "three", step=method)
    made(root, document, str(tmp_path / "dense"))
    asked = document | {"result": {"form": "adapter", "error": 0.0}}
    told = made(root, asked, str(tmp_path / "adapter")).manifest["adapter"]
    found = changes(tmp_path / "adapter")
    assert found.keys() == {f"{name}.weight" for name in SHAPES}
    for name in SHAPES:
        assert relative(merged_change(root, tmp_path / "dense", name), found[f"{name}.weight"]) < 1e-5
    assert told["error"] < 1e-6 and told["left_out"] == {}


def test_the_sum_is_that_of_the_products(root: Path, tmp_path: Path) -> None:
    made(root, merging("one", "two", "three", step="cat_svd"), str(tmp_path / "out"))
    for name, shape in SHAPES.items():
        parts = [changes(root / each).get(f"{name}.weight") for each in ("one", "two", "three")]
        factors = (1.0, -0.5, 2.0)
        wanted = sum(
            (part * factor for part, factor in zip(parts, factors, strict=True) if part is not None),
            torch.zeros(shape).double(),
        )
        assert relative(wanted, merged_change(root, tmp_path / "out", name)) < 1e-5


def test_what_no_adapter_touches_is_the_bases_to_the_bit(root: Path, tmp_path: Path) -> None:
    made(root, merging("one", "two", step="lora_lego"), str(tmp_path / "out"))
    base, found = weights(root / "base"), weights(tmp_path / "out")
    touched = {f"{name}.weight" for name in SHAPES}
    assert {name for name in base if not torch.equal(base[name], found[name])} == touched


@pytest.mark.parametrize("method", METHODS)
def test_blocks_and_threads_do_not_change_a_byte(
    root: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = merging("one", "two", "three", step=method)
    first = made(root, document, str(tmp_path / "first")).files
    monkeypatch.setattr("merge.planning.sizing.MOST_BLOCK_ELEMENTS", 1 << 16)
    second = made(root, document, str(tmp_path / "second"), threads=3).files
    weights_of = [
        {f.file: f.sha256 for f in files if f.file.endswith("tensors")} for files in (first, second)
    ]
    assert weights_of[0] == weights_of[1]


def test_a_product_does_not_depend_on_the_block_it_is_asked_in() -> None:
    from merge.checkpoint.reader import TensorReader
    from merge.contract.method import get
    from merge.planning.output_tensor import OutputTensor
    from merge.running.chain import Bound, Chain
    from merge.running.factored import Factored
    from tests.merge.methods.adapters.made import drawn, group_of

    (part,) = drawn(1, (300, 700), 5)
    method = get("cat_svd")
    chain = Chain(group_of([part]).site, (Bound(method, (method.settings({}, 1),), "cat_svd"),), (1.0,), 0)
    output = OutputTensor("w", "F32", (300, 700), "linear", 0, "method", ({},), (1.0,), ())
    readers: dict[str, TensorReader] = {}
    factored = Factored(readers)
    factored._make = lambda *_: part  # type: ignore[method-assign]
    whole = factored.change(chain, output, 0, 210_000, torch.float32)
    for rows in (1, 7, 93, 299):
        cut = [
            factored.change(chain, output, row * 700, min(rows, 300 - row) * 700, torch.float32)
            for row in range(0, 300, rows)
        ]
        assert torch.equal(torch.cat(cut), whole)


def test_rank_and_error_are_told_for_each_module(root: Path, tmp_path: Path) -> None:
    step = {"method": "cat_svd", "rank": 3}
    document = merging("one", "three", step=step, result={"form": "adapter", "error": 0.0})
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]["modules"][Q]
    whole = changes(root / "one")[f"{Q}.weight"] - 0.5 * changes(root / "three")[f"{Q}.weight"]
    values = torch.linalg.svdvals(whole)
    assert told["rank"] == 3
    assert told["error"] == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-3)


def test_settings_of_modules_and_sources_hold(root: Path, tmp_path: Path) -> None:
    document = merging("one", "three", step={"method": "rmm", "components": 1}, weights=(1.0, 1.0))
    document["sources"][1]["settings"] = {"restore": True}
    document["overrides"] = [{"match": "*.v_proj.*", "policy": "source:one"}]
    made(root, document, str(tmp_path / "out"))
    for name, wanted in ((Q, "three"), (DOWN, "three"), (V, "one")):
        kept = changes(root / wanted)[f"{name}.weight"]
        assert relative(kept, merged_change(root, tmp_path / "out", name)) < 1e-5


def test_an_adjusting_step_works_on_the_product(root: Path, tmp_path: Path) -> None:
    document = merging("one", "three", step="cat_svd", weights=(1.0, 1.0))
    document["steps"] = ["cat_svd", {"method": "norm_repair", "to": "base"}]
    made(root, document, str(tmp_path / "out"))
    base, found = weights(root / "base"), weights(tmp_path / "out")
    for name in SHAPES:
        assert float(found[f"{name}.weight"].norm()) == pytest.approx(float(base[f"{name}.weight"].norm()))


def test_embeddings_and_transposed_weights_have_factors_too(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base", dtype=torch.float32)
    embed = "model.embed_tokens"
    for seed, name in enumerate(("one", "two")):
        tiny.lora(tmp_path / name, {embed: (tiny.VOCAB, 16), Q: (16, 16)}, seed=seed, r=3)
    document = merging("one", "two", step="cat_svd", weights=(1.0, 1.0))
    made(tmp_path, document, str(tmp_path / "out"))
    name = f"{embed}.weight"
    wanted = changes(tmp_path / "one")[name] + changes(tmp_path / "two")[name]
    assert relative(wanted, merged_change(tmp_path, tmp_path / "out", embed)) < 1e-5


def refused(root: Path, document: dict[str, Any]) -> list[tuple[str, str | None, str]]:
    with pytest.raises(PlanRefused) as caught:
        planned(root, document)
    return [(each.code, each.pointer, each.message) for each in caught.value.findings]


def test_a_source_that_is_no_adapter_over_the_base_is_refused(root: Path) -> None:
    document = merging("one", step="lora_lego")
    document["sources"] += [
        {"id": "whole", "model": "other"},
        {"id": "x", "model": "other", "adapter": "one"},
    ]
    found = refused(root, document)
    assert [each[:2] for each in found] == [
        ("factors_missing", "/sources/1"),
        ("factors_missing", "/sources/2"),
    ]
    assert "whole is another model" in found[0][2] and "x is an adapter over another model" in found[1][2]


def test_a_step_on_weights_before_it_is_refused(root: Path) -> None:
    document = merging("one", step="cat_svd") | {"steps": [{"method": "dare", "density": 0.5}, "cat_svd"]}
    ((code, pointer, message),) = refused(root, document)
    assert (code, pointer) == ("factors_prepared", "/steps/0/method")
    assert "dare" in message and "task_arithmetic" in message


def test_a_tensor_that_an_adapter_holds_whole_needs_a_policy(root: Path, tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base", dtype=torch.float32)
    head = torch.randn(tiny.VOCAB, 16)
    tiny.lora(tmp_path / "saving", {Q: SHAPES[Q]}, seed=5, saved={"lm_head.weight": head})
    tiny.lora(tmp_path / "one", SHAPES, seed=1)
    document = merging("saving", "one", step="lora_lego", weights=(1.0, 1.0))
    ((code, pointer, message),) = refused(tmp_path, document)
    assert (code, pointer) == ("factors_missing", "/overrides")
    assert "lm_head.weight" in message and "source:saving" in message
    document["overrides"] = [{"match": "lm_head.weight", "policy": "source:saving"}]
    made(tmp_path, document, str(tmp_path / "out"))
    assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], head.double())


def test_the_plan_counts_the_memory_of_factors(root: Path) -> None:
    from merge.planning.forms.factored import factor_bytes

    plan = planned(root, merging("one", "two", "three", step="cat_svd"))
    held = factor_bytes(plan.recipe, plan.models, plan.outputs)
    assert held == 8 * (10 * 10 * 48 + 8 * 100)
    assert plan.demand.each > held
    fitted = sizes(plan.demand, ASSUMED_THREADS, BUDGET)
    assert fitted is not None
    assert plan.estimate.peak_memory_bytes == fitted.peak_bytes
    other = planned(root, merging("one", "two", step="task_arithmetic"))
    assert factor_bytes(other.recipe, other.models, other.outputs) == 0


@pytest.mark.parametrize("form", [{"form": "checkpoint"}, {"form": "adapter", "rank": 4}])
@pytest.mark.parametrize("method", METHODS)
def test_factors_that_are_no_numbers_are_told_by_tensor_and_adapter(
    root: Path, tmp_path: Path, method: str, form: dict[str, Any]
) -> None:
    tiny.llama(tmp_path / "base", dtype=torch.float32)
    tiny.lora(tmp_path / "one", SHAPES, seed=1)
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    tensors[f"base_model.model.{V}.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "one" / "adapter_model.safetensors")
    with pytest.raises(NotFinite, match=r"v_proj\.weight in one"):
        made(tmp_path, merging("one", step=method, result=form), str(tmp_path / "out"))


def test_copies_merge_to_the_adapter_itself(root: Path, tmp_path: Path) -> None:
    document = merging("one", "one", step="lora_lego", weights=(1.0, 1.0))
    document["sources"][1]["id"] = "again"
    made(root, document, str(tmp_path / "out"))
    for name in SHAPES:
        wanted = changes(root / "one")[f"{name}.weight"]
        assert relative(wanted, merged_change(root, tmp_path / "out", name)) < 1e-5
