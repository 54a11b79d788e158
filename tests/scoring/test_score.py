"""The arithmetic of scores, against numbers worked by hand."""

import json
import math
from collections.abc import Callable

import pytest

from scoring.score import (
    Measured,
    Score,
    choice_loss,
    choice_scores,
    elected,
    mean_stderr,
    ratio_stderr,
    stream_scores,
    text_scores,
)

LN2 = math.log(2)


def test_bits_per_byte_divides_by_bytes_and_perplexity_by_tokens() -> None:
    windows = [Measured(0, -6 * LN2, 3), Measured(1, -4 * LN2, 2)]
    bits, perplexity = text_scores("t", [4, 6], windows, per_example=True)
    assert bits.value == pytest.approx(1.0)  # 10 bits over 10 bytes
    assert bits.per_example == pytest.approx((1.5, 4 / 6))
    assert perplexity.value == pytest.approx(4.0)  # 2 bits a token
    assert (bits.n, bits.higher_is_better, perplexity.metric) == (2, False, "perplexity")


def test_windows_of_one_text_add_up_whatever_their_order() -> None:
    windows = [Measured(1, -1.0, 1), Measured(0, -2.0, 2), Measured(1, -3.0, 5)]
    forward = text_scores("t", [5, 5], windows, per_example=True)
    assert forward == text_scores("t", [5, 5], windows[::-1], per_example=True)
    assert forward[0].per_example == pytest.approx((2 / 5 / LN2, 4 / 5 / LN2))


def test_a_text_without_scored_tokens_counts_for_nothing() -> None:
    bits, _ = text_scores("t", [10, 4], [Measured(0, 0.0, 0), Measured(1, -4 * LN2, 4)], per_example=False)
    assert (bits.value, bits.n) == (pytest.approx(1.0), 1)
    assert text_scores("t", [1], [], per_example=False) == []


def test_standard_error_of_a_mean_by_hand() -> None:
    # values 0 0 1 1: sample variance 1/3, over n = 4, square root
    assert mean_stderr([0.0, 0.0, 1.0, 1.0]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert mean_stderr([1.0]) is None


def test_standard_error_of_a_ratio_by_hand() -> None:
    # ratio 6/4 = 1.5; residuals 2 - 1.5 = .5 and 4 - 4.5 = -.5; sqrt(2/1 * .5) / 4
    assert ratio_stderr([2.0, 4.0], [1.0, 3.0]) == pytest.approx(math.sqrt(2 * 0.5) / 4)
    assert ratio_stderr([2.0, 4.0], [1.0, 2.0]) == 0.0


def test_one_long_text_gets_its_error_from_its_windows() -> None:
    windows = [Measured(0, -2.0, 2), Measured(0, -6.0, 2)]
    bits, perplexity = text_scores("t", [8], windows, per_example=False)
    loss_error = ratio_stderr([2.0, 6.0], [2.0, 2.0])
    assert loss_error is not None and bits.stderr == pytest.approx(loss_error * 4 / 8 / LN2)
    assert perplexity.stderr == pytest.approx(math.exp(2.0) * loss_error)


@pytest.mark.parametrize("measure", [text_scores, stream_scores])
def test_an_error_beyond_every_number_is_none(measure: Callable[..., list[Score]]) -> None:
    windows = [Measured(0, -1e6, 10), Measured(1, -9e6, 10)]
    sizes = [10, 10] if measure is text_scores else 20
    told = [score.as_dict() for score in measure("t", sizes, windows, True)]
    assert told[1]["stderr"] is None and told[0]["stderr"] is not None
    json.dumps(told, allow_nan=False)


def test_the_likeliest_choice_is_taken_per_byte() -> None:
    assert elected([-4.0, -6.0], [2, 4]) == 1  # -2 against -1.5 a byte, though -4 is the larger sum
    assert elected([-2.0, -1.0], [2, 1]) == 0  # equals: the first


def test_accuracy_is_the_share_of_right_answers() -> None:
    score, loss = choice_scores("q", [True, False, True, True], [1.0, 2.0, 3.0, 4.0], per_example=True)
    assert (score.value, score.n, score.per_example) == (0.75, 4, (1.0, 0.0, 1.0, 1.0))
    assert score.as_dict()["higher_is_better"] is True
    assert (loss.metric, loss.value, loss.per_example) == ("log_loss", 2.5, (1.0, 2.0, 3.0, 4.0))
    assert loss.as_dict()["higher_is_better"] is False


def test_a_right_choice_costs_the_logarithm_of_its_share_in_the_likelihood_of_all() -> None:
    assert choice_loss([math.log(0.03), math.log(0.01)], 0) == pytest.approx(-math.log(0.75))
    assert choice_loss([math.log(0.03), math.log(0.01)], 1) == pytest.approx(-math.log(0.25))
    assert choice_loss([-5000.0] * 4, 2) == pytest.approx(math.log(4))  # too unlikely to be told as a share
    assert choice_loss([-1.0, -3000.0], 1) == pytest.approx(2999.0)
