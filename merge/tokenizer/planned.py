"""What a recipe's tokenizer section means on its models, found at plan time: row tables, and what is odd."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from merge.arch.rope import spin_of
from merge.arch.vocabulary import VocabularyTensors, vocabulary_tensors
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.vocabulary import check_vocabulary
from merge.errors import Finding
from merge.file_errors import VocabularyInvalid
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.tokenizer.align import DONOR, Alignment, NoSuchToken, RowTable, Speaker, align
from merge.tokenizer.special import FROM_PADDING, ends_of, lost_ids, padding, with_vocabulary

Wanted = tuple[str, str, tuple[int, ...]]
"""Model, its tensor and the shape that tensor has in the result, where it is read by the model's table."""

TILE_ROWS = 2048
"""Shared rows that are looked at at a time: fixed."""
WORD_BYTES = 256
"""For one word of a tokenizer, or for where one row comes from."""
_SQUARES = {"john_hewitt": 3, "landmark_pca": 8, "stb": 8}


@dataclass(frozen=True)
class VocabularyPlan:
    """The vocabulary of the result, and by model which of its tensors are indexed by it."""

    alignment: Alignment
    tensors: Mapping[str, VocabularyTensors]
    widest: int = 0

    @property
    def tables(self) -> Mapping[str, RowTable]:
        """The row table of each model."""
        return self.alignment.tables

    def indexes(self, model: str, tensor: str) -> bool:
        """Whether a model's tensor has one row for each of its tokens."""
        known = self.tensors.get(model)
        return known is not None and tensor in known.tensors

    def table_of(self, model: str) -> str | None:
        """The name of a model's table; ``None`` where its tensors are read as they are."""
        return None if self.tables[model].identity else model

    def tensors_read(self, model: str) -> Mapping[str, str]:
        """The tensors of a model that rows may be read from, by their part: none of a donor that lends words
        only.
        """
        learnt_from = {made.donor for table in self.tables.values() for made in table.made}
        return self.tensors[model].tensors if model != DONOR or DONOR in learnt_from else {}

    def lenders(self, model: str) -> set[str]:
        """The models whose rows fill a model's table."""
        return {key for fill in self.tables[model].fills.values() for key, _ in fill}

    def scratch_bytes(self, wanted: Sequence[Wanted], number_bytes: int) -> int:
        """Bytes of disk for the rows that are computed before the run."""
        rows = {key: sum(len(made.rows) for made in table.made) for key, table in self.tables.items()}
        return sum(rows[model] * prod(shape[1:]) for model, _, shape in wanted) * number_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of memory for rows that models take from others, and for a tokenizer with new words, which is
        written in the end: its file beside those that lend the words.
        """
        words = 2 * len(self.alignment.tokens) if self.alignment.new else 0
        return WORD_BYTES * (self._filled + words)

    @property
    def planning_bytes(self) -> int:
        """Bytes of memory for the words of all models while they are lined up."""
        return WORD_BYTES * (self._filled + sum(table.own_tokens for table in self.tables.values()))

    @property
    def _filled(self) -> int:
        return sum(len(table.fills) for table in self.tables.values())

    def making_bytes(self, k: int) -> int:
        """Bytes of memory that one thread takes to compute rows; none where no rows are computed."""
        made = [each for table in self.tables.values() for each in table.made]
        if not made:
            return 0
        width, batch = self.widest, batch_rows(self.widest)
        squares = max(_SQUARES.get(each.method, 0) for each in made) * 8 * width * width
        twice = 2 if any(each.method == "mp_rope" for each in made) else 1
        return twice * batch * (k + 8) * width * 8 + 4 * TILE_ROWS * (width + batch) * 4 + squares

    def check_room(self, k: int, budget: int) -> Iterator[Finding]:
        """Whether the memory suffices to compute rows."""
        needed = self.making_bytes(k)
        if needed > budget:
            message = f"The memory budget is {budget} bytes, but {needed} are needed to make rows (k {k})."
            yield error("budget_too_small", message, "tokenizer", "k")

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people: rows, tokens, and by model where its rows come from."""
        models = {}
        for key, table in self.tables.items():
            models[key] = {
                "own": sum(row >= 0 for row in table.rows),
                "filled": len(table.fills),
                **{each.method: len(each.rows) for each in table.made},
            }
        found = self.alignment
        return {
            "ground": found.ground, "rows": found.rows, "tokens": len(found.tokens), "new": len(found.new),
            "models": models,
        }  # fmt: skip


def batch_rows(width: int) -> int:
    """New rows that are approximated at a time, of this many numbers each: fixed by it."""
    return 128 if width <= 2048 else 64


