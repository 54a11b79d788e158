"""DeepSeek-MoE, and experts that are more than copies: noise and the scale of what an expert adds."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.errors import FindingsError
from merge.results.moe import changed_expert
from tests import tiny
from tests.merge.results.adapters import made, planned
from tests.merge.results.test_moe import dense, load

LAYERS = range(2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b", "c")):
        dense(folder / name, "llama", seed)
    return folder


def mixture(*sources: dict[str, Any], shared: tuple[str, ...] = ("c",), **result: Any) -> dict[str, Any]:
    asked = {"form": "moe", "architecture": "deepseek", "gate": "random", "shared": list(shared), **result}
    return {
        "base": "base",
        "sources": list(sources) or [{"id": name, "model": name} for name in ("a", "b", *shared)],
        "steps": ["linear"],
        "overrides": [{"match": "*", "policy": "base"}],
        "result": asked,
        "seed": 3,
    }


def logits(folder: Path) -> Tensor:
    """What Transformers makes of the files: its one class with this mixture over plain attention, the text
    part of an OCR model, loads every tensor under our names. It has no head, and does not normalise the
    shares of the chosen experts, which only shows where some are left out.
    """
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrTextConfig
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextModel

    said = json.loads((folder / "config.json").read_text())
    assert (said.pop("model_type"), said.pop("first_k_dense_replace"), said.pop("moe_layer_freq")) == (
        "deepseek", 0, 1,
    )  # fmt: skip
    assert said.pop("architectures") == ["DeepseekForCausalLM"] and said.pop("auto_map")
    kinds = {"layer_types": ["full_attention"] * 2, "mlp_layer_types": ["sparse"] * 2}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model, told = UnlimitedOcrTextModel.from_pretrained(
            folder, config=UnlimitedOcrTextConfig(**said, **kinds), dtype=torch.float32,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
        assert not told["missing_keys"] and not told["mismatched_keys"]
        assert told["unexpected_keys"] == {"lm_head.weight"}
        hidden: Tensor = model.eval()(torch.arange(24)[None]).last_hidden_state
        return hidden @ load(folder)["lm_head.weight"].float().T


def dense_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        found: Tensor = model(torch.arange(24)[None]).logits
    return found


def test_a_shared_and_two_equal_experts_that_each_add_half_are_the_dense_model(
    root: Path, tmp_path: Path
) -> None:
    sources = ({"id": name, "model": "base", "residual_scale": 0.5} for name in ("a", "b", "c"))
    made(root, mixture(*sources), str(tmp_path / "out"))
    assert torch.allclose(logits(tmp_path / "out"), dense_logits(root / "base"), atol=1e-5)


@pytest.mark.parametrize("active", [1, 2])
def test_a_mixture_of_different_experts_loads_completely_and_gives_finite_logits(
    root: Path, tmp_path: Path, active: int
) -> None:
    made(root, mixture(experts_per_token=active), str(tmp_path / "out"))
    found = logits(tmp_path / "out")
    assert found.shape == (1, 24, tiny.VOCAB) and bool(torch.isfinite(found).all())


def test_tensors_and_config_are_those_of_the_first_deepseek_moe(root: Path, tmp_path: Path) -> None:
    made(root, mixture(experts_per_token=1), str(tmp_path / "out"))
    got, a, c = load(tmp_path / "out"), load(root / "a"), load(root / "c")
    at = "model.layers.1.mlp"
    for part in ("gate", "up", "down"):
        assert torch.equal(got[f"{at}.experts.0.{part}_proj.weight"], a[f"{at}.{part}_proj.weight"])
        assert torch.equal(got[f"{at}.shared_experts.{part}_proj.weight"], c[f"{at}.{part}_proj.weight"])
    assert got[f"{at}.gate.weight"].shape == (2, 16) and not any("shared_expert_gate" in n for n in got)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekForCausalLM"] and config["model_type"] == "deepseek"
    asked = {"n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 1, "moe_layer_freq": 1,
             "first_k_dense_replace": 0, "moe_intermediate_size": 24, "norm_topk_prob": True,
             "scoring_func": "softmax", "rope_theta": 10000.0}  # fmt: skip
    assert {name: config[name] for name in asked} == asked
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("deepseek-ai/deepseek-moe-16b-base--")


def test_the_shared_expert_may_be_missing_and_the_plan_tells_whose_code_loads_it(root: Path) -> None:
    plan = planned(root, mixture(shared=()))
    assert plan.result_config()["n_shared_experts"] is None
    assert [f.code for f in plan.findings].count("moe_remote_code") == 1


def test_auto_chooses_it_for_a_shared_expert_without_prompts(root: Path) -> None:
    document = mixture(architecture="auto")
    assert planned(root, document).result_config()["model_type"] == "deepseek"
    document["sources"][-1]["prompts"] = ["hello"]
    assert planned(root, document).result_config()["model_type"] == "qwen2_moe"


def test_prompts_make_routers_of_the_routed_experts_alone(root: Path, tmp_path: Path) -> None:
    sources = [{"id": n, "model": n, "prompts": [f"say {n}"]} for n in ("a", "b")] + [
        {"id": "c", "model": "c"}
    ]
    for gate in ("cheap_embed", "hidden"):
        made(root, mixture(*sources, gate=gate), str(tmp_path / gate))
        rows = load(tmp_path / gate)["model.layers.0.mlp.gate.weight"].float()
        assert torch.allclose(rows.norm(dim=1), torch.ones(2), atol=1e-3)
    told = planned(root, mixture(*({**s, "prompts": ["x"]} for s in sources), gate="hidden")).findings
    assert "prompts_unused" in {finding.code for finding in told}


def test_noise_is_keyed_and_only_what_an_expert_adds_is_scaled(root: Path, tmp_path: Path) -> None:
    sources = (
        {"id": "a", "model": "a", "noise_scale": 0.5, "residual_scale": 2.0},
        {"id": "b", "model": "b"},
        {"id": "c", "model": "c", "residual_scale": 0.25},
    )
    results = {}
    for name, threads, shard in (("one", 1, 5 << 30), ("two", 2, 1 << 16)):
        document = mixture(*sources) | {"dtype": {"output": "float32"}, "shard_bytes": shard}
        made(root, document, str(tmp_path / name), threads=threads)
        results[name] = load(tmp_path / name)
    assert results["one"].keys() == results["two"].keys()
    assert all(torch.equal(results["one"][name], results["two"][name]) for name in results["one"])
    got, a, b, c = results["one"], load(root / "a"), load(root / "b"), load(root / "c")
    at = "model.layers.{}.mlp"
    drawn = [(got[f"{at}.experts.0.up_proj.weight".format(n)] - a[f"{at}.up_proj.weight".format(n)]) / 0.5
             for n in LAYERS]  # fmt: skip
    assert not torch.allclose(drawn[0], drawn[1])
    both = torch.cat(drawn).double()
    assert abs(float(both.mean())) < 0.15 and abs(float(both.std()) - 1) < 0.1
    down = "model.layers.0.mlp.experts.0.down_proj.weight"
    noise = got[down] / 2 - a["model.layers.0.mlp.down_proj.weight"]
    assert 0.4 < float(noise.std()) < 0.6
    plain = "model.layers.0.mlp"
    assert torch.equal(got[f"{plain}.experts.1.down_proj.weight"], b[f"{plain}.down_proj.weight"])
    assert torch.equal(got[f"{plain}.shared_experts.down_proj.weight"], c[f"{plain}.down_proj.weight"] / 4)
    assert torch.equal(got[f"{plain}.shared_experts.up_proj.weight"], c[f"{plain}.up_proj.weight"])


def test_the_noise_of_a_part_is_part_of_the_noise(root: Path) -> None:
    sources = ({"id": name, "model": name, "noise_scale": 0.5} for name in ("a", "b", "c"))
    plan = planned(root, mixture(*sources))
    (output,) = (each for each in plan.outputs if each.name.endswith("layers.1.mlp.experts.1.up_proj.weight"))
    nothing = torch.zeros(output.shape).reshape(-1)
    whole, part = (changed_expert(plan, output, nothing[first:], first) for first in (0, 100))
    assert torch.equal(whole[100:], part) and part.count_nonzero() == part.numel()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "of the kind llama3",
        ),
        ({"head_dim": 8}, "heads of 8 numbers instead of 4"),
    ],
)
def test_what_the_code_of_deepseek_moe_does_not_know_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    for number, name in enumerate(("base", "a", "b", "c")):
        tiny.llama(tmp_path / name, expert=number)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {"hidden_size": 16, "num_attention_heads": 4}
        (tmp_path / name / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FindingsError, match=says):
        planned(tmp_path, mixture())


def test_fields_of_an_expert_are_refused_where_there_are_none(root: Path) -> None:
    document = {"sources": [{"id": "a", "model": "a", "noise_scale": 0.1}], "steps": ["linear"]}
    with pytest.raises(FindingsError, match="noise_scale changes an expert of a mixture") as refused:
        planned(root, document)
    assert refused.value.findings[0].pointer == "/sources/0/noise_scale"
