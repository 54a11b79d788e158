"""The tokenizer files of a result that knows more tokens than the tokenizer it is made from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoint.header import parse_json_object
from merge.checkpoint.vocabulary import read_vocabulary
from merge.file_errors import VocabularyInvalid
from merge.tokenizer.align import NewToken

LENDER_FILES = ("tokenizer.json", "merges.txt")
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_OTHER_WORDS = ("vocab.json", "vocab.txt", "merges.txt")
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def with_new_tokens(
    files: Mapping[str, bytes], new: Sequence[NewToken], origins: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The tokenizer's files with the new tokens in them, every id as it is in ``new``.

    ``origins`` holds the tokenizer.json of the models that plain new tokens come from, by key: their merges
    (or scores) come along, after those that are there. Raises ``VocabularyInvalid`` where the tokenizer could
    not hold a token under its id.
    """
    document = parse_json_object("tokenizer.json", files["tokenizer.json"])
    late = _late(files, min(token.id for token in new))
    document["added_tokens"] = [*document.get("added_tokens", []), *_listed(late)]
    plain = [token for token in new if token.flags is None]
    added = [token for token in new if token.flags is not None]
    parsed = {key: parse_json_object("tokenizer.json", raw) for key, raw in origins.items()}
    model = document["model"]
    if isinstance(model.get("vocab"), list):
        _extend_pieces(document, new, parsed)
    else:
        _extend_map(document, plain, added)
        if model.get("type", "BPE") == "BPE" and plain:
            model["merges"] = [*model.get("merges", []), *_merges(model, plain, parsed)]
    document["added_tokens"] += _listed(added)
    added = [*late, *added]
    made = {**files, "tokenizer.json": json_bytes(document)}
    made["tokenizer_config.json"] = _config(files.get("tokenizer_config.json", b"{}"), added)
    if added and any(name in files for name in _SLOW):
        old = parse_json_object("added_tokens.json", files.get("added_tokens.json", b"{}"))
        made["added_tokens.json"] = json_bytes({**old, **{token.text: token.id for token in added}})
    if plain:
        made = {name: content for name, content in made.items() if name not in _OTHER_WORDS}
    _check(made, new)
    return made


def _late(files: Mapping[str, bytes], first: int) -> list[NewToken]:
    """Tokens below the ``first`` new one that the tokenizer names and no file lists: from now on one does."""
    found = read_vocabulary(files)
    own = found.loaded(first).added if found is not None else ()
    known = found.tokens if found is not None else {}
    return [NewToken(token.text, token.id, None, token.flags) for token in own if token.text not in known]


def _listed(tokens: Sequence[NewToken]) -> list[dict[str, Any]]:
    return [{"id": token.id, "content": token.text, **(token.flags or _PLAIN)} for token in tokens]


def lender(files: Mapping[str, bytes]) -> bytes:
    """The tokenizer.json of a model that lends plain tokens; of older files what counts of it, the merges."""
    lines = files.get("merges.txt", b"").decode("utf-8", "replace").split("\n")
    merges = [line.rstrip("\r") for line in lines if " " in line and not line.startswith("#version")]
    return files.get("tokenizer.json") or json_bytes({"model": {"merges": merges}})


def _check(files: Mapping[str, bytes], new: Sequence[NewToken]) -> None:
    """Every new token gets its id when the files are loaded."""
    found = read_vocabulary(files)
    lost = [token.text for token in new if found is None or found.tokens.get(token.text) != token.id]
    odd = lost[0] if lost else found.misplaced if found is not None else None
    if odd is not None:
        raise VocabularyInvalid(f"The tokenizer cannot hold {odd[:40]!r} under the id of its embedding row.")


def _extend_map(document: dict[str, Any], plain: Sequence[NewToken], added: Sequence[NewToken]) -> None:
    """Plain tokens join the model's map. Added tokens outside the map get ids counted on from its size when
    the file is loaded: where that would give other ids, all of them join the map as well.
    """
    tokens: dict[str, int] = document["model"]["vocab"]
    outside = [each for each in document.get("added_tokens", []) if each["content"] not in tokens]
    following = len(tokens) + len(outside)
    if plain or [token.id for token in added] != list(range(following, following + len(added))):
        tokens.update({each["content"]: each["id"] for each in outside})
        tokens.update({token.text: token.id for token in (*plain, *added)})


def _extend_pieces(document: dict[str, Any], new: Sequence[NewToken], origins: Mapping[str, Any]) -> None:
    """A Unigram model lists its pieces by id, so everything up to the last new id is put into the list."""
    pieces: list[Any] = document["model"]["vocab"]
    listed = {each["id"]: each["content"] for each in document.get("added_tokens", [])}
    scores = {
        key: {str(piece[0]): piece[1] for piece in origin["model"]["vocab"]}
        for key, origin in origins.items()
        if isinstance(origin["model"].get("vocab"), list)
    }
    lowest = min((float(piece[1]) for piece in pieces), default=0.0)
    fresh = {token.id: token for token in new}
    for number in range(len(pieces), max(fresh) + 1):
        if number in fresh:
            token = fresh[number]
            score = scores.get(token.origin or "", {}).get(token.text, lowest)
            pieces.append([token.text, score])
        elif number in listed:
            pieces.append([listed[number], lowest])
        else:
            raise VocabularyInvalid(
                f"The tokenizer has no token {number}, so {fresh[max(fresh)].text[:40]!r} cannot follow it."
            )


def _merges(model: Mapping[str, Any], plain: Sequence[NewToken], origins: Mapping[str, Any]) -> list[Any]:
    """The merges by which the plain tokens come about, in the order and the spelling of their models."""
    known = {_pair(merge) for merge in model.get("merges", [])}
    paired = any(isinstance(merge, list) for merge in model.get("merges", [])) or not known
    tokens = model["vocab"]
    wanted = {(token.origin, token.text) for token in plain}
    found: list[Any] = []
    for key in dict.fromkeys(token.origin or "" for token in plain):
        for merge in origins[key]["model"].get("merges", []) if key in origins else ():
            left, right = _pair(merge)
            fits = (key, left + right) in wanted and left in tokens and right in tokens
            if fits and (left, right) not in known:
                known.add((left, right))
                found.append([left, right] if paired else f"{left} {right}")
    return found


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge if isinstance(merge, list) else str(merge).split(" ", 1)
    return str(left), str(right)


def _config(raw: bytes, added: Sequence[NewToken]) -> bytes:
    config = parse_json_object("tokenizer_config.json", raw)
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict) or not added:
        return raw
    fresh = {str(token.id): {"content": token.text, **(token.flags or _PLAIN)} for token in added}
    return json_bytes({**config, "added_tokens_decoder": {**listed, **fresh}})


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """A small file of a model."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
