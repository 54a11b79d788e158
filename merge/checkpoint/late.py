"""Tokens that only a tokenizer's settings have: where it is loaded they come after all others."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from merge.checkpoint.header import parse_json_object

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

Token = Mapping[str, Any]
"""As tokenizer.json lists added tokens: ``content`` and flags."""


def late_tokens(
    texts: Mapping[str, bytes], config: Mapping[str, Any], known: Collection[str], *, binary: bool
) -> list[Token]:
    """Those that are not ``known``, in the order in which Transformers adds them: what settings list with ids
    (which do not count), the ones with a part to play, and other special ones.

    Beside a ``binary`` model only those with a part: classes number the others their own way (T5 backwards).
    """
    settings = {**config, "special": [*_listed_with(config)]}
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        told = parse_json_object("special_tokens_map.json", texts.get("special_tokens_map.json", b"{}"))
        settings |= {**told, "special": [*_listed_with(config), *_listed_with(told)]}
    if binary:
        settings = {name: settings[name] for name in NAMED if name in settings} | {"special": []}
    special = {token["content"]: token for token in _special(settings)}
    if isinstance(decoder, dict):
        first = _by_id((number, token) for number, token in decoder.items() if isinstance(token, dict))
    else:
        beside = parse_json_object("added_tokens.json", texts.get("added_tokens.json", b"{}"))
        first = _by_id((number, _token(text, text in special)) for text, number in beside.items())
    found = {token["content"]: token for token in (*first, *special.values())}
    return [token for text, token in found.items() if text and text not in known]


def next_id(words: int, last: int) -> int:
    """The id of an added token: after the ``words`` of the model's own map, and the ``last`` one added."""
    return max(words, last + 1)


def _special(settings: Mapping[str, Any]) -> Iterator[Token]:
    own = [name for name, value in settings.items() if name.endswith("_token") and name not in NAMED]
    named = [settings[name] for name in (*NAMED, *own) if name in settings]
    for value in (*named, *settings["special"]):
        if isinstance(value, str):
            yield _token(value, True)
        elif isinstance(value, dict) and isinstance(value.get("content"), str):
            yield {**_PLAIN, **value, "special": True}


def _listed_with(settings: Mapping[str, Any]) -> Iterator[Any]:
    """What is listed as special beside the tokens with a part: a list, or names with tokens."""
    for name in ("model_specific_special_tokens", "extra_special_tokens", "additional_special_tokens"):
        value = settings.get(name)
        if value and not (name == "additional_special_tokens" and settings.get("extra_special_tokens")):
            yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _by_id(listed: Iterable[tuple[Any, Token]]) -> list[Token]:
    whole = [(int(str(number)[:12]), token) for number, token in listed if str(number).isdecimal()]
    named = [each for each in whole if isinstance(each[1].get("content"), str)]
    return [token for _, token in sorted(named, key=lambda each: each[0])]


def _token(text: str, special: bool) -> Token:
    return {**_PLAIN, "content": text, "special": special, "normalized": not special}
