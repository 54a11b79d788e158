"""From texts and questions to rows of tokens with the part of each row whose likelihood is wanted.

A row is never longer than ``length`` tokens. A long text is cut into windows that overlap by half, so that
every token but those of the first window is predicted from at least half a window of what came before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scoring.tasks import Question


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, of which those from ``first`` on are scored given all before them. ``item``: whose they
    are.
    """

    item: int
    ids: tuple[int, ...]
    first: int

    @property
    def scored(self) -> int:
        """Number of tokens scored."""
        return len(self.ids) - self.first


def start_token(tokenizer: Any) -> int | None:
    """The token put before a text so that its first token can be scored: beginning, else end of text, else
    none.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return None


def starts_by_itself(tokenizer: Any) -> bool:
    """Whether this tokenizer puts its beginning-of-text token before a text when left to its own devices."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def text_rows(tokenizer: Any, texts: Sequence[str], length: int) -> Iterator[Row]:
    """Windows over every text; each of its tokens is scored exactly once (the first only after a start
    token).
    """
    start = start_token(tokenizer)
    for item, text in enumerate(texts):
        ids = _encode(tokenizer, text)
        if start is not None:
            ids = [start, *ids]
        done = 1
        while done < len(ids):
            begin = 0 if done == 1 else done - length // 2
            end = min(begin + length, len(ids))
            yield Row(item, tuple(ids[begin:end]), done - begin)
            done = end


def stream_rows(tokenizer: Any, texts: Sequence[str], length: int) -> Iterator[Row]:
    """Windows over all texts one after another, with a start token before each where there is one; each
    window is an item.
    """
    start = start_token(tokenizer)
    ids: list[int] = []
    for text in texts:
        ids += ([start] if start is not None else []) + _encode(tokenizer, text)
    done = item = 0
    while done + 1 < len(ids):
        begin = 0 if done == 0 else done + 1 - length // 2
        end = min(begin + length, len(ids))
        yield Row(item, tuple(ids[begin:end]), done + 1 - begin)
        done, item = end - 1, item + 1


def choice_rows(tokenizer: Any, questions: Sequence[Question], length: int) -> Iterator[Row]:
    """One row a choice, question by question; ``item`` counts choices through the whole set.

    Context and choice are encoded together, and what both encodings share counts as context; a context too
    long for ``length`` loses its beginning.
    """
    start, own = start_token(tokenizer), starts_by_itself(tokenizer)
    item = 0
    for question in questions:
        context = _encode(tokenizer, question.context)
        for choice in question.choices:
            ids = _encode(tokenizer, question.context + choice)
            first = min(_shared(context, ids), max(len(ids) - 1, 0))
            if start is not None and (own or first == 0):
                ids, first = [start, *ids], first + 1
            drop = max(0, len(ids) - length)
            yield Row(item, tuple(ids[drop:]), max(first - drop, 1))
            item += 1


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Pass:
    """Token ids to feed once, and the rows (by index) whose scored part can be read off the logits."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]


def passes(rows: Sequence[Row]) -> list[Pass]:
    """What must be fed to score every row that has something to score.

    The last token of a row is never fed, and a row that is the beginning of another is read off the other's
    logits, since a causal model does not look ahead. So the answers of one token to a question share one
    pass.
    """
    order = sorted((i for i in range(len(rows)) if rows[i].scored > 0), key=lambda i: rows[i].ids[:-1])
    found: list[Pass] = []
    for index in reversed(order):
        ids = rows[index].ids[:-1]
        # Sorted, whatever begins with these ids follows them directly: it is the last one found.
        if found and found[-1].ids[: len(ids)] == ids:
            found[-1] = Pass(found[-1].ids, (*found[-1].rows, index))
        else:
            found.append(Pass(ids, (index,)))
    return found


def batches(whole: Sequence[Pass], tokens: int, *, even: bool = False) -> list[list[Pass]]:
    """Passes grouped by length, longest first, at most ``tokens`` padded tokens a group; ``even`` where none
    may be padded.

    The order depends on the rows alone, so the same set is always batched the same way.
    """
    groups: list[list[Pass]] = []
    for each in sorted(whole, key=lambda each: (-len(each.ids), each.ids)):
        width = len(groups[-1][0].ids) if groups else 0
        fits = groups and width * (len(groups[-1]) + 1) <= tokens
        if fits and (not even or width == len(each.ids)):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups
