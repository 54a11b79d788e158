"""Row tables: what stands in every row of the result, for every model, and where it comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from merge.checkpoint.vocabulary import AddedToken, Vocabulary
from merge.recipe.tokenizer import TokenizerChoice
from merge.tokenizer.align import Alignment, Made, NoSuchToken, Speaker, align

FLAGS = {"special": True}


def vocabulary(tokens: Mapping[str, int] | Sequence[str], added: Sequence[str] = ()) -> Vocabulary:
    ids = dict(tokens) if isinstance(tokens, Mapping) else {token: at for at, token in enumerate(tokens)}
    listed = tuple(AddedToken(token, ids[token], FLAGS) for token in added)
    return Vocabulary("BPE", ids, listed, {}, False)


def speaker(key: str, tokens: Any, rows: int | None = None, added: Sequence[str] = ()) -> Speaker:
    known = vocabulary(tokens, added)
    return Speaker(key, f"org/{key}", known, known.size if rows is None else rows)


def aligned(choice: Mapping[str, Any], *speakers: Speaker, ground: str | None = None) -> Alignment:
    return align(TokenizerChoice.model_validate(choice), speakers, ground or speakers[0].key)


def rows_of(found: Alignment, key: str) -> list[int]:
    return found.tables[key].rows.tolist()


def test_union_keeps_the_grounds_ids_and_adds_the_others_in_their_order() -> None:
    a, b = speaker("a", ["x", "y"]), speaker("b", {"z": 0, "y": 1, "w": 2, "x": 3})
    found = aligned({"source": "union"}, a, b)
    assert [(token.text, token.id, token.origin) for token in found.new] == [("z", 2, "b"), ("w", 3, "b")]
    assert rows_of(found, "a") == [0, 1, -1, -1]
    assert rows_of(found, "b") == [3, 1, 0, 2]
    assert found.tables["a"].fills == {2: (("b", 0),), 3: (("b", 2),)}
    assert found.tables["b"].fills == {}
    assert not found.tables["a"].identity


def test_a_missing_token_is_the_bases_else_the_only_ones_else_the_mean_of_those_who_have_it() -> None:
    base, a = speaker("base", ["x", "p"]), speaker("a", ["x", "q", "r"])
    b, c = speaker("b", ["x", "r"]), speaker("c", ["x"])
    found = aligned({"source": "union"}, base, a, b, c)
    assert [token.text for token in found.new] == ["q", "r"]
    assert found.tables["c"].fills == {
        1: (("base", 1),),
        2: (("a", 1),),
        3: (("a", 2), ("b", 1)),
    }
    assert found.tables["base"].fills == {2: (("a", 1),), 3: (("a", 2), ("b", 1))}


def test_the_bases_row_is_preferred_to_a_mean() -> None:
    base, a, b, c = (
        speaker(key, tokens) for key, tokens in (("base", "xp"), ("a", "xp"), ("b", "px"), ("c", "x"))
    )
    assert aligned({"source": "base"}, base, a, b, c).tables["c"].fills == {1: (("base", 1),)}


def test_with_a_models_vocabulary_the_others_lose_what_it_lacks() -> None:
    found = aligned({"source": "b"}, speaker("a", ["x", "y", "z"]), speaker("b", ["z", "x"]), ground="b")
    assert (found.rows, rows_of(found, "a"), rows_of(found, "b")) == (2, [2, 0], [0, 1])
    assert found.tables["b"].identity
    assert found.new == ()


def test_padding_rows_stay_as_they_are_in_the_ground() -> None:
    a, b = speaker("a", ["x", "y"], rows=5), speaker("b", ["x", "y", "z"], rows=4)
    found = aligned({"source": "a"}, a, b)
    assert rows_of(found, "a") == [0, 1, 2, 3, 4]
    assert found.tables["a"].identity
    assert rows_of(found, "b") == [0, 1, -1, 3, -1], "row 2 of b is a token, row 4 is not there"
    assert found.tables["b"].fills == {2: (("a", 2),), 4: (("a", 4),)}


def test_new_tokens_use_padding_rows_first() -> None:
    found = aligned({"source": "union"}, speaker("a", ["x"], rows=4), speaker("b", ["x", "z"]))
    assert (found.rows, found.new[0].id) == (4, 1)
    assert found.tables["a"].fills == {1: (("b", 1),)}
    assert rows_of(found, "a") == [0, -1, 2, 3]


def test_holes_in_the_ids_are_kept_and_not_filled_with_tokens() -> None:
    found = aligned({"source": "union"}, speaker("a", {"x": 0, "y": 5}), speaker("b", ["z"]))
    assert (found.new[0].id, found.rows) == (6, 7)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 3), (2, 4), (64, 64)])
def test_padding_to_a_multiple_may_also_cut_padding(multiple: int, rows: int) -> None:
    found = aligned({"source": "a", "pad_to_multiple_of": multiple}, speaker("a", ["x", "y", "z"], rows=10))
    assert found.rows == rows
    beyond = tuple(range(10, rows))
    assert found.tables["a"].made == ((Made("mean", None, beyond),) if beyond else ())


def test_a_token_beyond_the_embedding_is_taken_from_who_has_a_row_for_it() -> None:
    found = aligned({"source": "a"}, speaker("a", ["x", "y"], rows=1), speaker("b", ["y", "x"]))
    assert rows_of(found, "a") == [0, -1]
    assert found.tables["a"].fills == {1: (("b", 0),)}


def test_rules_say_where_a_row_comes_from_where_a_model_lacks_it() -> None:
    choice = {"source": "union", "tokens": {"z": {"source": "zero"}, "w": {"source": "c"}}}
    a, b, c = speaker("a", ["x"]), speaker("b", ["x", "z", "w"]), speaker("c", ["w", "x"])
    found = aligned(choice, a, b, c)
    assert found.tables["a"].fills == {1: (), 2: (("c", 0),)}
    assert rows_of(found, "b") == [0, 1, 2], "b has them and nothing is forced"


def test_a_forced_rule_takes_the_row_from_everyone() -> None:
    choice = {"tokens": {"x": {"source": "b", "force": True}}}
    found = aligned(choice, speaker("a", ["x", "y"]), speaker("b", ["y", "x"]))
    assert rows_of(found, "a") == [-1, 1]
    assert found.tables["a"].fills == {0: (("b", 1),)}
    assert rows_of(found, "b") == [1, 0]


def test_a_rule_may_name_another_token_or_a_row_and_add_a_token_nobody_has() -> None:
    choice = {
        "tokens": {
            "<new>": {"source": {"model": "a", "token": "y"}},
            "also": {"source": {"model": "b", "token_id": 0}},
            "<alone>": {},
        }
    }
    found = aligned(choice, speaker("a", ["x", "y"]), speaker("b", ["x", "y"]))
    assert [(t.text, t.id, t.flags and t.flags["special"]) for t in found.new] == [
        ("<new>", 2, True), ("also", 3, False), ("<alone>", 4, True)
    ]  # fmt: skip
    assert rows_of(found, "a") == [0, 1, 1, -1, -1]
    assert found.tables["a"].fills == {3: (("b", 0),)}
    assert found.tables["a"].made == (Made("mean", None, (4,)),)


@pytest.mark.parametrize(
    "source", [{"model": "a", "token": "nope"}, {"model": "a", "token_id": 99}, "b"], ids=str
)
def test_a_rule_for_a_token_its_model_lacks_is_refused(source: Any) -> None:
    choice = {"tokens": {"x": {"source": source, "force": True}}}
    with pytest.raises(NoSuchToken):
        aligned(choice, speaker("a", ["x"]), speaker("b", ["y"]))


def test_tokens_are_compared_by_meaning_where_they_are_spelt_differently() -> None:
    words = speaker("a", ["<s>", "<0x41>", "<0xC3>", "▁the", "A", "▁"], added=["<s>"])
    pieces = speaker("b", ["A", "Ġthe", "<s>", "Ġ", "Ã", "ĠA"], added=["<s>"])
    found = aligned({"source": "b"}, words, pieces, ground="b")
    assert rows_of(found, "a") == [4, 3, 0, 5, 2, -1], (
        "a lone byte stands in for it only where no letter does"
    )
    found = aligned({"source": "a"}, words, pieces, ground="a")
    assert rows_of(found, "a") == [0, 1, 2, 3, 4, 5], "a lone byte keeps its own row beside the letter's"
    assert rows_of(found, "b") == [2, 0, 4, 1, 0, 3], "and is the other model's letter"


def test_approximated_rows_name_the_method_and_the_first_that_knows_the_token() -> None:
    a, b, c = speaker("a", ["x"]), speaker("b", ["x", "y"]), speaker("c", ["y", "z"])
    found = aligned({"source": "union", "approximate": "omp"}, a, b, c)
    assert found.tables["a"].made == (Made("omp", "b", (1,)), Made("omp", "c", (2,)))
    assert found.tables["b"].made == (Made("omp", "c", (2,)),)
    assert found.tables["c"].made == (Made("omp", "a", (0,)),)
    assert found.shared("a", "b") == [0]
    assert found.shared("b", "c") == [1]


def test_subwords_are_known_from_the_vocabulary_alone() -> None:
    a, b = speaker("a", ["t", "h", "th", "e", "Ġ"]), speaker("b", ["t", "the", "Ġthe", "xyz"])
    found = aligned({"source": "b", "approximate": "subword"}, a, b, ground="b")
    assert found.tables["a"].fills == {1: (("a", 2), ("a", 3)), 2: (("a", 4), ("a", 2), ("a", 3))}
    assert found.tables["a"].made == (Made("mean", None, (3,)),), "no pieces make xyz"


def test_rows_of_a_donor_never_fill_anything() -> None:
    m, donor = speaker("m", ["x", "y"]), speaker("donor", ["y", "z"], rows=4)
    found = aligned({"source": "donor", "donor": "d", "approximate": "zero"}, m, donor, ground="donor")
    assert rows_of(found, "m") == [1, -1, -1, -1]
    assert found.tables["m"].fills == {1: ()}
    assert found.tables["m"].made == (Made("mean", None, (2, 3)),)


def test_the_digest_covers_every_row() -> None:
    a, b = speaker("a", ["x", "y"]), speaker("b", ["y", "x"])
    plain = aligned({"source": "a"}, a, b)
    forced = aligned({"source": "a", "tokens": {"x": {"source": "zero", "force": True}}}, a, b)
    assert plain.digest() == aligned({"source": "a"}, a, b).digest()
    assert plain.digest() != forced.digest()
