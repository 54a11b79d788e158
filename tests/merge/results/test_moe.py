"""Mixtures assembled from dense models: they load in Transformers, and every tensor is where it belongs."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.errors import FindingsError, GateUnsupported
from merge.recipe.recipe import recipe_from
from tests import tiny
from tests.merge.results.adapters import made, models_of, planned

PROMPTS = {"a": ["solve 1 + 1", "what is 7 * 8?"], "b": ["def main():"], "c": ["to be or not"]}
KINDS = {"mixtral": "llama", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}


def dense(folder: Path, kind: str, seed: int, **more: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "vocab_size": tiny.VOCAB, "max_position_embeddings": 128,
        "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 259, "tie_word_embeddings": False, **more,
    }  # fmt: skip
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(folder)
    tiny.write_tokenizer(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS.values():
        for seed, name in enumerate(("base", "a", "b", "c")):
            dense(folder / kind / name, kind, seed)
    return folder


def mixture(architecture: str, *, gate: str = "random", **more: Any) -> dict[str, Any]:
    shared = ["c"] if architecture == "qwen2_moe" else []
    return {
        "base": "base",
        "sources": [{"id": n, "model": n, "prompts": PROMPTS[n]} for n in ("a", "b", *shared)],
        "steps": ["linear"],
        "result": {"form": "moe", "architecture": architecture, "gate": gate, "shared": shared},
        **more,
    }


def everything_else_from_the_base() -> dict[str, Any]:
    return {"overrides": [{"match": "*", "policy": "base"}]}


def load(folder: Path) -> Mapping[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def running(folder: Path) -> tuple[Any, Tensor]:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        with torch.no_grad():
            logits: Tensor = model(torch.arange(24)[None]).logits
    return model, logits


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("gate", ["random", "hidden"])
def test_every_family_loads_completely_and_gives_finite_logits(
    root: Path, tmp_path: Path, architecture: str, gate: str
) -> None:
    made(root / KINDS[architecture], mixture(architecture, gate=gate), str(tmp_path / "out"))
    model, logits = running(tmp_path / "out")
    assert bool(torch.isfinite(logits).all())
    assert model.config.model_type == architecture
    assert model.config.num_experts_per_tok == 2


@pytest.mark.parametrize("architecture", KINDS)
def test_equal_experts_work_as_the_dense_model(root: Path, tmp_path: Path, architecture: str) -> None:
    works_as_the_dense_model(root / KINDS[architecture], architecture, tmp_path / "out")


WINDOW = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("kind", "more", "architecture"),
    [
        ("mistral", {"sliding_window": 8}, "qwen2_moe"),
        ("qwen2", {**WINDOW, "max_window_layers": 1}, "qwen2_moe"),
        ("qwen3", {**WINDOW, "max_window_layers": 0}, "qwen3_moe"),
        ("qwen3", {"attention_bias": True}, "qwen3_moe"),
    ],
)
def test_attention_stays_that_of_the_dense_model(
    tmp_path: Path, kind: str, more: dict[str, Any], architecture: str
) -> None:
    dense(tmp_path / "base", kind, 0, **more)
    works_as_the_dense_model(tmp_path, architecture, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "more", "architecture"),
    [
        ("llama", {"num_key_value_heads": 4}, "mixtral"),
        ("mistral", {"num_attention_heads": 8, "num_key_value_heads": 8}, "qwen2_moe"),
        ("qwen3", {"head_dim": 128}, "qwen3_moe"),
    ],
)
def test_what_an_older_config_leaves_to_its_class_stays(
    tmp_path: Path, kind: str, more: dict[str, Any], architecture: str
) -> None:
    dense(tmp_path / "base", kind, 0, initializer_range=0.2, **more)
    file = tmp_path / "base" / "config.json"
    left = {"rope_parameters", "rms_norm_eps", "max_position_embeddings", *more} - {"num_attention_heads"}
    config = {key: value for key, value in json.loads(file.read_text()).items() if key not in left}
    file.write_text(json.dumps(config))
    works_as_the_dense_model(tmp_path, architecture, tmp_path / "out")


def works_as_the_dense_model(root: Path, architecture: str, out: Path) -> None:
    """A mixture of equal experts beside the model that they are."""
    document = mixture(architecture) | everything_else_from_the_base()
    for source in document["sources"]:
        source["model"] = "base"
    if architecture == "qwen2_moe":
        document["sources"][-1]["model"] = "zero"
        silent_expert(root / "base", root / "zero")
    made(root, document, str(out))
    assert torch.allclose(running(out)[1], running(root / "base")[1], atol=1e-5)


def test_a_window_in_some_layers_is_refused_where_the_family_has_one_for_all(tmp_path: Path) -> None:
    dense(tmp_path / "base", "qwen3", 0, **WINDOW, max_window_layers=1)
    document = mixture("qwen3_moe")
    for source in document["sources"]:
        source["model"] = "base"
    with pytest.raises(FindingsError, match="in some layers"):
        made(tmp_path, document, str(tmp_path / "out"))


def silent_expert(folder: Path, target: Path) -> None:
    """The same model with feed-forward layers that give nothing."""
    tensors = {n: torch.zeros_like(t) if "down_proj" in n else t for n, t in load(folder).items()}
    tiny.write_tensors(target, tensors)
    (target / "config.json").write_text((folder / "config.json").read_text())
    tiny.write_tokenizer(target)


def test_experts_are_copied_and_the_rest_is_what_the_steps_make(root: Path, tmp_path: Path) -> None:
    made(root / "llama", mixture("mixtral", dtype={"output": "float32"}), str(tmp_path / "out"))
    got, sources = load(tmp_path / "out"), {name: load(root / "llama" / name) for name in ("a", "b")}
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for layer in range(2):
        for number, source in enumerate("ab"):
            for part, name in names.items():
                expert = got[f"model.layers.{layer}.block_sparse_moe.experts.{number}.{part}.weight"]
                assert torch.equal(expert, sources[source][f"model.layers.{layer}.mlp.{name}.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(got[name], (sources["a"][name] + sources["b"][name]) / 2)
    assert not any(".mlp." in name for name in got)


def test_shared_expert_serves_every_token_under_its_own_gate(root: Path, tmp_path: Path) -> None:
    made(root / "qwen2", mixture("qwen2_moe", gate="cheap_embed"), str(tmp_path / "out"))
    got, shared = load(tmp_path / "out"), load(root / "qwen2" / "c")
    name = "model.layers.1.mlp.shared_expert"
    assert torch.equal(got[f"{name}.up_proj.weight"], shared["model.layers.1.mlp.up_proj.weight"])
    assert got[f"{name}_gate.weight"].shape == (1, 16)
    assert "model.layers.1.mlp.experts.2.up_proj.weight" not in got
    assert got["model.layers.0.self_attn.q_proj.bias"].shape == (16,)


def inner(folder: Path, text: str, *, last: bool = False) -> Tensor:
    """(layers, width): what Transformers itself holds where each layer begins."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text, return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            states = torch.stack(model(ids, output_hidden_states=True).hidden_states[:-1])[:, 0]
    return states[:, -1] if last else states.mean(dim=1)


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("gate", ["hidden", "hidden_avg", "hidden_last"])
def test_rows_are_the_whole_models_hidden_states(
    root: Path, tmp_path: Path, architecture: str, gate: str
) -> None:
    folder = root / KINDS[architecture]
    made(folder, mixture(architecture, gate=gate), str(tmp_path / "out"))
    got = load(tmp_path / "out")
    for number, name in enumerate("ab"):
        states = [inner(folder / "base", text, last=gate == "hidden_last") for text in PROMPTS[name]]
        wanted = torch.stack(states).mean(0)
        for layer in range(2):
            found = next(t for n, t in got.items() if n.endswith(f"{layer}.{router(architecture)}"))[number]
            assert torch.allclose(found.float(), wanted[layer] / wanted[layer].norm(), atol=1e-5)


