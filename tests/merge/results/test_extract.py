"""LoRA extraction: a merged or fine-tuned model minus its base."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from math import hypot
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.errors import FindingsError, NothingChanged, PlanRefused, RecipeInvalid, Stopped
from merge.journal import partial_folder
from merge.recipe.recipe import recipe_from
from tests import tiny
from tests.merge.results.adapters import BUDGET, changes, made, planned, relative, weights

LORA = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("base", "a", "b")):
        tiny.llama(folder / name, expert=number, layers=2, hidden=16)
        tiny.gpt2(folder / f"gpt2-{name}", expert=number)
    return folder


def extract(**result: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "sources": [{"id": "a", "model": "a"}],
        "steps": ["passthrough"],
        "result": {"form": "adapter", **result},
    }


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        with torch.no_grad():
            found: torch.Tensor = model(torch.arange(24)[None]).logits
    return found


def test_a_rank_is_not_taken_for_a_module_whose_name_ends_alike(tmp_path: Path) -> None:
    """PEFT takes the first pattern that a name ends with."""
    from peft.utils.other import get_pattern_key

    ranks = {"layers.0.q_proj": 1, "visual.layers.0.q_proj": 2, "visual.layers.1.q_proj": 2}
    base = {f"{path}.weight": torch.zeros(16, 16) for path in ranks}
    changed = {
        f"{path}.weight": tiny.noise(path, (16, rank), 0) @ tiny.noise(path, (rank, 16), 1)
        for path, rank in ranks.items()
    }
    tiny.write_tensors(tmp_path / "base", base)
    tiny.write_tensors(tmp_path / "a", changed)
    made(tmp_path, extract(error=1e-4))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 2
    for path, rank in ranks.items():
        for pattern in (config["rank_pattern"], config["alpha_pattern"]):
            assert pattern.get(get_pattern_key(pattern, path), 2) == rank


def test_full_rank_reloads_in_peft_as_the_dense_model(root: Path, tmp_path: Path) -> None:
    document = extract(rank=64, classes={"norm": "save", "embed": "lora"})
    report = made(root, document, str(tmp_path / "out"))
    assert torch.allclose(logits(root / "base", tmp_path / "out"), logits(root / "a"), atol=2e-5)
    assert report.manifest["adapter"]["total_error"] < 1e-6


def test_conv1d_weights_are_turned(root: Path, tmp_path: Path) -> None:
    document = extract(rank=64, classes={"norm": "save", "bias": "save"}, include=["*.h.*", "*ln_f*"])
    document |= {"base": "gpt2-base", "sources": [{"id": "a", "model": "gpt2-a"}]}
    made(root, document, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert config["bias"] == "lora_only"
    ours, dense, base = (weights(root / f"gpt2-{name}") for name in ("a", "a", "base"))
    whole = changes(tmp_path / "out")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert relative(dense[name] - base[name], whole[name]) < 1e-6
    for outer in ("transformer.wte.weight", "transformer.wpe.weight"):
        ours[outer] = base[outer]
    tiny.gpt2(tmp_path / "expected", expert=1)
    tiny.write_tensors(
        tmp_path / "expected", {name: tensor.float().contiguous() for name, tensor in ours.items()}
    )
    assert torch.allclose(
        logits(root / "gpt2-base", tmp_path / "out"), logits(tmp_path / "expected"), atol=2e-5
    )


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("saved", [[], ["*h.0.attn.c_attn.bias", "*wpe.weight"]])
def test_an_adapter_has_the_names_that_peft_looks_for(root: Path, tmp_path: Path, saved: list[str]) -> None:
    """GPT-2's own files leave out what Transformers puts before the names."""
    for name in ("base", "a"):
        shutil.copytree(root / f"gpt2-{name}", tmp_path / name)
        renamed(tmp_path / name, lambda tensor: tensor.removeprefix("transformer."))
    made(tmp_path, extract(share=1.0, save=saved, exclude=["*h.1.attn.c_proj*"]))
    out = tmp_path / "out"
    names = load_file(out / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.transformer.") for name in names)
    assert ("base_model.model.transformer.wpe.weight" in names) == bool(saved)
    base, dense = (load_file(tmp_path / each / "model.safetensors") for each in ("base", "a"))
    factored = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
    for name in base:
        is_saved = saved and name in ("h.0.attn.c_attn.bias", "wpe.weight")
        if not (name.endswith(factored) or is_saved) or name == "h.1.attn.c_proj.weight":
            dense[name] = base[name]
    save_file(dense, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(tmp_path / "base", out), logits(tmp_path / "a"), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(tmp_path / "base"), logits(tmp_path / "a"), atol=1e-3)


def test_error_of_every_module_and_in_total_is_told_truly(root: Path, tmp_path: Path) -> None:
    told = made(root, extract(rank=4), str(tmp_path / "out")).manifest["adapter"]
    base, tuned, found = weights(root / "base"), weights(root / "a"), changes(tmp_path / "out")
    lost, norms, left_out = [], [], []
    for name, tensor in tuned.items():
        change = tensor - base[name]
        if name not in found:
            left_out.append(float(change.norm()))
            continue
        module = told["modules"][name.removesuffix(".weight")]
        values = torch.linalg.svdvals(change)
        assert module["rank"] == 4
        assert module["error"] == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-3)
        assert module["error"] == pytest.approx(relative(change, found[name]), rel=1e-3)
        lost.append(float((change - found[name]).norm()))
        norms.append(float(change.norm()))
    assert told["error"] == pytest.approx(hypot(*lost) / hypot(*norms), rel=1e-3)
    assert told["total_error"] == pytest.approx(hypot(*lost, *left_out) / hypot(*norms, *left_out), rel=1e-3)
    assert told["left_out"].keys() == {"embed", "norm"}


