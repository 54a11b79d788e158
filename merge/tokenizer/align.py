"""One vocabulary for models that have different ones: for every token of the result, the row each model has
for it, or where that row comes from.
"""

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.checkpoint.vocabulary import Vocabulary
from merge.recipe.tokenizer import FROM_DONORS, TokenizerChoice, TokenOf
from merge.tokenizer.pieces import Pieces, beginnings

Fill = tuple[tuple[str, int], ...]
"""Rows of models, averaged; nothing means zeros."""

ZEROS: Fill = ()
DONOR = "donor"


@dataclass(frozen=True)
class Made:
    """Rows of the result that are computed from weights before the run, by one method from one donor; for
    ``subword`` the model's rows that each is made of.
    """

    method: str
    donor: str | None
    rows: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class RowTable:
    """Where each row of a model's vocabulary tensors comes from.

    ``rows[i]`` is the model's own row for row i of the result, or -1 where it has none: then ``fills`` says
    which rows of which models are averaged, or one of ``made`` lists the row. The model has ``own_rows``, of
    which the first ``own_tokens`` are no padding.
    """

    model: str
    rows: "array[int]"
    fills: Mapping[int, Fill]
    made: tuple[Made, ...] = ()
    own_rows: int = 0
    own_tokens: int = 0

    @property
    def identity(self) -> bool:
        """Whether the model's tensors are used as they are."""
        return len(self.rows) == self.own_rows and all(at == row for at, row in enumerate(self.rows))

    def digest(self) -> str:
        """sha256 (hex) of everything in it."""
        made = [(each.method, each.donor, each.rows, *each.cuts) for each in self.made]
        text = repr((self.model, self.rows.tolist(), sorted(self.fills.items()), made))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class NewToken:
    """A token the result knows and the tokenizer it is made from does not: ``origin`` is a model that has it.

    ``flags`` are those of an added token, ``None`` for a plain piece of the origin's model.
    """

    text: str
    id: int
    origin: str | None
    flags: Mapping[str, bool] | None


@dataclass(frozen=True)
class Speaker:
    """A model as its words go: its vocabulary and how many rows its embedding has."""

    key: str
    label: str
    vocabulary: Vocabulary
    rows: int


@dataclass(frozen=True)
class Alignment:
    """The vocabulary of the result: ``ground`` is the model whose tokenizer files it is made from.

    ``rows`` are the result's, padding included. ``natural`` gives, by model, its own row for each of them (or
    -1) whatever the recipe's rules are; ``tokens`` are the rows that stand for a token, in order. ``unused``
    are, by model, its own rows of no token or of one that is kept in reserve, where the recipe asks for them.
    """

    ground: str
    rows: int
    tokens: "array[int]"
    new: tuple[NewToken, ...]
    natural: Mapping[str, "array[int]"]
    tables: Mapping[str, RowTable]
    unused: Mapping[str, tuple[int, ...]]

    def shared(self, ours: str, theirs: str) -> list[int]:
        """Rows of the result whose token both models have."""
        own, other = self.natural[ours], self.natural[theirs]
        return [at for at in self.tokens if own[at] >= 0 and other[at] >= 0]

    def digest(self) -> str:
        """sha256 (hex) over all tables and new tokens."""
        facts = [self.ground, self.rows, [table.digest() for table in self.tables.values()]]
        told = [(new.text, new.id, new.origin, new.flags and sorted(new.flags.items())) for new in self.new]
        return hashlib.sha256(repr((facts, told)).encode()).hexdigest()


def align(choice: TokenizerChoice, speakers: Sequence[Speaker], ground: str) -> Alignment:
    """The vocabulary that ``choice`` asks for, and every speaker's way to it.

    ``speakers`` come in the order of the recipe, the base first and a donor last; ``ground`` is the key of
    one of them. With ``source: union`` the others' tokens follow the ground's, in that order.
    """
    return _Aligner(choice, speakers, ground).run()