def router(architecture: str) -> str:
    return "block_sparse_moe.gate.weight" if architecture == "mixtral" else "mlp.gate.weight"


def without_and_with(root: Path, folder: Path, left_out: str = "", **more: Tensor) -> None:
    """The models in ``folder``, with other tensors in each."""
    for name in ("base", "a", "b"):
        tensors = {n: t for n, t in load(root / "llama" / name).items() if not left_out or left_out not in n}
        tiny.write_tensors(folder / name, tensors | more)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((root / "llama" / name / file).read_bytes())


def test_tables_of_older_files_are_no_weights_of_the_layers_that_prompts_go_through(
    root: Path, tmp_path: Path
) -> None:
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    without_and_with(root, tmp_path, **table)
    made(tmp_path, mixture("mixtral", gate="hidden"))
    made(root / "llama", mixture("mixtral", gate="hidden"), str(tmp_path / "plain"))
    got, wanted = load(tmp_path / "out"), load(tmp_path / "plain")
    assert got.keys() - table.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_layer_that_lacks_a_weight_cannot_be_run(root: Path, tmp_path: Path) -> None:
    without_and_with(root, tmp_path, "layers.0.input_layernorm")
    with pytest.raises(GateUnsupported, match=r"Layer 0 needs input_layernorm\.weight, \[16\], .* lacks it"):
        made(tmp_path, mixture("mixtral", gate="hidden"))