def test_error_asked_for_is_kept_by_every_module_with_ranks_of_its_own(root: Path, tmp_path: Path) -> None:
    told = made(root, extract(error=0.4), str(tmp_path / "out")).manifest["adapter"]
    base, tuned, found = weights(root / "base"), weights(root / "a"), changes(tmp_path / "out")
    for name, change in found.items():
        assert relative(tuned[name] - base[name], change) <= 0.4
    assert len({module["rank"] for module in told["modules"].values()}) > 1
    index = index_adapter_folder(tmp_path / "out")
    assert attach(index_folder(root / "base"), index).adapter is not None


def test_max_rank_caps_the_rank_that_an_error_asks_for(root: Path, tmp_path: Path) -> None:
    told = made(root, extract(error=0.01, max_rank=3), str(tmp_path / "out")).manifest["adapter"]
    assert {module["rank"] for module in told["modules"].values()} == {3}
    assert told["error"] > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_the_factors_is_counted_as_loss(root: Path, tmp_path: Path, dtype: str) -> None:
    document = extract(rank=64) | {"dtype": {"output": dtype}}
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    base, tuned, found = weights(root / "base"), weights(root / "a"), changes(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    change = tuned[f"{name}.weight"] - base[f"{name}.weight"]
    assert told["modules"][name]["error"] == pytest.approx(
        relative(change, found[f"{name}.weight"]), rel=0.05
    )
    assert told["modules"][name]["error"] > 1e-4


@pytest.mark.parametrize(
    "steps",
    [
        [{"method": "ties", "density": 0.4}],
        [{"method": "ties", "density": 0.4, "scope": "global"}],
        [{"method": "della", "density": 0.5}, "task_arithmetic"],
        ["arcee_fusion"],
    ],
)
def test_any_merge_can_be_extracted(root: Path, tmp_path: Path, steps: list[Any]) -> None:
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b", "weight": 0.5}]
    merge = {"base": "base", "sources": sources[: 1 if steps == ["arcee_fusion"] else 2], "steps": steps}
    made(root, merge | {"dtype": {"output": "float32"}}, str(tmp_path / "dense"))
    made(
        root,
        merge | {"result": {"form": "adapter", "rank": 64, "exclude": ["class:head"]}},
        str(tmp_path / "out"),
    )
    base, dense = weights(root / "base"), weights(tmp_path / "dense")
    for name, change in changes(tmp_path / "out").items():
        assert relative(dense[name] - base[name], change) < 1e-5


def test_patterns_choose_and_the_rest_is_left_as_the_base_has_it(root: Path, tmp_path: Path) -> None:
    document = extract(rank=2, include=["*.q_proj.*", "*.v_proj.*"], exclude=["layer:1"])
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    assert set(told["modules"]) == {f"model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj")}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(told["modules"])
    assert told["left_out"]["linear"]["tensors"] == 12


def test_single_modules_can_be_saved_whole_by_name(root: Path, tmp_path: Path) -> None:
    asked = ["*.1.mlp.down_proj.*", "model.embed_tokens.*"]
    document = extract(rank=64, save=asked, classes={"norm": "save", "head": "save"})
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {"model.layers.1.mlp.down_proj", "model.embed_tokens"} <= set(config["modules_to_save"])
    assert "model.layers.0.mlp.down_proj" in told["modules"]
    assert torch.allclose(logits(root / "base", tmp_path / "out"), logits(root / "a"), atol=2e-5)


def test_equal_models_give_no_adapter(root: Path, tmp_path: Path) -> None:
    document = extract(rank=2) | {"sources": [{"id": "a", "model": "base"}]}
    with pytest.raises(NothingChanged, match="No module"):
        made(root, document, str(tmp_path / "out"))