class _Aligner:
    def __init__(self, choice: TokenizerChoice, speakers: Sequence[Speaker], ground: str) -> None:
        self.choice = choice
        self.speakers = {speaker.key: speaker for speaker in speakers}
        self.ground = self.speakers[ground]
        spellings = {s.vocabulary.spelling for s in speakers} - {"plain"}
        self.raw = len(spellings) < 2
        self.known = {key: self._ids(s.vocabulary) for key, s in self.speakers.items()}
        self.ids: dict[Any, int] = dict(self.known[ground])
        self.new: list[NewToken] = []
        self.cuts: dict[tuple[str, int], tuple[int, ...]] = {}

    def run(self) -> Alignment:
        following = self.ground.vocabulary.size
        if self.choice.source == "union":
            following = self._add_union(following)
        for text in self.choice.tokens:
            if self._key(text) not in self.ids:
                following = self._add(text, following, None, _rule_flags(text))
        self.rows = self._padded(following)
        self.own = {key: self._own_rows(key) for key in self.speakers}
        tables = {key: self._table(key) for key in self.speakers}
        tokens = array("i", sorted(self.ids.values()))
        unused = {
            key: tuple(_unused(each)) for key, each in self.speakers.items() if self.choice.well_trained
        }
        return Alignment(self.ground.key, self.rows, tokens, tuple(self.new), self.own, tables, unused)

    def _ids(self, vocabulary: Vocabulary) -> Mapping[Any, int]:
        """Ids by token as it is spelt, or by its bytes; where several have the same bytes (``A``, ``<0x41>``)
        all but one by their spelling.
        """
        if self.raw:
            return vocabulary.tokens
        meant = vocabulary.meanings()
        told = set(meant.values())
        return {**meant, **{text: at for text, at in vocabulary.tokens.items() if at not in told}}

    def _key(self, text: str) -> Any:
        """The key of a token the user writes: as it is spelt in the ground's files, else as plain text."""
        if self.raw:
            return text
        number = self.ground.vocabulary.tokens.get(text)
        known = self.known[self.ground.key]
        return next((key for key, at in known.items() if at == number), text.encode())

    def _add_union(self, following: int) -> int:
        for speaker in self.speakers.values():
            flags = {token.text: token.flags for token in speaker.vocabulary.added}
            listed = sorted(speaker.vocabulary.tokens.items(), key=lambda item: item[1])
            known = self.known[speaker.key]
            names = {number: key for key, number in known.items() if isinstance(key, bytes)}
            for text, number in listed:
                key = text if self.raw else names.get(number)
                if key is not None and key not in self.ids:
                    following = self._add(text, following, speaker.key, flags.get(text), key)
        return following

    def _add(
        self,
        text: str,
        number: int,
        origin: str | None,
        flags: Mapping[str, bool] | None,
        key: Any = None,
    ) -> int:
        self.ids[self._key(text) if key is None else key] = number
        self.new.append(NewToken(text, number, origin, flags))
        return number + 1

    def _padded(self, tokens: int) -> int:
        """Rows of the result: the ground's padding stays unless the recipe asks for another."""
        multiple = self.choice.pad_to_multiple_of
        if multiple is None:
            return max(tokens, self.ground.rows)
        return -(-tokens // multiple) * multiple

    def _own_rows(self, key: str) -> "array[int]":
        speaker, known = self.speakers[key], self.known[key]
        own = array("i", [-1]) * self.rows
        for token, at in self.ids.items():
            same = token if self.raw or token in known else self._meaning(token)
            row = known.get(same, -1)
            if row < speaker.rows:
                own[at] = row
        named, spoken = set(self.ids.values()), set(speaker.vocabulary.tokens.values())
        for at in range(min(self.rows, speaker.rows)):
            if at not in named and at not in spoken:
                own[at] = at
        return own

    def _table(self, key: str) -> RowTable:
        speaker, rows = self.speakers[key], array("i", self.own[key])
        fills: dict[int, Fill] = {}
        for at, fill in self._ruled_rows(key):
            if len(fill) == 1 and fill[0][0] == key:
                rows[at] = fill[0][1]
            else:
                rows[at], fills[at] = -1, fill
        made: dict[tuple[str, str | None], list[int]] = {}
        missing = [at for at in range(self.rows) if rows[at] < 0 and at not in fills]
        self._fill(key, missing, fills, made)
        listed = tuple(
            Made(
                method, donor, tuple(each), tuple(self.cuts[key, at] for at in each if (key, at) in self.cuts)
            )
            for (method, donor), each in made.items()
        )
        tokens = min(speaker.rows, speaker.vocabulary.size)
        return RowTable(key, rows, fills, listed, speaker.rows, tokens)

    def _ruled_rows(self, key: str) -> Iterator[tuple[int, Fill]]:
        """What the recipe's rules say about single tokens: where forced, or where the model lacks them."""
        for text, rule in self.choice.tokens.items():
            at = self.ids[self._key(text)]
            if rule.source is not None and (rule.force or self.own[key][at] < 0):
                yield at, self._ruled(text, at, rule.source)

    def _ruled(self, text: str, at: int, source: str | TokenOf) -> Fill:
        if source == "zero":
            return ZEROS
        model = source.model if isinstance(source, TokenOf) else source
        if not isinstance(source, TokenOf):
            row = self.own[model][at]
        elif source.token_id is not None:
            row = source.token_id if source.token_id < self.speakers[model].rows else -1
        else:
            row = self.speakers[model].vocabulary.tokens.get(source.token or "", -1)
        if not 0 <= row < self.speakers[model].rows:
            raise NoSuchToken(text, model)
        return ((model, row),)

    def _fill(
        self,
        key: str,
        missing: Sequence[int],
        fills: dict[int, Fill],
        made: dict[tuple[str, str | None], list[int]],
    ) -> None:
        """Finds a fill, or a method and its donor, for each row that a model lacks."""
        names = {at: token for token, at in self.ids.items()}
        cut = self._cut(key) if missing and self.choice.approximate == "subword" else None
        near = self._near(key) if missing and (self.choice.byte_match or self.choice.prefix_match) else None
        for at in missing:
            fill: Fill | None = None
            way: tuple[str, str | None] = ("mean", None)
            if at not in names:
                fill = self._padding(at)
            elif near is not None and (found := near(names[at])) is not None:
                fill = ((key, found),)
            elif cut is not None and (pieces := cut(names[at])):
                if self.choice.pieces == "mean" and not self.choice.alters:
                    fill = tuple((key, row) for row in pieces)
                else:
                    self.cuts[key, at], way = pieces, ("subword", None)
            elif cut is not None:
                pass  # the mean
            elif self.choice.approximate in (None, "lend"):
                fill = self._shared(key, at)
                way = ("mean" if self.choice.approximate is None else "zero", None)
            else:
                way = self._approximated(key, at)
            if fill:
                fills[at] = fill
            elif way[0] == "zero" and not self.choice.alters:
                fills[at] = ZEROS
            else:
                made.setdefault(way, []).append(at)

    def _padding(self, at: int) -> Fill | None:
        """A row of no token is the ground's, where it has one of the right width."""
        row = self.own[self.ground.key][at]
        return ((self.ground.key, row),) if row >= 0 and self.ground.key != DONOR else None

    def _shared(self, key: str, at: int) -> Fill | None:
        """The base's row, the row of the only model that has the token, or the mean of those that have it."""
        having = [o for o in self.speakers if o not in (key, DONOR) and self.own[o][at] >= 0]
        having = ["base"] if "base" in having else having
        return tuple((other, self.own[other][at]) for other in having) or None

    def _approximated(self, key: str, at: int) -> tuple[str, str | None]:
        """The method, and where it learns from a donor the first of the ground and the others that has the
        token; else the mean.
        """
        method = str(self.choice.approximate)
        if method not in FROM_DONORS:
            return method, None
        donors = dict.fromkeys((self.ground.key, *self.speakers))
        donor = next((d for d in donors if d != key and self.own[d][at] >= 0), None)
        return (method, donor) if donor is not None else ("mean", None)

    def _near(self, key: str) -> Callable[[Any], int | None]:
        """The row of a token's only byte, or of its longest beginning, as far as the recipe asks for them."""
        speaker = self.speakers[key]
        known = {text: row for text, row in speaker.vocabulary.meanings().items() if row < speaker.rows}
        marks = {token.text.encode() for each in self.speakers.values() for token in each.vocabulary.added}

        def find(token: Any) -> int | None:
            meaning = self._meaning(token)
            if meaning in marks:
                return None
            same = known.get(meaning) if self.choice.byte_match and len(meaning) == 1 else None
            if same is not None or not self.choice.prefix_match:
                return same
            return next((known[begin] for begin in beginnings(meaning) if begin in known), None)

        return find

    def _cut(self, key: str) -> Callable[[Any], tuple[int, ...]]:
        speaker = self.speakers[key]
        pieces = Pieces(speaker.vocabulary.meanings(), speaker.rows)
        return lambda token: pieces.of(self._meaning(token))

    def _meaning(self, token: Any) -> bytes:
        if isinstance(token, bytes):
            return token
        for speaker in self.speakers.values():
            if token in speaker.vocabulary.tokens:
                return speaker.vocabulary.meaning(token)
        return str(token).encode()


class NoSuchToken(LookupError):
    """A rule asks for a token, or a row, that its model does not have."""

    def __init__(self, token: str, model: str) -> None:
        super().__init__(f"the rule of {token[:40]!r} asks {model} for a token it does not have")
        self.token = token
        self.model = model


def _unused(speaker: Speaker) -> Iterator[int]:
    """Rows of no token, and of tokens that are kept in reserve by their name."""
    names = {row: text for text, row in speaker.vocabulary.tokens.items()}
    for row in range(speaker.rows):
        if row not in names or re.search(r"unused|reserved", names[row], re.IGNORECASE):
            yield row


def _rule_flags(text: str) -> Mapping[str, bool]:
    """A new token that nobody has is special where it looks like a mark (``<...>``, ``[...]``)."""
    mark = (text[:1], text[-1:]) in (("<", ">"), ("[", "]"))
    return {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": mark}
