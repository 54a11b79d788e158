"""Texts are read whole, cut at line ends, and in one split each."""

import random
from pathlib import Path

from demo.texts import documents, one_sum, read_nouns, split_of
from demo.train_family import BASE_MIX, EXPERTS, expert_mix, kind_questions

NOUNS = """  1 a line of the licence
00001 05 n 01 house_cat 0 001 @ 0002 n 0000 | a furry animal that purrs; "the old house cat sleeps in the sun"
00002 03 n 01 entity 0 000 | something whose kind has no name here at all
00003 20 n 01 oak 0 000 | short
"""


def test_documents_are_the_text_again_when_joined() -> None:
    text = "".join(f"line {i} {'x' * (i % 60)}\n" for i in range(200)) + "no end"
    parts = documents(text, 300)
    assert "".join(parts) == text and max(map(len, parts)) <= 300
    assert documents("y" * 500, 300) == ["y" * 500] and documents(" \n", 300) == []


def test_a_document_is_in_one_split_and_most_are_for_training() -> None:
    splits = [split_of(f"module{i}.py") for i in range(5000)]
    assert splits == [split_of(f"module{i}.py") for i in range(5000)]
    assert 0.94 < splits.count("train") / 5000 < 0.98
    assert splits.count("validation") > 50 and splits.count("held-out") > 50


def test_sums_are_right_and_no_pair_of_numbers_is_in_two_splits() -> None:
    pairs: dict[str, set[str]] = {}
    for split in ("train", "validation", "held-out"):
        rng = random.Random(split)
        lines = [one_sum(rng, split).strip() for _ in range(300)]
        pairs[split] = {line.partition("=")[0].replace("-", "+") for line in lines}
        for line in lines:
            left, _, right = line.partition("=")
            a, b = (int(part) for part in left.replace("-", "+").split("+"))
            assert int(right) == (a + b if "+" in left else a - b) >= 0
    assert not pairs["train"] & (pairs["validation"] | pairs["held-out"])


def test_nouns_are_read_with_their_kind_and_the_examples_apart(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    for part in ("verb", "adj"):
        (tmp_path / f"data.{part}").write_text("")
    entries, sentences = read_nouns(tmp_path)
    assert [entry.text for entry in entries] == ["house cat: a furry animal that purrs. Kind: animal."]
    assert sentences == ["The old house cat sleeps in the sun."]


def test_a_question_offers_the_entry_s_kind_among_three_others(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    for part in ("verb", "adj"):
        (tmp_path / f"data.{part}").write_text("")
    (question,) = kind_questions(read_nouns(tmp_path)[0], 10)
    choices, answer = question["choices"], question["answer"]
    assert isinstance(choices, list) and isinstance(answer, int)
    assert choices[answer] == " animal" and len(set(choices)) == 4
    assert str(question["context"]).endswith("Kind:")


def test_an_expert_reads_mostly_its_own_domain_and_something_of_every_other() -> None:
    for domain in EXPERTS:
        mix = expert_mix(domain)
        assert abs(sum(mix.values()) - 1) < 1e-9 and mix[domain] > 0.7
        assert set(mix) == set(BASE_MIX) and min(mix.values()) > 0
