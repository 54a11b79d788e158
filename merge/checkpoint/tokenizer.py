"""Enough about a tokenizer to tell whether two models speak the same vocabulary."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from merge.checkpoint.header import parse_json_object
from merge.checkpoint.vocabulary import VOCABULARY_FILES, Vocabulary, read_vocabulary

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


@dataclass(frozen=True)
class TokenizerFacts:
    """``vocab_size`` is one more than the largest token id (``None`` where only a binary model tells it).

    ``digest`` covers the map of tokens to ids, however it is written down: equal digests, equal vocabularies.
    ``packed`` is the vocabulary itself (empty where it cannot be read).
    """

    vocab_size: int | None
    digest: str
    files: tuple[str, ...]
    chat_template: str | None
    packed: bytes = field(repr=False, default=b"")

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer says how a conversation is written."""
        return self.chat_template is not None

    def vocabulary(self) -> Vocabulary | None:
        """The tokens and their ids; ``None`` where only a binary model tells them."""
        return Vocabulary.unpack(self.packed) if self.packed else None


def tokenizer_facts(texts: Mapping[str, bytes]) -> TokenizerFacts | None:
    """Facts from the small files of a model; ``None`` where it has no tokenizer."""
    files = tuple(sorted(name for name in TOKENIZER_FILES if name in texts))
    file = next((name for name in VOCABULARY_FILES if name in texts), None)
    if file is None:
        return None
    template = _chat_template(texts)
    found = read_vocabulary(texts)
    if found is None:
        return TokenizerFacts(None, hashlib.sha256(texts[file]).hexdigest(), files, template)
    listed = json.dumps(sorted(found.tokens.items()), separators=(",", ":")).encode()
    return TokenizerFacts(found.size, hashlib.sha256(listed).hexdigest(), files, template, found.pack())


def _chat_template(texts: Mapping[str, bytes]) -> str | None:
    """The file's, else the configuration's; of several named ones the one called default."""
    if "chat_template.jinja" in texts:
        return texts["chat_template.jinja"].decode("utf-8", "replace")
    config = parse_json_object("tokenizer_config.json", texts.get("tokenizer_config.json", b"{}"))
    found: Any = config.get("chat_template")
    if isinstance(found, list):
        named = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) and found else None
