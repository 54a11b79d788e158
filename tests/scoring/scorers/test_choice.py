"""What a choice's likelihood is divided by decides which of two is taken, and says nothing of its loss."""

from pathlib import Path

import pytest

from scoring.runner import score_model
from scoring.score import elected
from scoring.settings import ChoiceSettings
from scoring.tasks import ChoiceTask, Question

QUESTIONS = (
    Question("The sky is", (" blue and wide and far away", " x"), 1),
    Question("2+2=", ("4", "five and a half"), 0),
)


def test_without_division_the_short_choice_wins_here_and_per_byte_need_not(decoder: Path) -> None:
    plain = ChoiceTask("q", QUESTIONS, settings=ChoiceSettings(normalise="none"))
    accuracy, loss = score_model(decoder, [plain], per_example=True)
    assert accuracy.per_example == (1.0, 1.0), "each further byte costs a byte-level model about log 260"
    assert loss.value == pytest.approx(0.0), "the right ones are the likelier by far"


def test_tokens_and_bytes_are_the_same_to_a_byte_level_model(decoder: Path) -> None:
    by = [ChoiceTask("q", QUESTIONS, settings=ChoiceSettings(normalise=n)) for n in ("bytes", "tokens")]  # type: ignore[arg-type]
    by_bytes, loss, by_tokens, same_loss = score_model(decoder, by, per_example=True)
    assert by_bytes.per_example == by_tokens.per_example
    assert loss.per_example == same_loss.per_example


@pytest.mark.parametrize(("sizes", "taken"), [([1, 1], 1), ([10, 1], 0)])
def test_sizes_turn_the_choice(sizes: list[int], taken: int) -> None:
    assert elected([-8.0, -2.0], sizes) == taken
