"""Which tensors have one row for each token of the vocabulary."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from merge.arch.roles import layer_of, role_of

_TOKENS = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings?|tok_embeddings|tokens_embed|token_embedding|shared"
    r"|embeddings?|input_embedding|transformer\.w)\.weight$"
)
_NO_TOKENS = re.compile(
    r"position|(^|[._])pos(_|$)|wpe|token_type|segment|patch|vision|visual(?!_bert)|audio|image|speech(?!t5)"
    r"|codebook|score|classifier|qa_outputs|norm\w*\.(weight|bias)$"
)
_PER_LAYER = re.compile(r"(^|\.)embed_tokens_per_layer\.weight$")
OTHER_TOWERS = re.compile(r"vision|visual|audio|image|speech|video|talker|token2wav|code_predictor")
SIZES = re.compile(r"^((decoder|src|tgt|text)_)?vocab_size(_per_layer_input)?$|^n_words$")
"""What configs call the number of tokens of a text tower."""


@dataclass(frozen=True)
class VocabularyTensors:
    """``rows`` tokens (padding included); ``tensors`` whose first dimension that is, by their part.

    ``fixed`` ones know tokens in another way: the first so many must stay where they are (``None``: all, and
    none may come).
    """

    rows: int
    tensors: Mapping[str, Literal["embed", "head", "other"]]
    fixed: Mapping[str, int | None] = field(default_factory=dict)


def vocabulary_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> VocabularyTensors | None:
    """The tensors of the text tower that are indexed by token: embeddings, output heads and their biases.

    Told from names, and from ``vocab_size`` in the config or its text tower's; ``None`` where a model has
    no token embedding.
    """
    embeds = [name for name in sorted(shapes) if _is_token_embedding(name, shapes[name])]
    sizes = set(_sizes(config))
    declared = [name for name in embeds if shapes[name][0] in sizes]
    if not embeds:
        return None
    rows = shapes[(declared or embeds)[0]][0]
    plain = rows not in set(_whole_numbers(config))
    found: dict[str, Literal["embed", "head", "other"]] = {}
    for name, shape in shapes.items():
        if not shape or shape[0] != rows or layer_of(name) is not None or _NO_TOKENS.search(name):
            continue
        role = role_of(name, shape, config)
        if name in embeds:
            found[name] = "embed"
        elif role == "head":
            found[name] = "head"
        elif role == "embed" or (plain and role in ("bias", "linear")):
            found[name] = "other"
    fixed = {name: count for name, count in _fixed(shapes, rows, config, plain) if name not in found}
    return VocabularyTensors(rows, found, fixed)


def _fixed(
    shapes: Mapping[str, tuple[int, ...]], rows: int, config: Mapping[str, Any], plain: bool
) -> Iterator[tuple[str, int | None]]:
    """Embeddings of fewer tokens beside the first, columns of a head, a head of fewer tokens than rows, and
    what layers know of tokens.
    """
    sizes = set(_sizes(config))
    others = {config.get("decoder_vocab_size")} - {rows}
    for name, shape in shapes.items():
        if name.endswith("tid2eid") or (name.endswith("final_logits_bias") and _is_learnt(config)):
            yield name, None
        elif len(shape) != 2 or layer_of(name) is not None or _NO_TOKENS.search(name):
            continue
        elif _PER_LAYER.search(name) or (_TOKENS.search(name) and shape[0] in others):
            yield name, shape[0]
        elif role_of(name, shape, config) == "head" and (
            (shape[1] == rows and plain) or (rows not in sizes and shape[0] in sizes)
        ):
            yield name, None


def _is_learnt(config: Mapping[str, Any]) -> bool:
    """Whether the constant of BART and its like is one of numbers: others leave it at zero."""
    return config.get("model_type") == "marian"


def _is_token_embedding(name: str, shape: tuple[int, ...]) -> bool:
    named = _TOKENS.search(name) is not None and _NO_TOKENS.search(name) is None
    return named and len(shape) == 2 and layer_of(name) is None


def _sizes(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if key in ("vocab_size", "n_words") and type(value) is int:
            yield value
        elif isinstance(value, Mapping) and not OTHER_TOWERS.search(key):
            yield from _sizes(value)


def _whole_numbers(config: Mapping[str, Any]) -> Iterator[int]:
    """Every other size of the model, one of which a dimension might be by chance."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value)
        elif type(value) is int and "vocab" not in key and not key.endswith(("_id", "_index", "n_words")):
            yield value