def plan_vocabulary(
    recipe: Recipe, models: Mapping[str, ModelIndex], reference: str
) -> tuple[VocabularyPlan | None, tuple[Finding, ...]]:
    """The vocabulary a recipe asks for; ``None`` where every model has it already, or something is wrong."""
    if not recipe.tokenizer.aligns:
        return None, ()
    keys = [key for key in ("base", *recipe.source_ids(), DONOR) if key in models]
    indexed = {key: _tensors(models[key]) for key in keys}
    ground = _ground(recipe, keys, reference)
    if not _needed(recipe, [models[key] for key in keys], list(indexed.values())):
        return None, ()
    findings: list[Finding] = []
    speakers = [
        speaker for key in keys if (speaker := _speaker(key, models[key], indexed[key], findings)) is not None
    ]
    if findings:
        return None, tuple(findings)
    try:
        alignment = align(recipe.tokenizer, speakers, ground)
    except NoSuchToken as missing:
        message = (
            f"The rule of {missing.token[:40]!r} asks {missing.model} for a token that it does not have."
        )
        return None, (error("token_missing", message, "tokenizer", "tokens", missing.token),)
    tensors = {key: found for key, found in indexed.items() if found is not None}
    widths = (prod(models[k].tensors[n].shape[1:]) for k, found in tensors.items() for n in found.tensors)
    plan = VocabularyPlan(alignment, tensors, max(widths, default=0))
    findings += _new_tokens(plan, speakers, models)
    findings += _nothing_shared(plan, models)
    findings += _immovable(plan, models)
    findings += _positions_moved(plan, recipe, models, reference)
    findings += _unturnable(plan, models)
    for speaker in speakers:
        findings += _told(plan, speaker)
    findings += _lost(plan, models, reference)
    return plan, tuple(findings)


def _tensors(model: ModelIndex) -> VocabularyTensors | None:
    shapes = {name: info.shape for name, info in model.tensors.items()}
    return vocabulary_tensors(shapes, model.config)


def _ground(recipe: Recipe, keys: Sequence[str], reference: str) -> str:
    chosen = recipe.tokenizer.source
    if chosen in (None, "base", "union"):
        return "base" if "base" in keys else reference
    return str(chosen)


def _needed(
    recipe: Recipe, models: Sequence[ModelIndex], indexed: Sequence[VocabularyTensors | None]
) -> bool:
    choice = recipe.tokenizer
    if choice.tokens or choice.pad_to_multiple_of is not None:
        return True
    known = [model.tokenizer for model in models if model.tokenizer is not None]
    sizes = {found.rows for found in indexed if found is not None}
    if len({facts.digest for facts in known}) > 1 or len(sizes) > 1:
        return bool(known)
    read = [found for facts in known if (found := facts.vocabulary()) is not None]
    return len({tuple((token.text, token.id) for token in found.late) for found in read}) > 1


def _speaker(
    key: str, model: ModelIndex, indexed: VocabularyTensors | None, findings: list[Finding]
) -> Speaker | None:
    vocabulary = model.tokenizer.vocabulary() if model.tokenizer is not None else None
    if indexed is None:
        message = f"{model.label} has no token embedding, so its vocabulary cannot be lined up."
        findings.append(error("vocabulary_unknown", message, "tokenizer", model=key))
    elif vocabulary is None:
        what = "no tokenizer" if model.tokenizer is None else "a tokenizer in a binary form only"
        message = (
            f"{model.label} has {what}, so nobody knows which row is which token; "
            "save its tokenizer as tokenizer.json (save_pretrained does)."
        )
        findings.append(error("vocabulary_unknown", message, "tokenizer", model=key))
    else:
        loaded = vocabulary.loaded(indexed.rows)
        try:
            check_vocabulary(loaded, model.label)
        except VocabularyInvalid as refused:
            findings.append(error(refused.code, str(refused), "tokenizer", model=key))
        else:
            return Speaker(key, model.label, loaded, indexed.rows)
    return None


def _new_tokens(
    plan: VocabularyPlan, speakers: Sequence[Speaker], models: Mapping[str, ModelIndex]
) -> Iterator[Finding]:
    """Whether a tokenizer with the new tokens can be written."""
    new, ground = plan.alignment.new, plan.alignment.ground
    if not new:
        return
    label, facts = models[ground].label, models[ground].tokenizer
    if facts is None or "tokenizer.json" not in facts.files:
        message = (
            f"The result knows {len(new)} tokens that {label} does not, but {label} has no tokenizer.json to "
            "add them to; save its tokenizer with save_pretrained, or choose source: base."
        )
        yield error("tokenizer_not_writable", message, "tokenizer", "source", model=ground)
    known = {speaker.key: speaker.vocabulary for speaker in speakers}
    ours = known[ground]
    for key, theirs in known.items():
        plain = [token for token in new if token.origin == key and token.flags is None]
        if plain and (theirs.kind, theirs.spelling) != (ours.kind, ours.spelling):
            message = (
                f"{models[key].label} has {len(plain)} tokens that {label} lacks, and another kind of "
                f"tokenizer ({theirs.kind}, {ours.kind}): none could make both. Choose source: base or a "
                "source's id, with approximate: omp for the tokens a model lacks."
            )
            yield error("tokenizer_union_impossible", message, "tokenizer", "source", model=key)
        elif theirs.byte_fallback and not ours.byte_fallback and plain:
            message = f"{models[key].label} falls back to bytes, {label} does not: its byte tokens go unused."
            yield warning("byte_fallback_differs", message, "tokenizer", "source", model=key)


