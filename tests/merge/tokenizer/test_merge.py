"""Models of different vocabularies, merged: every row of the result is what its token asks for."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge.kernels.sums import total
from tests import tiny
from tests.merge.tokenizer import small
from tests.merge.tokenizer.small import CHAT, EMBED, HEAD, SOURCES


def mean(*rows: torch.Tensor) -> torch.Tensor:
    return total(rows) / len(rows)


def has_ids_of_its_rows(out: Path) -> Any:
    """The loaded tokenizer, after a look at every id and at the model's sizes."""
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.get_vocab() == small.ids_of(out)
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size >= len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name)
    return tokenizer


@pytest.mark.parametrize("tensor", [EMBED, HEAD])
def test_union_without_a_base(root: Path, tensor: str) -> None:
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    a, b, found = (small.rows(root / name, tensor) for name in ("a", "b", "out"))
    assert found.keys() == a.keys() | b.keys()
    for token, row in found.items():
        ours, theirs = a.get(token), b.get(token)
        wanted = mean(ours if ours is not None else theirs, theirs if theirs is not None else ours)
        assert torch.equal(row, wanted), token
    tokenizer = has_ids_of_its_rows(out)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the an<|im_end|>").input_ids) == [
        "the", "Ġ", "an", "<|im_end|>"
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["base", "union"])
def test_words_are_part_of_the_memory_that_is_planned(root: Path, source: str) -> None:
    document = {"base": "base", "sources": SOURCES, "tokenizer": {"source": source}}
    plan = small.plan_of(root, document)
    assert plan.vocabulary is not None
    filled = sum(len(table.fills) for table in plan.vocabulary.tables.values())
    words = len(plan.vocabulary.alignment.tokens) if source == "union" else 0
    assert bool(filled) == (source == "union")
    assert plan.demand.kept == 256 * (filled + 2 * words)
    known = sum(len(small.ids_of(root / name)) for name in ("base", "a", "b"))
    assert plan.vocabulary.planning_bytes == 256 * (filled + known)


def test_union_with_a_base_fills_task_vectors_from_it(root: Path) -> None:
    document = {
        "base": "base",
        "sources": SOURCES,
        "steps": ["task_arithmetic"],
        "tokenizer": {"source": "union"},
    }
    out, report = small.merged(root, document)
    base, a, b, found = (small.rows(root / name) for name in ("base", "a", "b", "out"))
    for token, row in found.items():
        had = [model[token] for model in (a, b) if token in model]
        start = base[token] if token in base else mean(*had)
        tasks = [(model.get(token, start if token in base else had[0])) - start for model in (a, b)]
        torch.testing.assert_close(row, start + total(tasks), atol=1e-6, rtol=0, msg=token)
    has_ids_of_its_rows(out)
    told = report.manifest["vocabulary"]
    assert (told["ground"], told["new"], told["tokens"]) == ("base", 4, 265)
    assert told["models"]["a"] == {"own": 263, "filled": 2}


def test_a_sources_vocabulary_comes_with_its_special_ids(root: Path) -> None:
    (root / "b" / "chat_template.jinja").write_text("{{ messages }}")
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "b"}})
    assert (out / "tokenizer.json").read_bytes() == (root / "b" / "tokenizer.json").read_bytes()
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    ids = small.ids_of(root / "b")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [ids["</s>"]], "do_sample": True}
    has_ids_of_its_rows(out)
    a, b, found = (small.rows(root / name) for name in ("a", "b", "out"))
    assert all(torch.equal(found[token], mean(a.get(token, b[token]), b[token])) for token in b)


def test_its_special_ids_are_those_of_its_config_where_it_has_no_generation_config(root: Path) -> None:
    (root / "b" / "generation_config.json").unlink()
    ends = small.ids_of(root / "a")["<|im_start|>"]
    small.write_json(root / "a" / "generation_config.json", {"eos_token_id": ends})
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "b"}})
    told = json.loads((out / "generation_config.json").read_text())
    assert told["eos_token_id"] == small.ids_of(root / "b")["</s>"]


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_generation_config_that_is_none_stays_as_it_is(root: Path, content: str) -> None:
    for name in ("a", "b"):
        (root / name / "generation_config.json").write_text(content, "latin-1")
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "b"}})
    assert (out / "generation_config.json").read_text("latin-1") == content


def test_what_a_decoder_of_sounds_begins_and_ends_with_stays(root: Path) -> None:
    """Musicgen reads words and writes sounds, of which its generation config speaks."""
    for name in ("a", "b"):
        config = json.loads((root / name / "config.json").read_text())
        small.write_json(root / name / "config.json", config | {"decoder": {"vocab_size": 9}})
        small.write_json(root / name / "generation_config.json", {"pad_token_id": 9, "eos_token_id": 2048})
    for chosen in ("b", "union"):
        out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": chosen}}, f"by-{chosen}")
        told = json.loads((out / "generation_config.json").read_text())
        assert told == {"pad_token_id": 9, "eos_token_id": 2048}


def test_the_references_special_ids_move_with_their_tokens(root: Path) -> None:
    """The result has the base's tokens; the config is the first source's, whose ids are others."""
    out, _ = small.merged(root, {"base": "base", "sources": SOURCES[1:], "tokenizer": {"source": "union"}})
    has_ids_of_its_rows(out)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [small.ids_of(root / "base")["</s>"]]


def test_tied_embeddings_are_one_tensor_here_too(tmp_path: Path) -> None:
    small.speaker(tmp_path / "a", tied=True, expert=1)
    small.speaker(tmp_path / "b", tied=True, expert=2, added=(*tiny.SPECIAL, *CHAT))
    out, _ = small.merged(tmp_path, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert HEAD not in small.weights(out)
    has_ids_of_its_rows(out)


def test_padding_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    small.speaker(tmp_path / "a", rows=300, expert=1)
    small.speaker(tmp_path / "b", expert=2)
    padded, _ = small.merged(tmp_path, {"sources": SOURCES, "tokenizer": {"source": "a"}})
    a, b, found = (small.weights(tmp_path / name)[EMBED] for name in ("a", "b", "out"))
    assert torch.equal(found[260:], a[260:])
    assert torch.equal(found[:260], mean(a[:260], b))
    choice = {"source": "a", "pad_to_multiple_of": 64}
    wider, _ = small.merged(tmp_path, {"sources": SOURCES, "tokenizer": choice}, out="wider")
    made = small.weights(wider)[EMBED]
    assert made.shape[0] == 320
    torch.testing.assert_close(made[300:], mean(a[:260].mean(dim=0), b.mean(dim=0)).expand(20, -1))
    assert json.loads((wider / "config.json").read_text())["vocab_size"] == 320
    assert json.loads((padded / "config.json").read_text())["vocab_size"] == 300


def test_rules_for_single_tokens(root: Path) -> None:
    rules = {
        "<|im_end|>": {"source": "b", "force": True},
        "the": {"source": "zero"},
        "<think>": {"source": {"model": "a", "token": "<s>"}},
    }
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "union", "tokens": rules}})
    a, b, found = (small.rows(root / name) for name in ("a", "b", "out"))
    assert torch.equal(found["<|im_end|>"], b["<|im_end|>"])
    assert torch.equal(found["the"], mean(torch.zeros_like(b["the"]), b["the"]))
    assert torch.equal(found["<think>"], a["<s>"])
    tokenizer = has_ids_of_its_rows(out)
    assert tokenizer("<think>").input_ids == [small.ids_of(out)["<think>"]]


@pytest.mark.parametrize("steps", [["linear"], [{"method": "ties", "density": 0.4}]], ids=["linear", "ties"])
def test_bytes_do_not_depend_on_threads_or_memory(root: Path, steps: list[Any]) -> None:
    document = {
        "base": "base", "sources": SOURCES, "steps": steps,
        "tokenizer": {"source": "union", "approximate": "omp", "k": 4},
    }  # fmt: skip
    digests = set()
    for threads, budget in ((1, small.GIB), (3, small.GIB), (2, 1 << 26)):
        out, _ = small.merged(root, document, f"{threads}", threads=threads, budget_bytes=budget)
        digests.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
        assert not list(out.glob(".*")), "nothing of the work is left"
    assert len(digests) == 1


def test_an_adapter_acts_on_the_rows_before_they_move(root: Path) -> None:
    tiny.lora(root / "tuned", {"model.embed_tokens": (263, 16), "lm_head": (263, 16)})
    plain, _ = small.merged(root, {"sources": SOURCES[:1], "tokenizer": {"source": "a"}}, "plain")
    tuned = [{**SOURCES[0], "adapter": "tuned"}]
    alone, _ = small.merged(root, {"sources": tuned}, "alone")
    both = {"sources": [*tuned, SOURCES[1]], "tokenizer": {"source": "b"}, "overrides": [
        {"match": "*", "policy": "source:a"}
    ]}  # fmt: skip
    moved, _ = small.merged(root, both, "moved")
    changed, found, before = small.rows(alone), small.rows(moved), small.rows(plain)
    shared = found.keys() & changed.keys()
    assert len(shared) == 262
    assert all(torch.equal(found[token], changed[token]) for token in shared)
    assert not torch.equal(changed["x"], before["x"])


