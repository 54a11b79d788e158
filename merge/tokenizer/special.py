"""Token ids that stand in config.json and generation_config.json, carried over to another vocabulary."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from merge.arch.vocabulary import OTHER_TOWERS, SIZES

_IDS = re.compile(
    r"_token_ids?$|_token_index$|^(begin_)?suppress_tokens$|^(bad|force)_words_ids$"
    r"|^(bos|eos|pad|unk|mask)_index$"
)
_OTHER_IDS = re.compile(r"^(t2u|codebook|codec|tts_codec)_")
"""Tokens of speech, which have a vocabulary of their own."""
_NAMED_IDS = re.compile(r"^(lang|task)_to_id$|^text_decoder_lang_to_code_id$|^vocabulary_map$")
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
FROM_PADDING = frozenset({
    "camembert", "data2vec-text", "ibert", "layoutlmv3", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Model types whose first position is the one after the id of the padding token."""

Rows = Any
"""For each id of the result the id in the config's own vocabulary, or -1; an array of whole numbers."""


def with_vocabulary(
    config: Mapping[str, Any], rows: int, before: int, own: Rows, ends: Mapping[str, Any]
) -> dict[str, Any]:
    """The config with ``rows`` for a ``vocab_size`` of ``before``, and its token ids moved by ``own``.

    ``ends`` are ids that are already the result's and take the place of the config's.
    """
    made: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            if _NAMED_IDS.search(key):
                moved = {name: _moved(number, own) for name, number in value.items()}
                made[key] = {name: number for name, number in moved.items() if number is not None}
            else:
                inner = _of_text(key, value, before)
                made[key] = with_vocabulary(value, rows, before, own, ends) if inner else dict(value)
        elif SIZES.search(key):
            made[key] = rows if value == before else value
        elif key in ends:
            made[key] = ends[key]
        elif _holds_ids(key):
            made[key] = _moved(value, own)
        else:
            made[key] = value
    return made


def lost_ids(config: Mapping[str, Any], before: int, own: Rows) -> Iterator[tuple[str, int]]:
    """Names and ids of the config's tokens that the result does not have."""
    known = set(own)
    for key, value in config.items():
        if isinstance(value, Mapping):
            if _of_text(key, value, before):
                yield from lost_ids(value, before, own)
        elif _holds_ids(key):
            numbers = value if isinstance(value, list) else [value]
            yield from ((key, n) for n in numbers if type(n) is int and n >= 0 and n not in known)


def ends_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids with which a model begins, ends and pads texts, where its config says them."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    return {name: found for name in ENDS if (found := config.get(name, inner.get(name))) is not None}


def speaks_words(config: Mapping[str, Any], before: int) -> bool:
    """Whether a model with ``before`` tokens writes these, not those of a decoder of sounds (Musicgen)."""
    decoder = config.get("decoder", config.get("decoder_config"))
    return not isinstance(decoder, Mapping) or decoder.get("vocab_size", before) == before


def padding(config: Mapping[str, Any]) -> int:
    """The id of the padding token of a model of ``FROM_PADDING``."""
    found = config.get("pad_token_id")
    return found if type(found) is int else 1


def _of_text(key: str, config: Mapping[str, Any], before: int) -> bool:
    """Whether a config in a config is of the vocabulary of ``before`` tokens: a decoder of sounds is not."""
    return not OTHER_TOWERS.search(key) and config.get("vocab_size", before) == before


def _holds_ids(key: str) -> bool:
    return _IDS.search(key) is not None and not _OTHER_IDS.search(key)


def _moved(value: Any, own: Rows) -> Any:
    """``None`` for what is lost: a list loses single tokens, a sequence in a list all or none of them."""
    if isinstance(value, list):
        moved = [_sequence(each, own) if isinstance(each, list) else _moved(each, own) for each in value]
        return [each for each in moved if each is not None] or (None if value else [])
    if type(value) is not int or value < 0:
        return value
    try:
        return own.index(value)
    except ValueError:
        return None


def _sequence(tokens: list[Any], own: Rows) -> list[Any] | None:
    moved = [_moved(each, own) for each in tokens]
    return None if None in moved else moved
