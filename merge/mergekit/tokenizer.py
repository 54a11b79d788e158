"""mergekit's tokenizer section and chat template in our words."""

from collections.abc import Mapping
from typing import Any

from merge.mergekit.shape import Reference, Sources
from merge.mergekit.values import parse_reference, refuse, unknown
from merge.recipe.tokenizer import CHAT_TEMPLATES

_KEYS = ("source", "tokens", "pad_to_multiple_of")
_TOKEN_KEYS = ("source", "force")
_OF_KEYS = ("kind", "model", "token", "token_id")


def read_tokenizer(
    document: Mapping[str, Any], base: Reference | None, sources: Sources, notes: list[str]
) -> dict[str, Any]:
    """Our ``tokenizer`` for ``tokenizer_source`` or ``tokenizer``; empty where the document has neither."""
    simple, full = document.get("tokenizer_source"), document.get("tokenizer")
    if simple is not None and full is not None:
        refuse("tokenizer_source", "Give either tokenizer_source or tokenizer, not both.")
    if full is None:
        return {} if simple is None else _source(simple, ("tokenizer_source",), base, sources, notes)
    if not isinstance(full, Mapping):
        refuse("tokenizer", "tokenizer must be a mapping with source, tokens and pad_to_multiple_of.")
    for key in full:
        if key not in _KEYS:
            refuse("tokenizer", str(key), unknown(str(key), _KEYS, "key"))
    made = _source(full.get("source", "union"), ("tokenizer", "source"), base, sources, notes)
    tokens = full.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        refuse("tokenizer", "tokens", "tokens must be a mapping of tokens to where their rows come from.")
    made["tokens"] = {
        str(token): _rule(rule, ("tokenizer", "tokens", str(token)), base, sources)
        for token, rule in tokens.items()
    }
    if full.get("pad_to_multiple_of") is not None:
        made["pad_to_multiple_of"] = full["pad_to_multiple_of"]
    return made


def read_chat_template(document: Mapping[str, Any]) -> str | None:
    """The chat template as a recipe writes it: the same names, ``auto``, or Jinja text."""
    found = document.get("chat_template")
    if found is None or found == "":
        return None
    if not isinstance(found, str) or ("{" not in found and found not in CHAT_TEMPLATES):
        refuse(
            "chat_template", unknown(str(found), CHAT_TEMPLATES, "chat template (Jinja text is another way)")
        )
    return found


def _source(
    found: Any, at: tuple[str, ...], base: Reference | None, sources: Sources, notes: list[str]
) -> dict[str, Any]:
    """Whose vocabulary the result has."""
    if found == "union":
        return {"source": "union"}
    if found == "base":
        if base is None:
            refuse(*at, "The tokenizer of the base needs a base_model.")
        return {"source": _id(base, base, sources) or "base"}
    reference = parse_reference(found, *at, notes=notes)
    known = _id(reference, base, sources)
    if known is not None:
        return {"source": known}
    notes.append(
        f"The vocabulary is that of {reference[0]}, which is not merged: those of its tokens that no model "
        "has get rows of zeros, as in mergekit. Our own approximate: omp makes better ones."
    )
    return {"source": "donor", "donor": reference[0], "approximate": "lend"}


def _rule(found: Any, at: tuple[str, ...], base: Reference | None, sources: Sources) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        refuse(*at, "A token needs a mapping with source, force or both.")
    for key in found:
        if key not in _TOKEN_KEYS:
            refuse(*at, str(key), unknown(str(key), _TOKEN_KEYS, "key"))
    made: dict[str, Any] = {"force": found["force"]} if "force" in found else {}
    source = found.get("source")
    if source is None:
        return made
    if not isinstance(source, Mapping) or "kind" not in source:
        return made | {"source": _model(source, (*at, "source"), base, sources)}
    return made | {"source": _of(source, (*at, "source"), base, sources)}


def _of(source: Mapping[str, Any], at: tuple[str, ...], base: Reference | None, sources: Sources) -> Any:
    """``kind: zero``, or another token of a model."""
    for key in source:
        if key not in _OF_KEYS:
            refuse(*at, str(key), unknown(str(key), _OF_KEYS, "key"))
    if source["kind"] == "zero":
        return "zero"
    if source["kind"] != "model_token":
        refuse(*at, "kind", unknown(str(source["kind"]), ("zero", "model_token"), "kind"))
    told = {key: source[key] for key in ("token", "token_id") if source.get(key) is not None}
    if len(told) != 1:
        refuse(*at, "model_token needs exactly one of token and token_id.")
    return {"model": _model(source.get("model"), (*at, "model"), base, sources), **told}


def _model(found: Any, at: tuple[str, ...], base: Reference | None, sources: Sources) -> str:
    reference = parse_reference(found, *at)
    return _id(reference, base, sources) or refuse(*at, f"{reference[0]} is not among the models.")


def _id(reference: Reference, base: Reference | None, sources: Sources) -> str | None:
    """What a model is called in the recipe, if it is merged there."""
    known = sources.known.get(reference)
    return known or ("base" if reference == base and base[1] is None else None)