def test_plans_do_not_depend_on_the_hash_seed(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from merge.__main__ import index_models;"
        "from merge.plan import make_plan; from merge.recipe.recipe import recipe_from;"
        "root = Path(sys.argv[1]);"
        "r = recipe_from({'sources': ['b', 'a'], 'steps': ['linear'], 'tokenizer': {'source': 'union'}});"
        "p = make_plan(r, index_models(r, root), budget=1 << 30);"
        "print(p.digest, [t.text for t in p.vocabulary.alignment.new], 'torch' in sys.modules)"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, str(root)], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1
    assert told.pop().strip().endswith("['<|im_start|>'] False")


def test_a_run_goes_on_with_the_rows_it_had_made(root: Path) -> None:
    document = {"sources": SOURCES, "tokenizer": {"source": "union", "approximate": "omp"}}
    out, _ = small.merged(root, document)
    again, stop = root / "again", iter([False] * 10 + [True] * 1000)
    with pytest.raises(Exception, match="stopped"):
        small.merged(root, document, "again", threads=1, should_stop=lambda: next(stop))
    assert (root / "again.partial" / ".mergery-rows.json").exists()
    small.merged(root, document, "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "mergery.json").read_bytes() == (out / "mergery.json").read_bytes()


def test_a_constant_with_a_column_for_each_token_is_left_out_where_tokens_move(root: Path) -> None:
    """BART and its like have one of zeros, which Transformers makes anew."""
    for name in ("a", "b"):
        tensors = load_file(root / name / "model.safetensors")
        tensors["final_logits_bias"] = torch.zeros(1, len(tensors[EMBED]))
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    plan = small.plan_of(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    assert "final_logits_bias" not in {output.name for output in plan.outputs}
    assert ("buffer_dropped", "final_logits_bias") in {(f.code, f.tensor) for f in plan.findings}


def test_an_older_tokenizer_lends_its_tokens_with_their_merges(root: Path) -> None:
    document = json.loads((root / "b" / "tokenizer.json").read_text())
    (root / "b" / "tokenizer.json").unlink()
    small.write_json(root / "b" / "vocab.json", document["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in document["model"]["merges"])
    (root / "b" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    decoder = {str(each.pop("id")): each for each in document["added_tokens"]}
    small.write_json(root / "b" / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    out, _ = small.merged(root, {"sources": SOURCES, "tokenizer": {"source": "union"}})
    tokenizer = has_ids_of_its_rows(out)
    assert tokenizer.tokenize("the an<|im_end|>") == ["the", "Ġ", "an", "<|im_end|>"]


@pytest.mark.parametrize("other", ["a", "d"])
def test_a_token_that_only_a_config_names_keeps_its_id_and_row(root: Path, other: str) -> None:
    small.speaker(root / "c", added=("<s>", "</s>", "<unk>"), rows=260, expert=3)
    small.speaker(root / "d", added=("<s>", "</s>", "<unk>", *CHAT), expert=4)
    file = root / "c" / "config.json"
    small.write_json(file, json.loads(file.read_text()) | {"pad_token_id": 259})
    sources = [{"id": "c", "model": "c"}, {"id": other, "model": other}]
    out, _ = small.merged(root, {"sources": sources, "tokenizer": {"source": "union"}})
    tokenizer = has_ids_of_its_rows(out)
    assert tokenizer.pad_token_id == 259 and len(tokenizer) == 262 + (other == "a")
    ours, theirs = small.weights(root / "c")[EMBED][259], small.rows(root / other).get("<pad>")
    assert torch.equal(small.rows(out)["<pad>"], mean(ours, ours if theirs is None else theirs))


def test_tokens_that_only_settings_list_are_tokens_of_a_union(root: Path) -> None:
    """Both have 259 tokens and rows to spare: one calls the next token [P], the other <e> and <f>."""
    for name, expert in (("c", 3), ("d", 4)):
        small.speaker(root / name, added=("<s>", "</s>", "<unk>"), rows=262, expert=expert)
    config = {"pad_token": "[P]", "tokenizer_class": "PreTrainedTokenizerFast"}
    small.write_json(root / "c" / "tokenizer_config.json", config)
    listed = {"extra_special_tokens": ["<e>", "<f>"], "tokenizer_class": "PreTrainedTokenizerFast"}
    small.write_json(root / "d" / "tokenizer_config.json", listed)
    sources = [{"id": "c", "model": "c"}, {"id": "d", "model": "d"}]
    out, _ = small.merged(root, {"sources": sources, "tokenizer": {"source": "union"}})
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    ids = {"[P]": 259, "<e>": 260, "<f>": 261}
    assert ids.items() <= tokenizer.get_vocab().items()
    ours, theirs = small.weights(root / "c")[EMBED], small.weights(root / "d")[EMBED]
    found = small.weights(out)[EMBED]
    assert torch.equal(found[259], ours[259])
    assert torch.equal(found[260:], theirs[259:261])
