"""Token ids that stand in config.json and generation_config.json, carried over to another vocabulary."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from merge.arch.vocabulary import OTHER_TOWERS

_IDS = re.compile(r"_token_ids?$|_token_index$|^(begin_)?suppress_tokens$|^bad_words_ids$")
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

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
            inner = not OTHER_TOWERS.search(key)
            made[key] = with_vocabulary(value, rows, before, own, ends) if inner else dict(value)
        elif key == "vocab_size":
            made[key] = rows if value == before else value
        elif key in ends:
            made[key] = ends[key]
        elif _IDS.search(key):
            made[key] = _moved(value, own)
        else:
            made[key] = value
    return made


def lost_ids(config: Mapping[str, Any], own: Rows) -> Iterator[tuple[str, int]]:
    """Names and ids of the config's tokens that the result does not have."""
    known = set(own)
    for key, value in config.items():
        if isinstance(value, Mapping) and not OTHER_TOWERS.search(key):
            yield from lost_ids(value, own)
        elif _IDS.search(key):
            numbers = value if isinstance(value, list) else [value]
            yield from ((key, n) for n in numbers if type(n) is int and n >= 0 and n not in known)


def ends_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids with which a model begins, ends and pads texts, where its config says them."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    return {name: found for name in ENDS if (found := config.get(name, inner.get(name))) is not None}


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
