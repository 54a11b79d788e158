"""A model gets a donor's vocabulary: rows it has stay, the others are made of rows it has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge.errors import PlanRefused, RecipeInvalid
from merge.recipe.recipe import recipe_from
from tests import tiny
from tests.merge.tokenizer import small
from tests.merge.tokenizer.small import EMBED, HEAD
from tests.merge.tokenizer.small import donated as recipe

METHODS = (
    "omp", "common_interpolation", "landmark_pca", "stb", "mp_rope", "subword", "mean", "zero", "random",
    "john_hewitt",
)  # fmt: skip
NEW = ("the", "an", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model, and a wider donor with more merges, a chat format and its special tokens elsewhere."""
    small.speaker(tmp_path / "m", merges=[("t", "h")], expert=1)
    added = (*NEW[2:], *tiny.SPECIAL)
    merges = [("a", "n"), ("t", "h"), ("th", "e")]
    small.speaker(tmp_path / "donor", merges=merges, added=added, expert=2, hidden=32)
    return tmp_path


@pytest.mark.parametrize("method", ["mean", "random", "john_hewitt"])
def test_ways_that_ask_no_donor_need_no_shared_tokens_and_none_of_its_weights(
    root: Path, method: str
) -> None:
    donor = json.loads((root / "donor" / "tokenizer.json").read_text())
    vocab = {f"{token}~{at}": at for token, at in small.ids_of(root / "donor").items()}
    small.write_json(root / "donor" / "tokenizer.json",
                     donor | {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": next(iter(vocab))},
                              "added_tokens": []})  # fmt: skip
    plan = small.plan_of(root, recipe(method))
    assert plan.vocabulary is not None and plan.vocabulary.tensors_read("donor") == {}
    out, _ = small.merged(root, recipe(method))
    rows = small.rows(out)
    assert (len({tuple(row.tolist()) for row in rows.values()}) == 1) is (method == "mean")