def test_cheap_rows_are_mean_embeddings_and_negative_prompts_are_taken_off(
    root: Path, tmp_path: Path
) -> None:
    document = mixture("mixtral", gate="cheap_embed")
    document["sources"][1]["negative_prompts"] = ["aa"]
    made(root / "llama", document, str(tmp_path / "out"))
    table = load(root / "llama" / "base")["model.embed_tokens.weight"]
    vocab = json.loads((root / "llama" / "base" / "tokenizer.json").read_text())["model"]["vocab"]

    def direction(*texts: str) -> Tensor:
        total = table[[vocab[char.replace(" ", "Ġ")] for text in texts for char in text]].sum(0)
        return total / total.norm()

    rows = [direction(*PROMPTS["a"]), direction("def main():") - direction("aa")]
    got = load(tmp_path / "out")
    for layer in range(2):
        found = got[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        for row, wanted in zip(found, rows, strict=True):
            assert torch.allclose(row, wanted / wanted.norm(), atol=1e-6)


def test_drawn_rows_follow_the_seed_and_differ_by_layer(root: Path, tmp_path: Path) -> None:
    name = "model.layers.{}.block_sparse_moe.gate.weight"
    found = {}
    for label, seed in (("one", 1), ("again", 1), ("other", 2)):
        made(root / "llama", mixture("mixtral", seed=seed), str(tmp_path / label))
        found[label] = load(tmp_path / label)
    assert torch.equal(found["one"][name.format(0)], found["again"][name.format(0)])
    assert not torch.equal(found["one"][name.format(0)], found["other"][name.format(0)])
    assert not torch.equal(found["one"][name.format(0)], found["one"][name.format(1)])
    made(root / "llama", mixture("mixtral", gate="uniform_random"), str(tmp_path / "uniform"))
    rows = load(tmp_path / "uniform")[name.format(0)]
    assert float(rows.abs().max()) <= 1 / 4


REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "other kind": ("qwen3", {"result": {"form": "moe", "architecture": "mixtral"}}, "moe_source_unsupported"),
    "no shared": ("qwen2", {"result": {"form": "moe", "architecture": "qwen2_moe"}}, "moe_shared_count"),
    "a shared too many": (
        "llama",
        {"result": {"form": "moe", "architecture": "mixtral", "shared": ["a"], "experts_per_token": 1}},
        "moe_shared_count",
    ),
    "unknown shared": (
        "qwen2",
        {"result": {"form": "moe", "architecture": "qwen2_moe", "shared": ["z"]}},
        "unknown_source",
    ),
    "too few": (
        "llama",
        {"result": {"form": "moe", "architecture": "mixtral", "experts_per_token": 3}},
        "moe_too_few_experts",
    ),
    "no prompts": ("llama", {"sources": ["a", "b"]}, "prompts_missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_read(root: Path, case: str) -> None:
    kind, change, code = REFUSED[case]
    with pytest.raises(FindingsError) as refused:
        planned(root / kind, mixture("mixtral", gate="hidden") | change)
    assert code in {finding.code for finding in refused.value.findings}


def test_other_widths_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base")
    tiny.llama(tmp_path / "a", expert=1)
    tiny.llama(tmp_path / "b", expert=2, hidden=32)
    with pytest.raises(FindingsError, match=r"b is of another size than base \(hidden_size 32 against 16"):
        planned(tmp_path, mixture("mixtral"))


def test_a_layer_that_does_not_fit_the_budget_is_a_finding(root: Path) -> None:
    small = 60 << 20
    planned(root / "llama", mixture("mixtral", gate="cheap_embed"), budget=small)
    with pytest.raises(FindingsError, match="to run a layer of base on the prompts"):
        planned(root / "llama", mixture("mixtral", gate="hidden"), budget=small)


def test_tokenizer_that_cannot_be_used_is_told(root: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("base", "a", "b")):
        tiny.llama(tmp_path / name, expert=number, tokenizer=False)
    with pytest.raises(GateUnsupported, match="tokenizer of base"):
        made(tmp_path, mixture("mixtral", gate="cheap_embed"))


def test_a_mixture_is_planned_from_headers_alone(root: Path) -> None:
    document = mixture("mixtral", gate="hidden")
    plan = planned(root / "llama", document)
    assert plan.moe is not None
    assert plan.weight_files("base") == models_of(root / "llama", recipe_from(document))["base"].shards
    assert plan.estimate.output_bytes > sum(model.bytes for key, model in plan.models.items() if key == "a")
