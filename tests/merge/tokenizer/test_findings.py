"""What a plan says of models of different vocabularies, and which it refuses."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from merge.errors import PlanRefused
from tests import tiny
from tests.merge.tokenizer import small
from tests.merge.tokenizer.small import EMBED, SOURCES


def codes(root: Path, document: dict[str, Any]) -> dict[str, str]:
    """Findings of a plan, by code."""
    try:
        findings = small.plan_of(root, document).findings
    except PlanRefused as refused:
        findings = refused.findings
    return {finding.code: finding.message for finding in findings}


def test_without_a_section_the_difference_is_told_with_a_way_out(root: Path) -> None:
    found = codes(root, {"sources": SOURCES})
    assert "ids mean another token" in found["tokenizer_differs"]
    assert "source: union" in found["tokenizer_differs"]
    assert "source: union" in found["vocabulary_mismatch"]


def test_the_plan_tells_what_is_shared_and_what_is_filled(root: Path) -> None:
    plan = small.plan_of(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    told = {
        finding.model: finding.message for finding in plan.findings if finding.code == "vocabulary_aligned"
    }
    assert (
        told["a"] == "a has 263 of the result's 265 rows (2 from b); 0 of its tokens are not in the result."
    )
    summary = plan.summary()["vocabulary"]
    assert summary["models"]["b"] == {"own": 264, "filled": 1}


def test_tensors_that_know_tokens_by_their_ids_keep_them_from_moving(root: Path) -> None:
    """Llama 3.2 Vision has an embedding of more rows than its head, DeepSeek V4 routes by token ids."""
    for name in ("a", "b"):
        tensors = load_file(root / name / "model.safetensors")
        tensors["model.layers.0.mlp.gate.tid2eid"] = torch.zeros(len(tensors[EMBED]), 2)
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "tid2eid of b knows tokens by their ids" in found["vocabulary_fixed"]
    alone = {"sources": SOURCES[:1], "tokenizer": {"source": "union"}}
    assert "vocabulary_fixed" not in codes(root, alone)


def test_the_constants_of_marian_keep_tokens_from_moving(root: Path) -> None:
    """They were left out, as BART's, which are zeros; Marian's are learnt."""
    for name in ("a", "b"):
        tensors = load_file(root / name / "model.safetensors")
        tensors["final_logits_bias"] = torch.zeros(1, len(tensors[EMBED]))
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
        config = json.loads((root / name / "config.json").read_text())
        small.write_json(root / name / "config.json", config | {"model_type": "marian"})
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "final_logits_bias of b knows tokens by their ids" in found["vocabulary_fixed"]


def test_a_model_whose_positions_follow_from_its_padding_keeps_it(root: Path) -> None:
    """RoBERTa's first position is the one after the id of <pad>, which is another in a and in b."""
    small.speaker(root / "c", merges=[("a", "n")], added=(*tiny.SPECIAL, "<x>"), expert=3)
    for name in ("a", "b", "c"):
        file = root / name / "config.json"
        small.write_json(file, json.loads(file.read_text()) | {"model_type": "roberta"})
    for source in ("union", "a", "b"):
        assert "padding_moved" in codes(root, {"sources": SOURCES, "tokenizer": {"source": source}})
    same = [SOURCES[0], {"id": "c", "model": "c"}]
    assert "padding_moved" not in codes(root, {"sources": same, "tokenizer": {"source": "union"}})


def test_equal_vocabularies_need_no_tables(tmp_path: Path) -> None:
    for name, expert in (("a", 1), ("b", 2)):
        small.speaker(tmp_path / name, expert=expert)
    plan = small.plan_of(tmp_path, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert (plan.vocabulary, plan.rows) == (None, {})


def test_models_whose_tokens_nobody_knows_are_refused(root: Path) -> None:
    (root / "b" / "tokenizer.json").unlink()
    document = {"sources": SOURCES, "tokenizer": {"source": "union"}}
    assert "b has no tokenizer" in codes(root, document)["vocabulary_unknown"]
    (root / "b" / "tokenizer.model").write_bytes(b"\x0a")
    assert "binary form" in codes(root, document)["vocabulary_unknown"]


def test_models_whose_embedding_nobody_knows_are_refused(root: Path) -> None:
    for name in ("a", "b"):
        tensors = load_file(root / name / "model.safetensors")
        tensors["model.by_number.weight"] = tensors.pop(EMBED)
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "has no token embedding" in found["vocabulary_unknown"]


def test_a_base_that_lends_rows_of_another_width_is_named(root: Path) -> None:
    small.speaker(root / "wide", added=(*tiny.SPECIAL, "<new>"), hidden=32)
    found = codes(root, {"base": "wide", "sources": SOURCES, "tokenizer": {"source": "base"}})
    assert "takes rows from wide" in found["fill_missing"]


def test_a_hostile_tokenizer_is_a_finding(root: Path) -> None:
    file = root / "b" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"]["twin"] = 5
    small.write_json(file, document)
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "share id 5" in found["vocabulary_invalid"]


def test_one_tokenizer_cannot_be_of_two_kinds(root: Path) -> None:
    file = root / "b" / "tokenizer.json"
    document = json.loads(file.read_text())
    words = {"▁word": 0, "▁other": 1, "<0x41>": 2}
    document["model"] |= {"vocab": words, "merges": [], "byte_fallback": True}
    document["added_tokens"] = []
    small.write_json(file, document)
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "none could make both" in found["tokenizer_union_impossible"]


def test_a_tokenizer_that_cannot_be_extended_is_named(root: Path) -> None:
    ids = small.ids_of(root / "a")
    (root / "a" / "tokenizer.json").unlink()
    small.write_json(root / "a" / "vocab.json", ids)
    document = {"sources": SOURCES, "tokenizer": {"source": "union"}}
    assert "no tokenizer.json" in codes(root, document)["tokenizer_not_writable"]


def test_a_rule_for_a_token_nobody_has_is_named(root: Path) -> None:
    rules = {"<s>": {"source": {"model": "a", "token": "nope"}}}
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "a", "tokens": rules | {}}})
    assert "token_missing" not in found, "a has <s> and nothing is forced"
    rules["<s>"]["force"] = True  # type: ignore[index]
    found = codes(root, {"sources": SOURCES, "tokenizer": {"source": "a", "tokens": rules}})
    assert "asks a for a token" in found["token_missing"]


def test_a_special_token_that_gets_lost_is_told(root: Path) -> None:
    small.speaker(root / "c", added=("<s>", "</s>"), expert=3)
    sources = [{"id": "a", "model": "a"}, {"id": "c", "model": "c"}]
    found = codes(root, {"sources": sources, "tokenizer": {"source": "c"}})
    assert "pad_token_id of a is token" in found["special_token_lost"]
    out, _ = small.merged(root, {"sources": sources, "tokenizer": {"source": "c"}})
    assert json.loads((out / "config.json").read_text())["pad_token_id"] is None