def combine(root: Path, tensor: str) -> None:
    """Makes two of the donor's new tokens of few shared ones."""
    rows = small.rows(root / "donor", tensor)
    values = {"the": 0.5 * rows["x"] - 2 * rows["y"] + 0.25 * rows["th"], "an": rows["q"]}
    small.set_rows(root / "donor", values, tensor)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_speaks_the_donors_language_and_keeps_the_models_rows(root: Path, method: str) -> None:
    out, report = small.merged(root, recipe(method))
    for tensor in (EMBED, HEAD):
        ours, found = small.rows(root / "m", tensor), small.rows(out, tensor)
        assert found.keys() - ours.keys() == set(NEW)
        assert all(torch.equal(found[token], row) for token, row in ours.items() if token in found)
        assert all(torch.isfinite(found[token]).all() for token in NEW)
    assert (out / "tokenizer.json").read_bytes() == (root / "donor" / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert (model.config.vocab_size, model.config.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert report.manifest["inputs"].keys() == {"m", "donor"}


@pytest.mark.parametrize("tensor", [EMBED, HEAD])
def test_pursuit_reproduces_what_the_donor_makes_of_shared_tokens(root: Path, tensor: str) -> None:
    combine(root, tensor)
    out, report = small.merged(root, recipe("omp"))
    ours, found = small.rows(root / "m", tensor), small.rows(out, tensor)
    wanted = 0.5 * ours["x"] - 2 * ours["y"] + 0.25 * ours["th"]
    torch.testing.assert_close(found["the"], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["an"], ours["q"], atol=1e-5, rtol=1e-5)
    told = {each["tensor"]: each for each in report.manifest["vocabulary"]["made"]}
    assert (told[tensor]["method"], told[tensor]["shared"], told[tensor]["rows"]) == ("omp", 261, 4)
    assert 0 < told[tensor]["error_mean"] < told[tensor]["error_max"] < 1


def test_a_donor_whose_row_is_a_shared_one_gives_that_row(root: Path) -> None:
    combine(root, EMBED)
    out, _ = small.merged(root, recipe("common_interpolation"))
    torch.testing.assert_close(small.rows(out)["an"], small.rows(root / "m")["q"], atol=1e-6, rtol=0)


def test_plain_methods_against_their_definitions(root: Path) -> None:
    ours = small.rows(root / "m")
    every = small.weights(root / "m")[EMBED]
    made = {name: small.rows(small.merged(root, recipe(name), name)[0]) for name in METHODS}
    torch.testing.assert_close(made["mean"]["the"], every.mean(dim=0))
    assert not made["zero"]["the"].any()
    torch.testing.assert_close(made["subword"]["the"], (ours["th"] + ours["e"]) / 2)
    marks = torch.stack([ours[char] for char in "<|im_end|>"])
    torch.testing.assert_close(made["subword"]["<|im_end|>"], marks.mean(dim=0))
    assert 0.3 < float(made["random"]["the"].std() / every.std()) < 3
    assert float((made["john_hewitt"]["the"] - every.mean(dim=0)).norm()) < 0.1
    assert not torch.equal(made["john_hewitt"]["the"], made["john_hewitt"]["an"])


def test_draws_follow_the_seed(root: Path) -> None:
    one, other = (
        small.rows(small.merged(root, {**recipe("random"), "seed": seed}, f"{seed}")[0])["the"]
        for seed in (1, 2)
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True)])
def test_a_head_of_its_own_or_not(tmp_path: Path, ours: bool, theirs: bool) -> None:
    small.speaker(tmp_path / "m", tied=ours, expert=1)
    small.speaker(tmp_path / "donor", tied=theirs, added=(*tiny.SPECIAL, "<new>"), expert=2, hidden=32)
    rows = small.rows(tmp_path / "donor")
    small.set_rows(tmp_path / "donor", {"<new>": rows["q"] - rows["r"]}, EMBED)
    out, _ = small.merged(tmp_path, recipe("omp"))
    assert (HEAD in small.weights(out)) is not ours
    for tensor in (EMBED,) if ours else (EMBED, HEAD):
        had, found = small.rows(tmp_path / "m", tensor), small.rows(out, tensor)
        torch.testing.assert_close(found["<new>"], had["q"] - had["r"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [True, False])
def test_a_donor_of_another_architecture_is_understood_by_the_part_of_its_tensors(
    tmp_path: Path, head: bool
) -> None:
    small.speaker(tmp_path / "m", expert=1)
    names = {"embed": "gpt_neox.embed_in.weight"} | ({"head": "embed_out.weight"} if head else {})
    config = {"model_type": "gpt_neox", "vocab_size": 261, "hidden_size": 24, "tie_word_embeddings": not head}
    tiny.write_model(tmp_path / "donor", config, dict.fromkeys(names.values(), (261, 24)), expert=2)
    tiny.write_tokenizer(tmp_path / "donor", extra=["<new>"])
    for part, name in names.items():
        rows = small.rows(tmp_path / "donor", name)
        small.set_rows(tmp_path / "donor", {"<new>": rows["q"] if part == "embed" else rows["r"]}, name)
    out, _ = small.merged(tmp_path, recipe("omp"))
    for tensor, token in ((EMBED, "q"), (HEAD, "r" if head else "q")):
        had, found = small.rows(tmp_path / "m", tensor), small.rows(out, tensor)
        torch.testing.assert_close(found["<new>"], had[token], atol=1e-5, rtol=1e-5)


def test_all_sources_of_a_merge_are_transplanted_alike(root: Path) -> None:
    combine(root, EMBED)
    small.speaker(root / "n", merges=[("t", "h")], expert=3)
    document = recipe("omp") | {"steps": ["linear"]}
    document["sources"] = [*document["sources"], {"id": "n", "model": "n"}]
    small.merged(root, document)
    m, n, found = (small.rows(root / name) for name in ("m", "n", "out"))
    torch.testing.assert_close(found["an"], (m["q"] + n["q"]) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["th"], (m["th"] + n["th"]) / 2)


def test_sources_lend_to_each_other_too(tmp_path: Path) -> None:
    small.speaker(tmp_path / "a", expert=1)
    small.speaker(tmp_path / "b", added=(*tiny.SPECIAL, "<new>"), expert=2)
    rows = small.rows(tmp_path / "b")
    small.set_rows(tmp_path / "b", {"<new>": rows["q"] * 3}, EMBED)
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
    choice = {"source": "union", "approximate": "omp"}
    out, _ = small.merged(tmp_path, {"sources": sources, "tokenizer": choice})
    wanted = (3 * small.rows(tmp_path / "a")["q"] + small.rows(tmp_path / "b")["<new>"]) / 2
    torch.testing.assert_close(small.rows(out)["<new>"], wanted, atol=1e-5, rtol=1e-5)


def test_another_spelling_is_understood(tmp_path: Path) -> None:
    """The donor marks words as SentencePiece does, the model has a character for every byte."""
    small.speaker(tmp_path / "m", merges=[("Ġ", "t")], expert=1)
    small.speaker(tmp_path / "donor", expert=2, hidden=32)
    file = tmp_path / "donor" / "tokenizer.json"
    document = json.loads(file.read_text())
    tokens = [
        "▁",
        "▁t",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁ta",
        *(f"<0x{code:02X}>" for code in range(128, 256)),
    ]
    document["model"] |= {"vocab": {token: at for at, token in enumerate(tokens)}, "merges": []}
    document["added_tokens"] = []
    small.write_json(file, document)
    out, _ = small.merged(tmp_path, recipe("subword"))
    ours, found = small.rows(tmp_path / "m"), small.rows(out)
    assert torch.equal(found["▁t"], ours["Ġt"])
    assert torch.equal(found["<0xC3>"], ours["Ã"])
    torch.testing.assert_close(found["▁ta"], (ours["Ġt"] + ours["a"]) / 2)


def test_nothing_shared_and_too_little_memory_are_told(root: Path) -> None:
    file = root / "donor" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"] |= {"vocab": {f"ж{at}": at for at in range(259)}, "merges": []}
    for each in document["added_tokens"]:
        each["content"] = "ж" + each["content"]
    small.write_json(file, document)
    with pytest.raises(PlanRefused, match="share no token"):
        small.plan_of(root, recipe("omp"))


def test_the_plan_counts_the_rows_that_are_made(root: Path) -> None:
    plan = small.plan_of(root, recipe("omp"))
    assert plan.summary()["vocabulary"]["models"]["m"] == {"own": 261, "filled": 0, "omp": 4}
    small_plan = small.plan_of(root, recipe("zero"))
    assert plan.estimate.disk_bytes - small_plan.estimate.disk_bytes == 2 * 4 * 16 * 4
    lent = plan.weight_files("donor")
    assert lent == ("model.safetensors",)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"source": "donor", "donor": "x"}, "say how rows are made"),
        ({"source": "m0", "donor": "x"}, "needs source: donor"),
        ({"source": "donor"}, "no source 'donor'"),
        ({"approximate": "omp"}, "needs a source"),
        ({"source": "m0", "approximate": "opm"}, "did you mean omp"),
        ({"source": "m0", "k": 0}, "/tokenizer/k"),
        ({"source": "m0", "tokens": {"x": {"source": "donor"}}}, "no source 'donor'"),
        ({"source": "m0", "tokens": {"x": {"source": {"model": "m0"}}}}, "exactly one of token and token_id"),
        ({"source": "m0", "tokens": {"x": {"forced": True}}}, "did you mean force"),
        ({"source": "m0", "tokens": {"a\x00": {}}}, "NUL"),
    ],
)
def test_sections_that_make_no_sense_are_refused(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from({"sources": ["a"], "steps": ["linear"], "tokenizer": choice})
    assert any(said in finding.message for finding in caught.value.findings)


def test_token_texts_keep_their_spaces_and_models_can_be_renamed() -> None:
    tokens = {" x": {"source": {"model": "m0", "token": " y "}}, "\n": {"source": "zero"}}
    choice = {"source": "donor", "donor": "d", "approximate": "omp", "tokens": tokens}
    made = recipe_from({"sources": ["a"], "steps": ["linear"], "tokenizer": choice})
    assert list(made.tokenizer.tokens) == [" x", "\n"]
    assert made.tokenizer.tokens[" x"].source.token == " y "  # type: ignore[union-attr]
    renamed = made.renamed({"donor": "d@1", "m0": "a@2"})
    assert (renamed.tokenizer.donor, renamed.sources[0].model, renamed.base) == ("d@1", "a@2", None)


def test_rows_that_are_turned_need_heads_of_pairs(root: Path) -> None:
    for name in ("m", "donor"):
        config = json.loads((root / name / "config.json").read_text())
        small.write_json(root / name / "config.json", config | {"num_attention_heads": 3})
    with pytest.raises(PlanRefused, match="no whole number of heads of pairs; choose omp"):
        small.plan_of(root, recipe("mp_rope"))


def test_a_longer_token_may_take_the_row_of_its_longest_known_beginning(root: Path) -> None:
    out, report = small.merged(root, recipe("zero", prefix_match=True))
    ours, found = small.rows(root / "m"), small.rows(out)
    assert torch.equal(found["the"], ours["th"]) and torch.equal(found["an"], ours["a"])
    assert not found["<|im_start|>"].any()  # special tokens have no beginnings
    assert report.manifest["vocabulary"]["models"]["m"]["filled"] == 4


def test_a_single_byte_may_take_the_row_of_the_same_byte(tmp_path: Path) -> None:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    for name, more in (("m", ()), ("donor", ("A", "B", "▁AB"))):
        vocab = {text: at for at, text in enumerate([*pieces, "▁", *more])}
        small.speaker(tmp_path / name, rows=len(vocab) + 4, first_added=len(vocab), expert=len(more))
        document = json.loads((tmp_path / name / "tokenizer.json").read_text())
        document["model"] |= {"vocab": vocab, "merges": [], "byte_fallback": True}
        document["pre_tokenizer"] = None
        blank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        document["decoder"] = {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}]}
        document["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        small.write_json(tmp_path / name / "tokenizer.json", document)
    found = {}
    for both in (False, True):
        out, _ = small.merged(tmp_path, recipe("zero", byte_match=True, prefix_match=both), f"out{both}")
        found[both] = small.rows(out)
    ours = small.rows(tmp_path / "m")
    assert torch.equal(found[False]["A"], ours["<0x41>"]) and not found[False]["▁AB"].any()
    assert not found[True]["▁AB"].any()  # " A" is no token of the model, and a lone blank is no beginning
