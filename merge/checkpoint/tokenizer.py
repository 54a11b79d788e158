"""Enough about a tokenizer to tell whether two models speak the same vocabulary."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
READER_FILES = (
    *TOKENIZER_FILES, "bpe.codes", "byte_maps.json", "chat_template.json", "dict.txt", "emoji.json",
    "entity_vocab.json", "image_processor_config.json", "normalizer.json", "preprocessor_config.json",
    "processor_config.json", "prophetnet.tokenizer", "sentencepiece.bpe.model", "sentencepiece.model",
    "source.spm", "spm.model", "spm_char.model", "target.spm", "target_vocab.json", "tekken.json",
    "video_preprocessor_config.json", "vocab-src.json", "vocab-tgt.json", "word_pronunciation.json",
    "word_shape.json",
)  # fmt: skip
"""What turns text and images into tokens; taken together from the model the recipe names."""
CONFIG_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True)
class TokenizerFacts:
    """``vocab_size`` is one more than the largest token id (``None`` where only a binary model tells it).

    ``digest`` covers the map of tokens to ids, however it is written down: equal digests, equal vocabularies.
    ``rules`` covers all that decides which tokens a text becomes: merges, special tokens put before it.
    ``packed`` is the vocabulary itself (empty where it cannot be read). ``made`` packs the files where the
    model has none of its own (GGUF).
    """

    vocab_size: int | None
    digest: str
    files: tuple[str, ...]
    chat_template: str | None
    packed: bytes = field(repr=False, default=b"")
    made: bytes = field(repr=False, default=b"")
    rules: str = ""

    def vocabulary(self) -> Vocabulary | None:
        """The tokens and their ids; ``None`` where only a binary model tells them."""
        return Vocabulary.unpack(self.packed) if self.packed else None

    def made_texts(self) -> dict[str, bytes]:
        """The files that were made from a weight file's metadata; none where the model has its own."""
        texts: dict[str, str] = json.loads(zlib.decompress(self.made)) if self.made else {}
        return {name: text.encode("utf-8", "surrogatepass") for name, text in texts.items()}


@contextmanager
def tokenizer_folder(facts: TokenizerFacts | None, folder: Path) -> Iterator[Path]:
    """A folder that the model's tokenizer can be loaded from: the model's own, or one that lasts as long as
    the context.
    """
    made = facts.made_texts() if facts is not None else {}
    if not made:
        yield folder
        return
    with TemporaryDirectory(prefix="mergery-tokenizer-") as place:
        for name, text in made.items():
            (Path(place) / name).write_bytes(text)
        yield Path(place)


def made_facts(texts: Mapping[str, bytes]) -> TokenizerFacts | None:
    """Facts of a tokenizer whose files exist nowhere: they are kept with them."""
    facts = tokenizer_facts(texts)
    plain = {name: text.decode("utf-8", "surrogatepass") for name, text in texts.items()}
    return None if facts is None else replace(facts, made=zlib.compress(json.dumps(plain).encode(), 1))


def tokenizer_facts(texts: Mapping[str, bytes]) -> TokenizerFacts | None:
    """Facts from the small files of a model; ``None`` where it has no tokenizer."""
    files = tuple(sorted(name for name in TOKENIZER_FILES if name in texts))
    file = next((name for name in VOCABULARY_FILES if name in texts), None)
    if file is None:
        return None
    template, rules = _chat_template(texts), _rules(texts, files)
    found = read_vocabulary(texts)
    if found is None:
        digest = hashlib.sha256(texts[file]).hexdigest()
        return TokenizerFacts(None, digest, files, template, rules=rules)
    listed = json.dumps(sorted(found.tokens.items()), separators=(",", ":")).encode()
    digest = hashlib.sha256(listed).hexdigest()
    return TokenizerFacts(found.size, digest, files, template, found.pack(), rules=rules)


def _rules(texts: Mapping[str, bytes], files: Iterable[str]) -> str:
    """sha256 (hex) over a tokenizer's files but for its chat template."""
    told: dict[str, Any] = {
        name: hashlib.sha256(texts[name]).hexdigest() for name in files if name != TEMPLATE_FILE
    }
    with suppress(ValueError, RecursionError, AttributeError):  # what is no object counts as it is
        config = json.loads(texts.get(CONFIG_FILE, b"{}"))
        told[CONFIG_FILE] = {name: value for name, value in config.items() if name != "chat_template"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _chat_template(texts: Mapping[str, bytes]) -> str | None:
    """The file's, else the configuration's; of several named ones the one called default."""
    if TEMPLATE_FILE in texts:
        return texts[TEMPLATE_FILE].decode("utf-8", "replace")
    config = parse_json_object(CONFIG_FILE, texts.get(CONFIG_FILE, b"{}"))
    found: Any = config.get("chat_template")
    if isinstance(found, list):
        named = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) and found else None
