"""The parts of the SmolLM2 demo that need neither its weights nor the package index."""

import random

import pytest
import torch

from demo.smollm2 import IGNORED, pad
from demo.smollm2_tasks import (
    Labelled,
    balanced,
    descriptions,
    label_questions,
    sum_of,
    sum_questions,
)
from demo.smollm2_weights import halves_from_pairs, transformers_name

INDEX = """Package: nethack
Section: games
Description: dungeon crawl game with text interface
 more words

Package: libfoo
Section: libs
Description: a library whose section has no name here

Package: short
Section: games
Description: tiny
"""


def test_the_rows_of_a_rotated_weight_come_back_in_the_order_of_halves() -> None:
    heads, half, columns = 3, 4, 5
    original = torch.arange(heads * 2 * half * columns).float().reshape(heads * 2 * half, columns)
    # what the writer of the GGUF file did: in each head, row i of both halves side by side
    paired = original.reshape(heads, 2, half, columns).transpose(1, 2).reshape(original.shape)
    assert not torch.equal(paired, original)
    assert torch.equal(halves_from_pairs(paired, heads), original)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_names_are_those_of_transformers(name: str, ours: str) -> None:
    assert transformers_name(name) == ours


def test_descriptions_come_with_the_name_of_their_section() -> None:
    assert list(descriptions(INDEX)) == [Labelled("dungeon crawl game with text interface", "game")]


def test_no_class_has_more_rows_than_asked_and_no_row_is_in_two_splits() -> None:
    rows = [Labelled(f"text number {i}", "ab"[i % 7 == 0]) for i in range(3000)]
    train, held = balanced(rows, "train", 100), balanced(rows, "held-out", 16)
    assert [sum(row.label == label for row in train) for label in "ab"] == [100, 100]
    assert held and not set(train) & set(held)


def test_label_questions_have_their_answer_among_four() -> None:
    rows = [Labelled("one two three four", "b")] * 30
    questions = label_questions(rows, ["a", "b", "c", "d", "e"], 20)
    assert len(questions) == 20 and len({question.answer for question in questions}) > 1
    assert all(
        question.choices[question.answer] == " b" and len(set(question.choices)) == 4
        for question in questions
    )


def test_sum_questions_are_right_and_the_wrong_answers_near() -> None:
    for question in sum_questions("held-out", 50):
        left = question.context.splitlines()[-1].rstrip("=")
        a, b = (int(part) for part in left.replace("-", "+").split("+"))
        right = a + b if "+" in left else a - b
        assert question.choices[question.answer] == f"{right}\n"
        assert all(
            0 < abs(int(c) - right) <= 11 for i, c in enumerate(question.choices) if i != question.answer
        )


def test_sums_of_one_split_are_not_in_another() -> None:
    rng = random.Random(0)
    train = {sum_of(rng, "train")[0] for _ in range(400)}
    assert not train & {sum_of(rng, "held-out")[0] for _ in range(400)}


def test_padding_and_prompts_are_left_out_of_the_loss() -> None:
    inputs, mask, targets = pad([([5, 6, 7], 2), ([8], 0)], filler=2)
    assert inputs.tolist() == [[5, 6, 7], [8, 2, 2]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert targets.tolist() == [[IGNORED, IGNORED, 7], [8, IGNORED, IGNORED]]
