"""Every token of a text is scored once, with enough before it; choices are scored after their context."""

import random
from typing import Any

import pytest

from scoring.tasks import Question
from scoring.windows import Pass, Row, batches, choice_rows, passes, text_rows


class Letters:
    """A tokenizer of one token a character; ``pairs`` become one token of their own, as merges do."""

    def __init__(self, bos: int | None = None, eos: int | None = 0, pairs: tuple[str, ...] = ()) -> None:
        self.bos_token_id, self.eos_token_id, self.pairs = bos, eos, pairs

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        while text:
            pair = text[:2] if text[:2] in self.pairs else text[:1]
            ids.append(sum(ord(c) << (8 * i) for i, c in enumerate(pair)))
            text = text[len(pair) :]
        return {"input_ids": ids}


def scored(rows: list[Row], item: int) -> str:
    return "".join(chr(i) for row in rows if row.item == item for i in row.ids[row.first :])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 12, 13, 16, 17, 100])
def test_every_token_is_scored_exactly_once_whatever_the_length(size: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(size))
    rows = list(text_rows(Letters(), [text, "xy"], 8))
    assert (scored(rows, 0), scored(rows, 1)) == (text, "xy")
    assert all(len(row.ids) <= 8 and row.scored >= 1 for row in rows)


def test_later_windows_see_half_a_window_of_what_came_before() -> None:
    rows = list(text_rows(Letters(), ["a" * 50], 8))
    assert [row.first for row in rows[:3]] == [1, 4, 4]


def test_without_a_start_token_the_first_token_is_context_only() -> None:
    rows = list(text_rows(Letters(eos=None), ["abc", "z"], 8))
    assert [scored(rows, 0), scored(rows, 1)] == ["bc", ""]


def test_choices_are_scored_and_their_context_is_not() -> None:
    rows = list(choice_rows(Letters(), [Question("ab", ("cd", "e"), 0), Question("x", ("y", "z"), 1)], 16))
    assert [scored(rows, item) for item in range(4)] == ["cd", "e", "y", "z"]
    assert rows[0].ids[: rows[0].first] == (97, 98)


def test_a_token_across_the_border_counts_to_the_choice() -> None:
    row = next(choice_rows(Letters(pairs=("bc",)), [Question("ab", ("cd", "e"), 0)], 16))
    assert row.first == 1 and row.scored == 2


def test_a_tokenizer_that_starts_texts_with_a_token_of_its_own_gets_it() -> None:
    row = next(choice_rows(Letters(bos=5), [Question("ab", ("c", "d"), 0)], 16))
    assert row.ids == (5, 97, 98, 99) and row.first == 3


def test_an_empty_context_still_leaves_every_token_of_the_choice_scored() -> None:
    rows = list(choice_rows(Letters(), [Question("", ("ab", "c"), 0)], 16))
    assert [scored(rows, item) for item in range(2)] == ["ab", "c"]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    row = next(choice_rows(Letters(), [Question("abcdefgh", ("yz", "w"), 0)], 6))
    assert "".join(map(chr, row.ids)) == "efghyz" and row.first == 4


def test_rows_that_begin_alike_share_one_pass() -> None:
    rows = [
        Row(0, (1, 2, 3), 2),
        Row(1, (1, 2, 4), 2),
        Row(2, (1, 2, 5, 6), 2),
        Row(3, (1, 3, 9), 2),
        Row(4, (7,), 1),
    ]
    found = {each.ids: sorted(each.rows) for each in passes(rows)}
    assert found == {(1, 2, 5): [0, 1, 2], (1, 3): [3]}


def test_every_row_is_in_one_pass_that_begins_with_what_it_needs() -> None:
    rng = random.Random(0)
    rows = [Row(i, tuple(rng.choices([0, 1], k=rng.randint(2, 7))), 1) for i in range(300)]
    found = passes(rows)
    assert sorted(index for each in found for index in each.rows) == list(range(300))
    for each in found:
        for index in each.rows:
            assert each.ids[: len(rows[index].ids) - 1] == rows[index].ids[:-1]
    assert len({each.ids for each in found}) == len(found) < 100


def test_batches_hold_passes_of_like_length_within_the_budget() -> None:
    whole = [Pass((i,) * size, (i,)) for i, size in enumerate([3, 9, 4, 9, 2, 30])]
    groups = batches(whole, 18)
    assert [[each.rows[0] for each in group] for group in groups] == [[5], [1, 3], [2, 0, 4]]
