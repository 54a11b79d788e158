"""Enough about a tokenizer to tell whether two models speak the same vocabulary."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.checkpoint.header import parse_json_object
from merge.errors import TextInvalid

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class TokenizerFacts:
    """``vocab_size`` is one more than the largest token id (``None`` where only a binary model tells it).

    ``digest`` covers the map of tokens to ids, however it is written down: equal digests, equal vocabularies.
    """

    vocab_size: int | None
    digest: str
    files: tuple[str, ...]
    has_chat_template: bool


def tokenizer_facts(texts: Mapping[str, bytes]) -> TokenizerFacts | None:
    """Facts from the small files of a model; ``None`` where it has no tokenizer."""
    files = tuple(sorted(name for name in TOKENIZER_FILES if name in texts))
    vocabulary = next((name for name in _VOCABULARIES if name in texts), None)
    if vocabulary is None:
        return None
    config = parse_json_object("tokenizer_config.json", texts.get("tokenizer_config.json", b"{}"))
    template = "chat_template.jinja" in texts or bool(config.get("chat_template"))
    if vocabulary.endswith(".model"):
        return TokenizerFacts(None, hashlib.sha256(texts[vocabulary]).hexdigest(), files, template)
    tokens = _tokens(vocabulary, texts)
    listed = json.dumps(sorted(tokens.items()), separators=(",", ":")).encode()
    size = max(tokens.values(), default=-1) + 1
    return TokenizerFacts(size, hashlib.sha256(listed).hexdigest(), files, template)


def _tokens(file: str, texts: Mapping[str, bytes]) -> dict[str, int]:
    raw = texts[file]
    if file == "vocab.txt":
        found: Any = {line: at for at, line in enumerate(raw.decode("utf-8", "replace").splitlines())}
    elif file == "vocab.json":
        found = parse_json_object(file, raw)
    else:
        found = _fast_tokens(parse_json_object(file, raw))
    if file != "tokenizer.json" and "added_tokens.json" in texts and isinstance(found, dict):
        found = {**found, **parse_json_object("added_tokens.json", texts["added_tokens.json"])}
    if not isinstance(found, dict) or not all(
        type(value) is int and 0 <= value < 1 << 31 for value in found.values()
    ):
        raise TextInvalid(f"{file} does not map tokens to whole numbers.")
    return found


def _fast_tokens(document: dict[str, Any]) -> Any:
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        vocabulary = {
            str(item[0]): at for at, item in enumerate(vocabulary) if isinstance(item, list) and item
        }
    if not isinstance(vocabulary, dict):
        return None
    added = document.get("added_tokens")
    tokens = dict(vocabulary)
    for item in added if isinstance(added, list) else []:
        if isinstance(item, dict) and isinstance(item.get("content"), str):
            tokens[item["content"]] = item.get("id")
    return tokens