def _nothing_shared(plan: VocabularyPlan, models: Mapping[str, ModelIndex]) -> Iterator[Finding]:
    for key, table in plan.tables.items():
        for donor in dict.fromkeys(made.donor for made in table.made if made.donor is not None):
            if not plan.alignment.shared(key, donor):
                message = f"{models[key].label} and {models[donor].label} share no token to learn from."
                yield error("no_shared_tokens", message, "tokenizer", "approximate", model=key)


def _immovable(plan: VocabularyPlan, models: Mapping[str, ModelIndex]) -> Iterator[Finding]:
    """Tensors that know tokens by their ids and are not moved with them, where ids move."""
    known = [found for key, found in plan.tensors.items() if key != DONOR]
    fixed = {name: first for found in known for name, first in found.fixed.items()}
    for key, table in plan.tables.items():
        moved = next((at for at, row in enumerate(table.rows) if row != at), len(table.rows))
        for name, first in fixed.items() if key != DONOR and not table.identity else ():
            if name in models[key].tensors and (first is None or moved < first):
                message = (
                    f"{name} of {models[key].label} knows tokens by their ids and cannot be moved with them: "
                    "the result must have this model's vocabulary, and the others the same tokens."
                )
                yield error("vocabulary_fixed", message, "tokenizer", "source", model=key, tensor=name)


def _positions_moved(
    plan: VocabularyPlan, recipe: Recipe, models: Mapping[str, ModelIndex], reference: str
) -> Iterator[Finding]:
    """Models that count positions from the id of their padding token, where the result has another."""
    ground, config = plan.alignment.ground, models[reference].config
    if config.get("model_type") not in FROM_PADDING:
        return
    taken = ends_of(models[ground].config) if recipe.tokenizer.source != "union" else {}
    own = plan.alignment.natural[reference]
    found = with_vocabulary({"pad_token_id": padding(config)}, 0, 0, own, taken)["pad_token_id"]
    for key in plan.tables:
        if key != DONOR and padding(models[key].config) != found:
            message = (
                f"{models[key].label} counts positions from its padding token, "
                f"{padding(models[key].config)}, which the result has as {found}: its positions would mean "
                "others. Choose a vocabulary in which the padding token keeps its id."
            )
            yield error("padding_moved", message, "tokenizer", "source", model=key)


def _unturnable(plan: VocabularyPlan, models: Mapping[str, ModelIndex]) -> Iterator[Finding]:
    """Models whose embeddings are no whole heads of a rotary embedding, where rows are to be turned by it."""
    made = [(key, each.donor) for key, table in plan.tables.items() for each in table.made
            if each.method == "mp_rope"]  # fmt: skip
    for name in dict.fromkeys(name for pair in made for name in pair if name is not None):
        widths = {prod(models[name].tensors[tensor].shape[1:]) for tensor in plan.tensors[name].tensors}
        if any(width > 1 and spin_of(models[name].config, width) is None for width in widths):
            message = (
                f"approximate: mp_rope turns rows head by head, but the embedding of {models[name].label} is "
                "no whole number of heads of pairs; choose omp."
            )
            yield error("no_rotary_heads", message, "tokenizer", "approximate", model=name)


def _told(plan: VocabularyPlan, speaker: Speaker) -> Iterator[Finding]:
    """How much of the result's vocabulary a model has, and what happens to the rest."""
    table, own = plan.tables[speaker.key], plan.alignment.natural[speaker.key]
    beyond = sum(number >= speaker.rows for number in speaker.vocabulary.tokens.values())
    if beyond:
        message = f"{beyond} tokens of {speaker.label} have ids beyond its {speaker.rows} embedding rows."
        yield warning("token_without_row", message, "tokenizer", model=speaker.key)
    if speaker.key == DONOR or table.identity:
        return
    kept = set(own)
    dropped = sum(
        number not in kept for number in speaker.vocabulary.tokens.values() if number < speaker.rows
    )
    sources = Counter("+".join(key for key, _ in fill) or "zeros" for fill in table.fills.values())
    sources.update({each.method: len(each.rows) for each in table.made})
    told = ", ".join(f"{count} from {where}" for where, count in sources.items()) or "none missing"
    have = sum(row >= 0 for row in table.rows)
    message = (
        f"{speaker.label} has {have} of the result's {plan.alignment.rows} rows ({told}); "
        f"{dropped} of its tokens are not in the result."
    )
    yield warning("vocabulary_aligned", message, "tokenizer", model=speaker.key)


def _lost(plan: VocabularyPlan, models: Mapping[str, ModelIndex], reference: str) -> Iterator[Finding]:
    own, before = plan.alignment.natural[reference], plan.tensors[reference].rows
    for name, number in lost_ids(models[reference].config, before, own):
        message = (
            f"{name} of {models[reference].label} is token {number}, which the result does not have: "
            "it is left out of the config."
        )
        yield warning("special_token_lost", message, "tokenizer", model=reference)
