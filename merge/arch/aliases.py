"""The same tensors under other names: files of one architecture differ in what stands before a name.

GPT-2's own files say ``h.0.ln_1.weight``, fine-tuned ones ``transformer.h.0.ln_1.weight``; a vision-language
model's text part was ``language_model.model`` once and is ``model.language_model`` now. No table is needed:
what the names share at their end, and their shapes, tell which beginnings stand for each other. An adapter
has too few names for that: where several places would do, nothing is left over to tell by (``names_in``).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from merge.arch.roles import role_of

Shapes = Mapping[str, tuple[int, ...]]
MOST_CANDIDATES = 512
_NEWER = {
    ".encoder.layer.": ".layers.",
    ".attention.attention.": ".attention.self.",
    ".attention.self.query.": ".attention.q_proj.",
    ".attention.self.key.": ".attention.k_proj.",
    ".attention.self.value.": ".attention.v_proj.",
    ".attention.self.sr.": ".attention.sequence_reduction.sequence_reduction.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    ".mlp.dense1.": ".mlp.fc1.",
    ".mlp.dense2.": ".mlp.fc2.",
    ".linear_c.": ".linear_projections.",
    ".block_sparse_moe.": ".mlp.",
    ".mlp.fc": ".fc",
    ".self_attn.out_proj.": ".self_attn.o_proj.",
    ".router.layer.": ".router.",
}
"""Parts of names of image models (ViT, DINOv2, Swin, Segformer, RT-DETR) and of mixtures, and what
Transformers 5 made of them, or what is left of both.
"""
_STAGE = re.compile(r"\.encoder\.(?:block\.(\d+)\.(?=\d)|(patch_embeddings|layer_norm)\.(\d+)\.)")
"""Segformer's blocks were counted in the encoder, and are in stages now."""
_PLACES = frozenset({"", "model", "language_model", "backbone"})
"""Parts of names that only tell where the text model is, or (Nemotron-H) what it is called."""
_LEAST_IN_COMMON = 2
"""Parts at the end of a name that two names must share: the module's own name and the parameter's."""


def other_names(ours: Shapes, theirs: Shapes) -> dict[str, str]:
    """For names of ours that they lack, what they call them; nothing where that is not certain.

    Two names can be the same tensor if they end alike and have one shape. Of several, the one is meant whose
    difference (what is left when the like beginnings and ends are taken off) explains most names; where two
    would do, none is.
    """
    missing = {name: shape for name, shape in ours.items() if name not in theirs}
    spare = {name: shape for name, shape in theirs.items() if name not in ours}
    found: dict[str, str] = {}
    while missing and spare and (sure := _certain(missing, spare)):
        found |= sure
        missing = {name: shape for name, shape in missing.items() if name not in sure}
        for other in sure.values():
            del spare[other]
    return found | _of_other_lengths(missing, spare, {_difference(*pair) for pair in found.items()})


def names_in(wanted: Shapes, theirs: Shapes) -> dict[str, str]:
    """What a model calls some tensors: as they are, with the first component of either name left out, with
    the text model at another place of the name (Transformers 4.52 made ``model.language_model`` of
    ``language_model.model``; files keep what they were saved with) or with Transformers 5's words for parts
    of it, or its only head over words of that shape. What it does not have keeps its name.
    """
    by_tail: defaultdict[str, list[str]] = defaultdict(list)
    by_core: defaultdict[str, list[str]] = defaultdict(list)
    heads: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    roles = {name: role_of(name, shape, {}) for name, shape in theirs.items()}
    words = max((shape for name, shape in theirs.items() if roles[name] == "embed"), default=())
    for name, shape in theirs.items():
        by_tail[name.partition(".")[2]].append(name)
        by_core[_core(name)].append(name)
        if roles[name] == "head" and shape in (words, words[:1]) and name.endswith((".weight", ".bias")):
            heads[shape].append(name)

    def find(name: str, shape: tuple[int, ...]) -> str:
        for plain in (name, name.partition(".")[2]):
            if plain in theirs:
                return plain
        alike = heads.get(shape, []) if role_of(name, shape, {}) == "head" else []
        cores = (by_core.get(_core(each), []) for each in (name, name.partition(".")[2]))
        places = (by_tail.get(name, []), *cores, alike)
        return next((names[0] for names in places if len(names) == 1), name)

    return {name: find(name, shape) for name, shape in sorted(wanted.items())}


def _core(name: str) -> str:
    name = f".{name}"
    for older, newer in _NEWER.items():
        name = name.replace(older, newer)
    name = _STAGE.sub(_staged, name)
    return ".".join(part for part in name.split(".") if part not in _PLACES)


def _staged(found: re.Match[str]) -> str:
    block, part, place = found.groups()
    return f".stages.{place}.{part}." if part else f".stages.{block}.blocks."


def _of_other_lengths(missing: Shapes, spare: Shapes, known: set[tuple[str, str]]) -> dict[str, str]:
    """Embeddings and heads of another number of tokens: what tells is that they differ as others do, or that
    one name is the end of the other.
    """
    tails = ({name: (-1, *shape[1:]) for name, shape in each.items()} for each in (missing, spare))
    return {
        name: other
        for name, other in _certain(*tails).items()
        if len(missing[name]) == len(spare[other])
        and (_difference(name, other) in known or _is_end(name, other))
    }


def _is_end(name: str, other: str) -> bool:
    return f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}")


def _certain(missing: Shapes, spare: Shapes) -> dict[str, str]:
    """What can be told at once; what is told makes room for more."""
    by_end: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, shape in spare.items():
        for end in _ends(name):
            by_end[end, shape].append(name)
    found = {}
    for name, shape in missing.items():
        alike = next((by_end[end, shape] for end in _ends(name) if (end, shape) in by_end), [])
        found[name] = [(_difference(name, other), other) for other in alike[:MOST_CANDIDATES]]
    votes = Counter(difference for pairs in found.values() for difference, _ in pairs)
    chosen = {name: _best(pairs, votes) for name, pairs in found.items()}
    taken = Counter(other for other in chosen.values() if other is not None)
    return {name: other for name, other in chosen.items() if other is not None and taken[other] == 1}


def _ends(name: str) -> Iterator[str]:
    """The ends of a name, part by part, the longest first."""
    parts = name.split(".")
    for place in range(max(1, len(parts) - _LEAST_IN_COMMON + 1)):
        yield ".".join(parts[place:])


def _difference(ours: str, theirs: str) -> tuple[str, str]:
    a, b = ours.split("."), theirs.split(".")
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    return ".".join(a), ".".join(b)


def _best(pairs: list[tuple[tuple[str, str], str]], votes: Counter[tuple[str, str]]) -> str | None:
    """The candidate whose difference explains most names, if one does so alone."""
    ranked = sorted(pairs, key=lambda each: -votes[each[0]])
    if not ranked or (len(ranked) > 1 and votes[ranked[0][0]] == votes[ranked[1][0]]):
        return None
    return ranked[0][1]
