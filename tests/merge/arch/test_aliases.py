"""Files that differ in what stands before their names hold the same tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.arch.aliases import names_in, other_names
from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests import tiny

BUDGET = 96 << 20
CHANGES = [
    (("h.{}.ln.weight", "wte.weight"), ("transformer.h.{}.ln.weight", "transformer.wte.weight")),
    (("bert.encoder.layer.{}.q.weight",), ("encoder.layer.{}.q.weight",)),
    (
        (
            "language_model.model.layers.{}.q.weight",
            "language_model.lm_head.weight",
            "vision.layers.{}.q.weight",
        ),
        ("model.language_model.layers.{}.q.weight", "lm_head.weight", "model.vision.layers.{}.q.weight"),
    ),
    (("model.layers.{}.mlp.gate.weight",), ("model.layers.{}.moe.gate.weight",)),
]


@pytest.mark.parametrize(("ours", "theirs"), CHANGES)
def test_beginnings_that_stand_for_each_other_are_found(
    ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    def spelled(names: tuple[str, ...]) -> list[str]:
        return list(dict.fromkeys(name.format(layer) for name in names for layer in range(12)))

    wanted = dict(zip(spelled(ours), spelled(theirs), strict=True))
    shapes = dict.fromkeys(wanted, (4, 4))
    assert other_names(shapes, dict.fromkeys(wanted.values(), (4, 4))) == wanted
    assert other_names(shapes, shapes) == {}
    more_tokens = {name: (5 if "wte" in name or "lm_head" in name else 4, 4) for name in wanted.values()}
    assert other_names(shapes, more_tokens) == wanted


def test_what_is_not_certain_is_left() -> None:
    ours = {"decoder.q.weight": (4, 4), "x.bias": (3,)}
    assert other_names(ours, {"a.decoder.q.weight": (4, 4), "b.decoder.q.weight": (4, 4)}) == {}
    assert other_names(ours, {"a.decoder.q.weight": (4, 5)}) == {}
    assert other_names({"a.q.weight": (4,), "b.q.weight": (4,)}, {"c.q.weight": (4,)}) == {}
    assert other_names(ours, {"decoder.q.weight": (4, 4), "decoder.k.weight": (4, 4)}) == {}


def test_the_only_head_of_a_shape_is_found_by_any_name_of_a_head() -> None:
    wanted = {"lm_head.weight": (9, 4), "gpt_neox.layers.0.q.weight": (4, 4)}
    theirs = {"gpt_neox.embed_in.weight": (9, 4), "embed_out.weight": (9, 4), "layers.0.q.weight": (4, 4)}
    found = {"lm_head.weight": "embed_out.weight", "gpt_neox.layers.0.q.weight": "layers.0.q.weight"}
    assert names_in(wanted, theirs) == found
    assert names_in({"lm_head.weight": (2, 4)}, theirs) == {"lm_head.weight": "lm_head.weight"}


def test_a_classifier_is_not_taken_for_another_head_of_its_shape() -> None:
    tables = {
        "bert.embeddings.word_embeddings.weight": (9, 4),
        "bert.embeddings.token_type_embeddings.weight": (2, 4),
    }
    other = {
        "cls.seq_relationship.weight": (2, 4),
        "cls.seq_relationship.bias": (2,),
        "x.head.in_proj_weight": (9, 4),
    }
    wanted = {"classifier.weight": (2, 4), "classifier.bias": (2,), "lm_head.weight": (9, 4)}
    assert names_in(wanted, {**tables, **other}) == {name: name for name in wanted}
    bias = {"cls.predictions.bias": (9,)}
    assert names_in({"cls.predictions.decoder.bias": (9,)}, {**tables, **bias}) == {
        "cls.predictions.decoder.bias": "cls.predictions.bias"
    }


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("swin.layers.0.blocks.1.attention.q_proj", "swin.layers.0.blocks.1.attention.self.query"),
        ("segformer.stages.2.blocks.1.mlp.fc1", "segformer.encoder.block.2.1.mlp.dense1"),
        ("segformer.stages.2.patch_embeddings.proj", "segformer.encoder.patch_embeddings.2.proj"),
        ("decode_head.linear_projections.1.proj", "decode_head.linear_c.1.proj"),
        ("model.decoder.layers.0.mlp.fc1", "model.decoder.layers.0.fc1"),
        ("model.layers.0.mixer.in_proj", "backbone.layers.0.mixer.in_proj"),
    ],
)
def test_newer_words_of_transformers_are_known(name: str, other: str) -> None:
    theirs = {f"{other}.weight": (4, 4), "embed.weight": (9, 4)}
    assert names_in({f"{name}.weight": (4, 4)}, theirs) == {f"{name}.weight": f"{other}.weight"}


def test_models_that_name_their_tensors_otherwise_merge(tmp_path: Path) -> None:
    paths = {key: tiny.gpt2(tmp_path / key, expert=number) for number, key in enumerate(("base", "a", "b"))}
    stored = load_file(paths["a"] / "model.safetensors")
    save_file(
        {n.removeprefix("transformer."): t for n, t in stored.items()}, paths["a"] / "model.safetensors"
    )
    lora = tiny.lora(tmp_path / "lora", {"h.0.mlp.c_fc": (64, 16)}, fan_in_fan_out=True)
    indices = {key: index_folder(path, key) for key, path in paths.items()}
    indices["a"] = attach(indices["a"], index_adapter_folder(lora, "lora"))
    recipe = recipe_from({
        "base": "base", "steps": [{"method": "task_arithmetic", "scale": 0.5}],
        "sources": [{"id": "a", "model": "a", "adapter": "lora"}, {"id": "b", "model": "b"}],
    })  # fmt: skip
    plan = make_plan(recipe, indices, budget=BUDGET)
    told = [finding for finding in plan.findings if finding.code == "tensors_renamed"]
    assert [(finding.model, finding.severity) for finding in told] == [("a", "warning")]
    run(plan, {**paths, "a+adapter": lora}, tmp_path / "out", budget_bytes=BUDGET, threads=1)
    made = load_file(tmp_path / "out" / "model.safetensors")
    base, other = (load_file(paths[key] / "model.safetensors") for key in ("base", "b"))
    assert made.keys() == base.keys()
    for name, value in made.items():
        mean = base[name].float() + 0.5 * (stored[name].float() - base[name].float())
        wanted = mean + 0.5 * (other[name].float() - base[name].float())
        same = torch.allclose(value.float(), wanted, atol=0.02)
        assert same or name == "transformer.h.0.mlp.c_fc.weight", name
    changed = made["transformer.h.0.mlp.c_fc.weight"].float()
    factors = load_file(lora / "adapter_model.safetensors")
    left, right = (factors[f"base_model.model.h.0.mlp.c_fc.lora_{part}.weight"] for part in "AB")
    name = "transformer.h.0.mlp.c_fc.weight"
    sources = stored[name].float() + 2 * (right @ left).T, other[name].float()
    wanted = base[name].float() + 0.5 * sum(source - base[name].float() for source in sources)
    assert torch.allclose(changed, wanted, atol=0.02)
