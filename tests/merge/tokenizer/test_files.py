"""The written tokenizer: loaded by the libraries people use, every token has the id of its row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from merge.checkpoint.tokenizer import READER_FILES
from merge.checkpoint.vocabulary import read_vocabulary
from merge.file_errors import VocabularyInvalid
from merge.tokenizer.align import NewToken
from merge.tokenizer.files import with_new_tokens

SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
MARK = NewToken("<|im_start|>", 5, "b", SPECIAL)


def added(token: str, number: int) -> dict[str, Any]:
    return {"id": number, "content": token, **SPECIAL}


def document(model: dict[str, Any], *tokens: dict[str, Any]) -> dict[str, Any]:
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", **dict.fromkeys(parts), "added_tokens": list(tokens), "model": model}


def bpe(*, merges: list[Any], **vocab: int) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocab, "merges": merges}


def written(ground: dict[str, Any], new: list[NewToken], **origins: dict[str, Any]) -> Tokenizer:
    """What the tokenizers library makes of the result; its ids are those that were asked for."""
    raw = {key: json.dumps(each).encode() for key, each in origins.items()}
    files = with_new_tokens({"tokenizer.json": json.dumps(ground).encode()}, new, raw)
    loaded = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert {token.text: loaded.token_to_id(token.text) for token in new} == {t.text: t.id for t in new}
    old = read_vocabulary({"tokenizer.json": json.dumps(ground).encode()})
    assert old is not None
    for token, number in old.tokens.items():
        assert loaded.token_to_id(token) == number, "what was there keeps its id"
    return loaded


GROUND = document(bpe(a=0, b=1, c=2, ab=3, merges=[["a", "b"]]), added("<s>", 4))


def test_an_added_token_follows_the_others_and_is_cut_out_of_text() -> None:
    assert written(GROUND, [MARK]).encode("ab<|im_start|>c<s>").ids == [3, 5, 2, 4]


def test_a_plain_token_brings_its_merges_after_those_that_are_there() -> None:
    other = document(bpe(a=0, b=1, c=2, bc=3, abc=4, merges=["b c", "a bc"]))
    new = [NewToken("bc", 5, "b", None), NewToken("abc", 6, "b", None), NewToken("<x>", 7, "b", SPECIAL)]
    loaded = written(GROUND, new, b=other)
    assert loaded.encode("bc<x>").ids == [5, 7]
    assert loaded.encode("abc").ids == [3, 2], "a+b comes first, as before"


@pytest.mark.parametrize("number", [5, 9])
def test_holes_in_the_ids_are_kept(number: int) -> None:
    ground = document(bpe(a=0, b=1, c=4, merges=[]))
    loaded = written(ground, [NewToken("<x>", number, None, SPECIAL)])
    assert loaded.encode("c<x>").ids == [4, number]


def test_merges_keep_the_spelling_of_the_file() -> None:
    ground = document(bpe(a=0, b=1, c=2, ab=3, merges=["a b"]))
    other = document(bpe(b=0, c=1, bc=2, merges=[["b", "c"]]))
    raw = {"tokenizer.json": json.dumps(ground).encode()}
    made = with_new_tokens(raw, [NewToken("bc", 4, "b", None)], {"b": json.dumps(other).encode()})
    assert json.loads(made["tokenizer.json"])["model"]["merges"] == ["a b", "b c"]


def test_a_unigram_model_lists_pieces_and_added_tokens_by_id() -> None:
    def unigram(*pieces: Any) -> dict[str, Any]:
        return {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *pieces], "byte_fallback": False}

    ground = document(unigram(["a", -1.0], ["b", -1.5]), added("<s>", 3))
    other = document(unigram(["ab", -0.5]))
    new = [NewToken("ab", 4, "b", None), NewToken("<x>", 5, "b", SPECIAL)]
    assert written(ground, new, b=other).encode("ab<x>b<s>").ids == [4, 5, 2, 3]


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece"])
def test_word_models_get_new_words(kind: str) -> None:
    extra = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    model = {"type": kind, "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1}}
    ground = document(model | (extra if kind == "WordPiece" else {}))
    ground["pre_tokenizer"] = {"type": "Whitespace"}
    loaded = written(ground, [NewToken("b", 2, "b", None), NewToken("<x>", 3, "b", SPECIAL)])
    assert loaded.encode("a b <x> c").ids == [1, 2, 3, 0]


def test_the_files_beside_it_know_the_added_tokens_too() -> None:
    files = {
        "tokenizer.json": json.dumps(GROUND).encode(),
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"4": {"content": "<s>"}}}).encode(),
        "tokenizer.model": b"binary",
        "vocab.json": b"{}",
        "merges.txt": b"",
        "chat_template.jinja": b"{{ x }}",
    }
    made = with_new_tokens(files, [MARK], {})
    assert json.loads(made["added_tokens.json"]) == {"<|im_start|>": 5}
    decoder = json.loads(made["tokenizer_config.json"])["added_tokens_decoder"]
    assert decoder == {"4": {"content": "<s>"}, "5": {"content": "<|im_start|>", **SPECIAL}}
    assert made["tokenizer.model"] == b"binary"
    assert made["chat_template.jinja"] == b"{{ x }}"
    plain = with_new_tokens(files, [NewToken("cc", 5, None, None)], {})
    assert not {"vocab.json", "merges.txt"} & plain.keys(), "they would tell another vocabulary"


def test_an_id_that_the_file_cannot_give_is_refused() -> None:
    ground = document({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]})
    with pytest.raises(VocabularyInvalid, match="cannot follow"):
        with_new_tokens({"tokenizer.json": json.dumps(ground).encode()}, [MARK], {})


def test_every_file_that_transformers_makes_tokens_with_is_kept() -> None:
    """Marian's ``source.spm``, PhoBERT's ``bpe.codes`` and the like stayed behind."""
    texts = [file.read_text() for file in Path(transformers.__path__[0]).glob("models/*/tokenization_*.py")]
    listed = [found for text in texts for found in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", text, re.S)]
    names = {name for each in listed for name in re.findall(r': "([^"]+)"', each)}
    assert {"source.spm", "bpe.codes", "tokenizer.json"} <= names <= {*READER_FILES}
