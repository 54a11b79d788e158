"""Tokens and ids out of every form a tokenizer is written in, and out of hostile ones."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertweetTokenizer, PhobertTokenizer

from merge.checkpoint.tokenizer import tokenizer_facts
from merge.checkpoint.vocabulary import (
    MAX_TOKEN_CHARS,
    Vocabulary,
    check_vocabulary,
    differences,
    read_vocabulary,
)
from merge.file_errors import FileRefused, TextInvalid, VocabularyInvalid

UNKNOWN = {"__type": "AddedToken", "content": "[U]", "lstrip": False}


def fast(vocab: Any, *added: tuple[str, Any], **model: Any) -> dict[str, bytes]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    listed = [{"id": number, "content": token, **flags} for token, number in added]
    return {
        "tokenizer.json": json.dumps({"model": {"vocab": vocab, **model}, "added_tokens": listed}).encode()
    }


def read(texts: dict[str, bytes]) -> Vocabulary:
    found = read_vocabulary(texts)
    assert found is not None
    assert Vocabulary.unpack(found.pack()) == found
    return found


def piece(text: str, kind: int = 1) -> bytes:
    body = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", -1.0)
    body += b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


def test_tokenizer_json_of_all_kinds() -> None:
    found = read(fast({"a": 0, "b": 1}, ("<s>", 2), merges=[], byte_fallback=True))
    assert (found.kind, found.byte_fallback, found.size) == ("BPE", True, 3)
    assert found.tokens == {"a": 0, "b": 1, "<s>": 2}
    assert [(token.text, token.id, token.special) for token in found.added] == [("<s>", 2, True)]
    pieces = read(fast([["<unk>", 0.0], ["a", -1.0]], unk_id=0))
    assert (pieces.kind, dict(pieces.tokens)) == ("Unigram", {"<unk>": 0, "a": 1})
    assert read(fast({"[UNK]": 0}, type="WordPiece")).kind == "WordPiece"


def test_a_vocab_json_with_what_stands_beside_it() -> None:
    decoder = {"3": {"content": "<pad>", "special": True}}
    texts = {
        "vocab.json": b'{"a": 0, "b": 1}', "merges.txt": b"#version\n",
        "added_tokens.json": b'{"<s>": 2}',
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": decoder, "eos_token": "<s>"}).encode(),
        "special_tokens_map.json": b'{"pad_token": {"content": "<pad>"}}',
    }  # fmt: skip
    found = read(texts)
    assert (found.kind, found.tokens) == ("BPE", {"a": 0, "b": 1, "<s>": 2, "<pad>": 3})
    assert found.late == ()


def test_tokens_of_the_settings_alone_get_the_ids_that_transformers_gives_them(tmp_path: Path) -> None:
    vocab, decoder = {"a": 0, "b": 1}, {"7": {"content": "<y>"}, "3": {"content": "<x>", "lstrip": True}}
    named: dict[str, Any] = {"pad_token": "[P]", "image_token": "<i>", "unk_token": UNKNOWN}
    settings: list[dict[str, Any]] = [
        {"added_tokens_decoder": decoder, **named, "extra_special_tokens": ["<e>", "[P]"]},
        {"extra_special_tokens": {"video_token": "<v>"}, "bos_token": "<s>"},
        {"additional_special_tokens": ["<e>"], **named},
    ]
    beside = {"special_tokens_map.json": {"pad_token": "[Q]"}, "added_tokens.json": {"<z>": 9, "<e>": 4}}
    for number, config in enumerate(settings):
        files = fast(vocab, ("<s>", 2), type="BPE", merges=[])
        config["tokenizer_class"] = "TokenizersBackend"
        files["tokenizer_config.json"] = json.dumps(config).encode()
        files |= {name: json.dumps(each).encode() for name, each in beside.items()}
        for name, raw in files.items():
            (tmp_path / name).write_bytes(raw)
        loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
        assert read(files).loaded(99).tokens == loaded.get_vocab(), number
    assert read(files).loaded(4).tokens.keys() == {"a", "b", "<s>", "<e>"}, "those that have a row"


def test_beside_a_binary_model_only_tokens_with_a_part_come_late() -> None:
    settings = {"pad_token": "[P]", "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]}
    found = read({"spiece.model": piece("a"), "tokenizer_config.json": json.dumps(settings).encode()})
    assert [token.text for token in found.late] == ["[P]"], "T5 counts the others backwards"


def test_late_tokens_of_a_map_with_holes() -> None:
    settings = {"tokenizer_config.json": b'{"pad_token": "[P]", "eos_token": "[E]"}'}

    def late(texts: dict[str, bytes]) -> list[tuple[str, int]]:
        found = read(texts | settings)
        check_vocabulary(found, "m")
        return [(token.text, token.id) for token in found.late]

    assert late(fast({"a": 0, "b": 1, "c": 4}, ("c", 4))) == [("[E]", 5), ("[P]", 6)]
    assert late(fast({"a": 0, "b": 1, "c": 4}, ("c", 4), ("<x>", 5))) == [("[E]", 6), ("[P]", 7)]
    assert late(fast({"a": 0, "b": 1, "c": 4})) == [("[E]", 3)], "4 is taken"


def test_a_vocab_txt_is_a_token_a_line() -> None:
    found = read({"vocab.txt": "[PAD]\n##x\nä\n".encode()})
    assert (found.kind, found.tokens) == ("WordPiece", {"[PAD]": 0, "##x": 1, "ä": 2})


def test_the_pieces_of_a_sentencepiece_model_are_read_from_its_bytes() -> None:
    trainer = b"\x12\x03abc"  # another field, which is passed over
    raw = piece("<unk>", 2) + piece("<s>", 3) + trainer + piece("▁the") + piece("<0xC3>", 6)
    found = read({"tokenizer.model": raw})
    assert found.tokens == {"<unk>": 0, "<s>": 1, "▁the": 2, "<0xC3>": 3}
    assert (found.kind, found.byte_fallback, found.added[0].text) == ("SentencePiece", True, "<s>")
    assert found.meanings()[b" the"] == 2
    assert found.meanings()[b"\xc3"] == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",
        b"\x0a\xff\xff\xff\x7fx",
        b"\xff" * 20,
        b"\x0b",
        piece("a") + piece("a"),
        b"\x0a\x03\x0a\x01\xff",
    ],
)
def test_a_binary_model_that_cannot_be_read_has_no_vocabulary_and_no_size(raw: bytes) -> None:
    facts = tokenizer_facts({"tokenizer.model": raw})
    assert facts is not None
    assert (facts.vocabulary(), facts.vocab_size) == (None, None)


def test_meanings_undo_the_spelling() -> None:
    found = read(fast({"Ġthe": 0, "Ã": 1, "ĊĊ": 2, "a": 3}, ("<|x|> y", 4)))
    assert found.spelling == "bytes"
    assert found.meanings() == {b" the": 0, b"\xc3": 1, b"\n\n": 2, b"a": 3, b"<|x|> y": 4}
    assert found.meaning("Ġthe") == b" the"


@pytest.mark.parametrize(
    ("vocab", "added", "said"),
    [
        ({"a": 0, "b": 0}, (), "share id 0"),
        ({"a" * (MAX_TOKEN_CHARS + 1): 0}, (), "characters"),
        ({"a\ud800": 0}, (), "surrogate"),
        ({"a": 0}, (("<\x1b[31m>", 1),), "control character"),
        ({"a": 0}, (("", 1),), "is empty"),
        ({"a": 0, "b": 900_000}, (), "nearly all are holes"),
        ({"a": 0}, (("<s>", 7),), "an id that it will not have"),
        ({"a": 0, "<s>": 1}, (("<s>", 2),), "an id that it will not have"),
        ({"a": 0}, (("<s>", 1), ("<s>", 2)), "an id that it will not have"),
    ],
)
def test_what_cannot_be_lined_up_is_refused_by_name(vocab: Any, added: Any, said: str) -> None:
    with pytest.raises(VocabularyInvalid, match=said) as caught:
        check_vocabulary(read(fast(vocab, *added)), "org/m")
    assert str(caught.value).startswith("org/m: ")


def test_control_characters_in_plain_tokens_are_real_life() -> None:
    check_vocabulary(read(fast({"\n": 0, "\x01": 1}, ("\n\n", 2))), "org/m")


@pytest.mark.parametrize(
    "texts",
    [
        fast({"a": -1}), fast({"a": 1.5}), fast({"a": True}), fast({"a": 1 << 40}), fast("a"), fast(None),
        fast({"a": 0}, ("<s>", "1")), fast({"a": 0}, ("<s>", -1)),
        {"tokenizer.json": b"{}"}, {"vocab.json": b'{"a": 0, "a": 1}'}, {"vocab.json": b"[]"},
        {"vocab.json": b"{}", "added_tokens.json": b'{"x": null}'}, {"tokenizer.json": b"[" * 100_000},
    ],
)  # fmt: skip
def test_a_file_that_maps_no_tokens_to_ids_is_refused(texts: dict[str, bytes]) -> None:
    with pytest.raises(FileRefused):
        read_vocabulary(texts)


def test_more_tokens_than_anybody_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge.checkpoint.vocabulary.MAX_TOKENS", 3)
    with pytest.raises(TextInvalid, match="at most 3"):
        read_vocabulary(fast({"a": 0, "b": 1, "c": 2, "d": 3}))


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"chat_template": "{{ x }}"}, "{{ x }}"),
        ({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": ""}, None),
        ({}, None),
    ],
)
def test_the_chat_template_is_read(config: dict[str, Any], template: str | None) -> None:
    facts = tokenizer_facts(fast({"a": 0}) | {"tokenizer_config.json": json.dumps(config).encode()})
    assert facts is not None
    assert facts.chat_template == template


def test_differences_are_told_with_an_example() -> None:
    ours, theirs = read(fast({"a": 0, "b": 1})), read(fast({"a": 0, "c": 1, "d": 2}))
    assert differences(ours, theirs) == "1 ids mean another token: 1 is 'c', not 'b'"
    assert "3 tokens against 2" in differences(ours, read(fast({"a": 0, "b": 1, "c": 2})))


def test_words_that_come_with_their_counts_follow_four_tokens(tmp_path: Path) -> None:
    """As PhoBERT and BERTweet have them: whole lines were taken for tokens, from id 0 on."""
    texts = {"vocab.txt": b"a 42\nb@@ 7\nab 3\n", "bpe.codes": b"a b 5\n", "tokenizer_config.json": b"{}"}
    for name, raw in texts.items():
        (tmp_path / name).write_bytes(raw)
    for kind in (PhobertTokenizer, BertweetTokenizer):
        loaded = kind.from_pretrained(tmp_path, local_files_only=True)
        settings = {"mask_token": "<mask>", "unk_token": {"content": "<unk>"}}
        found = read(texts | {"tokenizer_config.json": json.dumps(settings).encode()})
        assert (found.kind, found.loaded(9).tokens) == ("BPE", loaded.get_vocab())
    assert read({"vocab.txt": b"a 42\nb\n"}).kind == "WordPiece"
