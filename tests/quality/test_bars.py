"""The bars of bench A's cut: sound merges stand, a broken method falls and is named."""

from collections.abc import Mapping

import pytest

from quality.cut import OVERSHOT, SUM, TRIED, fallen

SOUND: Mapping[str, float] = {
    "base": 56.2,
    "experts": 78.8,
    **dict.fromkeys(TRIED, 75.0),
    OVERSHOT: 63.3,
}


def test_sound_merges_stand() -> None:
    assert fallen(SOUND) == []


@pytest.mark.parametrize("name", [name for name in TRIED if name != OVERSHOT])
@pytest.mark.parametrize("value", [56.2, 40.0, 83.0])
def test_a_merge_that_gives_the_base_or_noise_or_more_than_the_experts_is_named(
    name: str, value: float
) -> None:
    assert any(line.startswith(f"{name} reached {value}") for line in fallen({**SOUND, name: value}))


def test_a_coefficient_without_effect_is_found() -> None:
    (line,) = fallen({**SOUND, OVERSHOT: SOUND[SUM]})
    assert line.startswith(OVERSHOT)
