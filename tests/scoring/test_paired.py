"""Paired bootstrap: the interval of a mean is the one that is known; the same scores give the same one."""

import math
import random
from dataclasses import replace

import pytest

from scoring.paired import difference, resampled_stderr
from scoring.score import Score, aggregate, mean_score, spearman

RNG = random.Random(7)
HARD = [RNG.random() for _ in range(400)]


def accuracy(values: list[float]) -> Score:
    return mean_score("t", "accuracy", values, per_example=True)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    one = accuracy([float(each < 0.7) for each in HARD])
    two = accuracy([float(each < 0.6) for each in HARD])
    found = difference(one, two)
    assert found is not None
    gaps = [a - b for a, b in zip(one.per_example or (), two.per_example or (), strict=True)]
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps))
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(
        (mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error
    )
    assert found.is_clear


def test_pairing_sees_what_two_separate_errors_hide() -> None:
    """Both models fail on the same hard items; one fails on a few more."""
    one = accuracy([float(each < 0.5) for each in HARD])
    two = accuracy([float(each < 0.47) for each in HARD])
    apart = math.hypot(one.stderr or 0, two.stderr or 0)
    found = difference(one, two)
    assert found is not None and found.is_clear and found.value < 2 * apart


def test_the_same_scores_give_the_same_interval_and_order_turns_it() -> None:
    one, two = accuracy([1.0, 0.0, 1.0, 1.0] * 20), accuracy([1.0, 0.0, 0.0, 1.0] * 20)
    first, second, back = difference(one, two), difference(one, two), difference(two, one)
    assert first == second and first is not None and back is not None
    assert (back.low, back.high) == pytest.approx((-first.high, -first.low))


def test_bits_per_byte_is_worked_out_anew_from_bytes_and_bits() -> None:
    long_and_bad = Score("t", "bits_per_byte", 1.9, None, 2, (1.0, 2.0), (10.0, 90.0))
    same = replace(long_and_bad, per_example=(1.0, 1.0), value=1.0)
    found = difference(long_and_bad, same)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.0, 1.0)), "draws of one text alone are among them"


def test_perplexity_is_a_mean_of_logarithms() -> None:
    score = Score("t", "perplexity", 4.0, None, 2, (2.0, 8.0), (1.0, 1.0))
    found = difference(score, replace(score, per_example=(2.0, 2.0), value=2.0))
    assert found is not None and (found.low, found.high) == pytest.approx((0.0, 6.0))


def test_a_perplexity_behind_a_filter_of_the_harness_is_one_too() -> None:
    values, weights = (2.0, 8.0, 4.0, 4.0), (1.0, 1.0, 3.0, 2.0)
    plain, other = (
        Score("t", "word_perplexity", 4.0, None, 4, each, weights) for each in (values, (3.0,) * 4)
    )
    found = difference(*(replace(each, metric="law:word_perplexity,strict") for each in (plain, other)))
    assert found == difference(plain, other)
    assert aggregate("word_perplexity,strict", values, weights) == aggregate("perplexity", values, weights)


def test_the_error_of_a_rank_correlation_shrinks_with_the_items() -> None:
    def of(n: int) -> float:
        told = [float(i) for i in range(n)]
        noisy = [i + RNG.gauss(0, n / 3) for i in range(n)]
        return (
            resampled_stderr(
                Score("t", "spearman", spearman(noisy, told), None, n, tuple(noisy), tuple(told))
            )
            or 0.0
        )

    assert of(20) > 1.5 * of(180) > 0


@pytest.mark.parametrize(
    "other",
    [
        Score("t", "accuracy", 1.0, None, 3, (1.0, 1.0, 1.0)),
        Score("t", "accuracy", 1.0, None, 2),
        Score("t", "exact_match", 1.0, None, 2, (1.0, 1.0)),
    ],
)
def test_what_cannot_be_paired_has_no_difference(other: Score) -> None:
    assert difference(Score("t", "accuracy", 0.5, None, 2, (1.0, 0.0)), other) is None


def test_what_is_cut_otherwise_is_not_paired() -> None:
    """Streams under two tokenizers may have as many windows by chance."""
    one = Score("t", "bits_per_byte", 1.0, None, 2, (1.0, 1.0), (60.0, 40.0))
    assert difference(one, replace(one, weights=(70.0, 30.0))) is None
    assert difference(one, replace(one, weights=(60.0, 0.0))) is not None, "a text that one could not read"
