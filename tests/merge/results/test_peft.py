"""The real PEFT beside ours: what its adapters mean, and what its own ways of merging them get wrong.

Each defect was seen in PEFT 0.21; a test that finds PEFT right means that it was repaired, and goes then.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from merge.errors import AdapterMismatch, AdapterRefused
from tests import tiny
from tests.merge.results.adapters import changes, made, planned, relative, weights

TARGETS = ["q_proj", "v_proj"]
Q = "model.layers.0.self_attn.q_proj"
TOKENS = torch.arange(24)[None]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PEFT warns of what is asked of it on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.llama(folder / "base", dtype=torch.float32)
    tiny.llama(folder / "tied", dtype=torch.float32, tied=True)
    tiny.gpt2(folder / "gpt2", dtype=torch.float32)
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def trained(root: Path, base: str, name: str, seed: int = 1, **settings: Any) -> Tensor:
    """An adapter as PEFT saves it, every trainable number moved; gives the logits of PEFT's model."""
    model = get_peft_model(loaded(root / base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval()
    model.save_pretrained(str(root / name))
    return logits(model)


def alone(base: str, *names: str, **more: Any) -> dict[str, Any]:
    sources = [{"id": f"s{place}", "adapter": name} for place, name in enumerate(names)]
    return {"base": base, "sources": sources, "steps": ["task_arithmetic"], **more}


RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("base", {"target_modules": TARGETS, "r": 4, "lora_alpha": 8, "use_rslora": True}),
    "patterns": (
        "base",
        {
            "target_modules": TARGETS,
            "r": 4,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 6},
            "alpha_pattern": {"v_proj": 3},
        },
    ),
    "bias_all": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "bias_all_saved": (
        "gpt2",
        {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True, "modules_to_save": ["ln_f"]},
    ),
    "bias_lora": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "bias": "lora_only", "fan_in_fan_out": True},
    ),
    "parameters": ("base", {"target_modules": TARGETS, "target_parameters": ["mlp.up_proj.weight"]}),
    "saved": ("base", {"target_modules": TARGETS, "modules_to_save": ["lm_head", "norm"]}),
    "layers": ("base", {"target_modules": TARGETS, "layers_to_transform": [1]}),
    "minor components": ("base", {"target_modules": TARGETS, "r": 4, "init_lora_weights": "mica"}),
    "embedding": ("base", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied": (
        "tied",
        {"target_modules": TARGETS, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_merged_checkpoint_is_what_peft_computes(root: Path, case: str) -> None:
    base, settings = RIGHT[case]
    wanted = trained(root, base, case, **settings)
    made(root, alone(base, case), f"{case}-out")
    assert torch.allclose(logits(loaded(root / f"{case}-out")), wanted, atol=2e-5)


def test_an_adapter_of_a_classifier_loads(tmp_path: Path) -> None:
    """PEFT 0.21 looks for a head that is saved whole where the task is that of a classifier."""
    for number, name in enumerate(("base", "a")):
        tiny.llama(tmp_path / name, expert=number, dtype=torch.float32)
        file, config = tmp_path / name / "model.safetensors", tmp_path / name / "config.json"
        tensors = load_file(file)
        save_file({n.replace("lm_head", "score"): t[:2] if n == "lm_head.weight" else t
                   for n, t in tensors.items()}, file, {"format": "pt"})  # fmt: skip
        config.write_text(config.read_text().replace("ForCausalLM", "ForSequenceClassification"))
    sources = [{"id": "a", "model": "a"}]
    result = {"form": "adapter", "error": 0.0, "classes": {"embed": "lora", "norm": "save"}}
    made(
        tmp_path, {"base": "base", "sources": sources, "steps": ["task_arithmetic"], "result": result}, "out"
    )
    base, wanted = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name, local_files_only=True)
        for name in ("base", "a")
    )
    found = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.allclose(found(TOKENS).logits, wanted(TOKENS).logits, atol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora"),
    "lora_bias": ({"lora_bias": True, "fan_in_fan_out": True, "target_modules": ["c_attn"]}, "lora_bias"),
    "kasa": ({"kasa_config": KasaConfig(), "r": 2}, "kasa_config"),
    "velora": ({"velora_config": VeloraConfig()}, "velora_config"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_product_is_refused_by_its_field(root: Path, case: str) -> None:
    """PEFT's ``add_weighted_adapter`` takes several of them, and silently gives another adapter."""
    settings, field = REFUSED[case]
    base = "gpt2" if "fan_in_fan_out" in settings else "base"
    trained(root, base, case, **{"target_modules": TARGETS, **settings})
    with pytest.raises(AdapterRefused, match=field):
        made(root, alone(base, case), f"{case}-out")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_one_half_of_a_tied_pair_is_refused(root: Path, module: str) -> None:
    """PEFT unties them: the other half stays as it was, which one stored tensor cannot say."""
    trained(root, "tied", f"half-{module}", target_modules=TARGETS, modules_to_save=[module])
    with pytest.raises(AdapterMismatch, match="ensure_weight_tying"):
        made(root, alone("tied", f"half-{module}"), f"half-{module}-out")


@pytest.fixture(scope="module")
def pair(root: Path) -> Path:
    """Two adapters, ``plain`` and ``other``, and one by rsLoRA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained(root, "base", "plain", seed=2, target_modules=TARGETS, r=4, lora_alpha=8)
        trained(root, "base", "other", seed=3, target_modules=TARGETS, r=4, lora_alpha=4)
        trained(root, "base", "root", seed=4, target_modules=TARGETS, r=4, lora_alpha=8, use_rslora=True)
        uneven = {"r": 4, "rank_pattern": {"v_proj": 2}}
        trained(root, "base", "uneven", seed=5, target_modules=TARGETS, **uneven)
    return root


def by_peft(root: Path, names: list[str], shares: list[float], **asked: Any) -> Tensor:
    """PEFT's merge of Q's change."""
    model = PeftModel.from_pretrained(loaded(root / "base"), root / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(root / name, name)
    model.add_weighted_adapter(names, shares, "merged", **asked)
    module = dict(model.named_modules())[f"base_model.model.{Q}"]
    found: Tensor = module.get_delta_weight("merged").detach().double()
    return found


def by_us(root: Path, out: Path, names: list[str], shares: list[float], **more: Any) -> Tensor:
    document = alone("base", *names, result={"form": "adapter", "error": 0.0}, **more)
    for source, share in zip(document["sources"], shares, strict=True):
        source["weight"] = share
    made(root, document, str(out))
    return changes(out)[f"{Q}.weight"]


@pytest.mark.parametrize("step", ["task_arithmetic", "cat_svd"])
@pytest.mark.parametrize("shares", [[1.0, -1.0], [1.0, 1.0], [0.3, 0.7]])
def test_ours_have_no_cross_terms_where_pefts_linear_has(
    pair: Path, tmp_path: Path, step: str, shares: list[float]
) -> None:
    """PEFT adds up the A's and the B's by themselves, so that A1 meets B2 (its issue 3004)."""
    names = ["plain", "other"]
    wanted = sum(
        share * changes(pair / name)[f"{Q}.weight"] for share, name in zip(shares, names, strict=True)
    )
    assert isinstance(wanted, Tensor)
    assert relative(wanted, by_us(pair, tmp_path / "out", names, shares, steps=[step])) < 1e-6
    if step == "cat_svd":
        assert relative(wanted, by_peft(pair, names, shares, combination_type="linear")) > 0.1


def test_one_rslora_at_weight_one_comes_back_from_us_and_not_from_peft(pair: Path, tmp_path: Path) -> None:
    """PEFT multiplies rsLoRA's larger scaling in, and scales the result once more by it (its issue 3761)."""
    wanted = changes(pair / "root")[f"{Q}.weight"]
    assert relative(wanted, by_us(pair, tmp_path / "out", ["root"], [1.0])) < 1e-6
    assert relative(wanted, by_peft(pair, ["root"], [1.0], combination_type="cat")) > 0.1


def test_a_result_with_a_rank_pattern_reloads(pair: Path, tmp_path: Path) -> None:
    """PEFT's own result of such adapters cannot be loaded again (its issue 3737)."""
    made(
        pair,
        alone("base", "uneven", "plain", result={"form": "adapter", "error": 0.0}),
        str(tmp_path / "out"),
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] and config["rank_pattern"] == config["alpha_pattern"]
    reloaded = PeftModel.from_pretrained(loaded(pair / "base"), tmp_path / "out")
    made(pair, alone("base", "uneven", "plain"), str(tmp_path / "dense"))
    assert torch.allclose(logits(reloaded), logits(loaded(tmp_path / "dense")), atol=2e-5)


def test_unequal_ranks_merge_by_any_method(pair: Path, tmp_path: Path) -> None:
    """PEFT's linear, ties and dare want equal ranks; ours work on products."""
    with pytest.raises(ValueError, match="same r value"):
        trained(pair, "base", "two", seed=6, target_modules=TARGETS, r=2)
        by_peft(pair, ["plain", "two"], [1.0, 1.0], combination_type="linear")
    for place, step in enumerate(("task_arithmetic", "cat_svd", "lora_lego", "ties")):
        found = by_us(pair, tmp_path / f"out{place}", ["plain", "two"], [1.0, 1.0], steps=[step])
        assert bool(torch.isfinite(found).all())


def test_random_thinning_has_a_seed_here_and_none_in_peft(pair: Path, tmp_path: Path) -> None:
    """PEFT draws from the process's generator, and thins A and B by themselves."""
    names, shares = ["plain", "other"], [1.0, 1.0]
    steps: Any = [{"method": "dare", "density": 0.5}, "ties"]
    first, again, other = (
        by_us(pair, tmp_path / f"{place}", names, shares, steps=steps, seed=seed)
        for place, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    asked = {"combination_type": "dare_ties", "density": 0.5}
    assert not torch.equal(by_peft(pair, names, shares, **asked), by_peft(pair, names, shares, **asked))


@pytest.mark.parametrize("step", ["cat_svd", "core_space", "lora_lego", "rmm", "task_arithmetic", "ties"])
def test_the_result_reloads_in_peft_and_is_the_dense_merge(pair: Path, tmp_path: Path, step: str) -> None:
    names = ("plain", "root", "uneven")
    made(
        pair,
        alone("base", *names, steps=[step], result={"form": "adapter", "error": 0.0}),
        str(tmp_path / "a"),
    )
    made(pair, alone("base", *names, steps=[step]), str(tmp_path / "dense"))
    reloaded = PeftModel.from_pretrained(loaded(pair / "base"), tmp_path / "a")
    assert torch.allclose(logits(reloaded), logits(loaded(tmp_path / "dense")), atol=5e-5)


def test_biases_and_saved_modules_come_back_in_a_merged_adapter(root: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}
    for seed, name in enumerate(("first", "second")):
        trained(root, "gpt2", name, seed=seed, **settings)
    document = alone("gpt2", "first", "second", result={"form": "adapter", "error": 0.0})
    made(root, document, str(tmp_path / "a"))
    made(root, alone("gpt2", "first", "second"), str(tmp_path / "dense"))
    reloaded = PeftModel.from_pretrained(loaded(root / "gpt2"), tmp_path / "a")
    assert torch.allclose(logits(reloaded), logits(loaded(tmp_path / "dense")), atol=2e-5)
    kept = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert any(name.endswith("ln_f.bias") for name in kept)
    assert weights(root / "gpt2").keys() == weights(tmp_path / "dense").keys()


def test_a_saved_weight_brings_the_rest_of_its_module(root: Path, tmp_path: Path) -> None:
    """PEFT loads the modules it saves as a whole, and fails where one of their tensors is missing."""
    tiny.gpt2(tmp_path / "tuned", expert=1, dtype=torch.float32)
    tiny.gpt2(tmp_path / "gpt2", dtype=torch.float32)
    document = {
        "base": "gpt2",
        "sources": [{"id": "a", "model": "tuned"}],
        "steps": ["passthrough"],
        "result": {"form": "adapter", "rank": 4, "classes": {"norm": "save", "bias": "drop"}},
    }
    made(tmp_path, document, str(tmp_path / "a"))
    kept = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {f"base_model.model.transformer.ln_f.{part}" for part in ("weight", "bias")} <= kept.keys()
    assert "base_model.model.transformer.h.0.mlp.c_fc.base_layer.bias" not in kept
    model = PeftModel.from_pretrained(loaded(tmp_path / "gpt2"), tmp_path / "a")
    assert bool(torch.isfinite(logits(model)).all())


def test_a_tied_embedding_that_an_adapter_saves_is_told_when_it_cannot_stay(
    root: Path, tmp_path: Path
) -> None:
    base, settings = RIGHT["tied"]
    trained(root, base, "tied-again", **settings)
    plan = planned(root, alone(base, "tied-again", result={"form": "adapter", "error": 0.0}))
    (told,) = [each for each in plan.findings if each.code == "adapter_left_out"]
    assert told.tensor == "model.embed_tokens.weight" and "tied" in told.message