def test_same_bytes_for_threads_budgets_and_after_a_stop(root: Path, tmp_path: Path) -> None:
    document = extract(rank=3, classes={"norm": "save"})
    made(root, document, str(tmp_path / "one"))
    made(root, document, str(tmp_path / "two"), threads=2, budget_bytes=1 << 30)
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        made(root, document, str(tmp_path / "three"), should_stop=lambda: next(asked) > 25)
    parts = list((partial_folder(tmp_path / "three") / "parts").iterdir())
    assert 1 <= len(parts) < 15
    made(root, document, str(tmp_path / "three"))
    digests = {
        name: {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / name).iterdir()
        }
        for name in ("one", "two", "three")
    }
    assert digests["one"] == digests["two"] == digests["three"]
    assert "adapter_model.safetensors" in digests["one"]


def test_tied_embedding_is_left_out_with_a_warning(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "a")):
        tiny.llama(tmp_path / name, expert=number, tied=True)
    plan = planned(tmp_path, extract(rank=2, classes={"embed": "lora"}))
    assert [(f.code, f.tensor) for f in plan.findings] == [("adapter_left_out", "model.embed_tokens.weight")]


def test_other_vocabulary_does_not_stop_an_adapter_that_leaves_it(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base", tokenizer=False)
    tiny.llama(tmp_path / "a", expert=1, vocab=264, tokenizer=False)
    told = made(tmp_path, extract(rank=2, exclude=["class:head"])).manifest["adapter"]
    assert told["left_out"].keys() == {"norm"}
    with pytest.raises(PlanRefused, match=r"lm_head\.weight is \[264, 16\]"):
        planned(tmp_path, extract(rank=2))


def test_a_flood_of_tensors_that_an_adapter_leaves_does_not_stop_it(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base")
    tiny.llama(tmp_path / "a", expert=1, layers=6)
    told = [f for f in planned(tmp_path, extract(rank=2)).findings if f.code == "extra_tensor"]
    assert {each.severity for each in told} == {"warning"}
    assert told[-1].message == "... and 16 more tensors with extra_tensor."


def test_too_small_a_budget_is_a_finding(root: Path) -> None:
    with pytest.raises(PlanRefused, match="The memory budget is 100000 bytes") as refused:
        planned(root, extract(rank=2), budget=100_000)
    assert refused.value.findings[0].code == "budget_too_small"


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base": None}, "base_missing"),
    "slices": ({"slices": [{"sources": [{"id": "a", "layers": [0, 1]}]}]}, "adapter_with_slices"),
    "vocabulary": ({"tokenizer": {"source": "union"}}, "adapter_with_tokenizer"),
    "nothing chosen": ({"result": {"form": "adapter", "rank": 1, "include": ["nowhere"]}}, "adapter_empty"),
    "two aims": ({"result": {"form": "adapter", "rank": 1, "error": 0.1}}, "field_invalid"),
    "no aim": ({"result": {"form": "adapter"}}, "field_invalid"),
    "no form": ({"result": {"rank": 3}}, "field_missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_read(root: Path, case: str) -> None:
    change, code = REFUSED[case]
    with pytest.raises(FindingsError) as refused:
        planned(root, extract(rank=2) | change)
    assert code in {finding.code for finding in refused.value.findings}


def test_unknown_form_is_named() -> None:
    with pytest.raises(RecipeInvalid, match="must be one of checkpoint, adapter, moe"):
        recipe_from(extract(rank=2) | {"result": {"form": "adaptor"}})


def test_estimate_covers_the_largest_adapter_that_can_come_out(root: Path, tmp_path: Path) -> None:
    plan = planned(root, extract(error=0.0, max_rank=16))
    made(root, extract(error=0.0, max_rank=16), str(tmp_path / "out"))
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < plan.estimate.output_bytes * 1.3
    assert 0 < plan.estimate.peak_memory_bytes <= BUDGET


def test_a_change_of_saved_tensors_alone_has_a_factor_of_zeros_beside_it(tmp_path: Path) -> None:
    """PEFT loads no adapter without any."""
    for number, name in enumerate(("base", "a")):
        tensors = {
            "layers.0.up.weight": torch.ones(4, 6),
            "layers.0.norm.weight": torch.full((6,), 1.0 + number),
        }
        tiny.write_tensors(tmp_path / name, tensors)
    made(tmp_path, extract(rank=2, classes={"norm": "save"}), str(tmp_path / "out"))
    assert not changes(tmp_path / "out")["layers.0.up.weight"].any()
    assert torch.equal(
        weights(tmp_path / "out")["base_model.model.layers.0.norm.weight"], torch.full((6,), 2.0).double()
    )


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_matrix_without_entries_becomes_no_lora(tmp_path: Path, shape: tuple[int, int]) -> None:
    for number, name in enumerate(("base", "a")):
        tensors = {
            "layers.0.up.weight": torch.full((4, 6), float(number)),
            "nothing.weight": torch.ones(shape),
        }
        tiny.write_tensors(tmp_path / name, tensors)
    made(tmp_path, extract(rank=2), str(tmp_path / "out"))
    assert changes(tmp_path / "out").keys() == {"layers.0.up.weight"}
