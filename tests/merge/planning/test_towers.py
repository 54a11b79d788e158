"""Slices of whole architectures, of one tower of several, and of modules with sources of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.run import run
from tests.merge.arch import zoo
from tests.merge.planning.slices import GIB, GROWN, UP, errors, mean, merged, part, planned, weights_of


def stacked(name: str, slices: dict[str, Any], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    zoo.save(name, 1, tmp_path / "a")
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], **slices}
    folders = {"a": tmp_path / "a"}
    run(planned(folders, found), folders, tmp_path / "out", budget_bytes=GIB, threads=1, survey="none")
    return zoo.load(name, tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "bert"])
def test_transformers_loads_a_stacked_model(name: str, tmp_path: Path) -> None:
    model, told = stacked(name, {"slices": GROWN}, tmp_path)
    assert not any(told.values())
    assert model.config.num_hidden_layers == 4
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize(
    ("name", "tower", "count"),
    [
        ("t5", "decoder.block", lambda c: (c.num_layers, c.num_decoder_layers) == (3, 4)),
        ("t5", "encoder.block", lambda c: (c.num_layers, c.num_decoder_layers) == (4, 3)),
        ("gemma3", "language_model.model.layers", lambda c: len(c.text_config.layer_types) == 4),
        ("gemma3", "vision_tower.encoder.layers", lambda c: c.vision_config.num_hidden_layers == 4),
        ("whisper", "model.encoder.layers", lambda c: (c.encoder_layers, c.decoder_layers) == (4, 3)),
    ],
)
def test_one_of_several_towers_is_cut_and_the_others_stay(
    name: str, tower: str, count: Any, tmp_path: Path
) -> None:
    modules = {"tower": {"tensors": [f"{tower}.*"], "slices": GROWN}}
    model, told = stacked(name, {"modules": modules}, tmp_path)
    assert not any(told.values())
    assert count(model.config)


def test_modules_have_sources_of_their_own_and_what_none_claims_has_all(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    modules = {
        "outer": {"tensors": ["lm_head.*", "*embed_tokens*"], "slices": [{"sources": [{"id": "b"}]}]},
        "layers": {"tensors": ["model.layers.*"], "slices": [part(("a", 0, 2))]},
    }
    sources = [{"id": name, "model": name} for name in "ab"]
    found = {"sources": sources, "steps": ["linear"], "modules": modules}
    made = merged(folders, tmp_path / "out", found)
    a, b = weights_of(folders["a"]), weights_of(folders["b"])
    assert torch.equal(made["lm_head.weight"], b["lm_head.weight"])
    assert torch.equal(made[UP.format(1)], a[UP.format(1)]) and UP.format(2) not in made
    assert torch.equal(made["model.norm.weight"], mean(a["model.norm.weight"], b["model.norm.weight"]))


def test_a_method_of_one_source_takes_another_one_in_every_module(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    modules = {
        "outer": {"tensors": ["lm_head.*", "*embed_tokens*"], "slices": [{"sources": [{"id": "b"}]}]},
        "rest": {"tensors": ["model.*"], "slices": [part(("a", 0, 2))]},
    }
    found = {"sources": [{"id": name, "model": name} for name in "ab"], "steps": ["passthrough"]}
    made = merged(folders, tmp_path / "out", {**found, "modules": modules})
    a, b = weights_of(folders["a"]), weights_of(folders["b"])
    assert torch.equal(made["lm_head.weight"], b["lm_head.weight"])
    assert torch.equal(made["model.norm.weight"], a["model.norm.weight"])
    told = errors(folders, {**found, "modules": {"outer": modules["outer"]}})
    assert {each.code for each in told} == {"source_count"}
