"""Settings that count layers at both ends of a model, and what of that a model has room for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ends:
    """``bottom`` and ``top`` name the settings that count layers at the ends (below zero: the share beside
    it of all layers), ``transition`` the one that counts layers of transition beside either. Where a setting
    has the value that ``unless`` names, the counts are only known in the run.
    """

    bottom: str
    top: str
    transition: str
    bottom_share: float
    top_share: float
    unless: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, from which ``Ends(**...)`` makes it again."""
        return asdict(self)

    def counts(self, layers: int, bottom: int, top: int) -> tuple[int, int]:
        """Layers at the bottom and at the top of ``layers``."""
        lower = round(self.bottom_share * layers) if bottom < 0 else bottom
        return lower, round(self.top_share * layers) if top < 0 else top

    def told(self, layers: int, defaults: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
        """What does not fit into ``layers``, as a sentence, or ``None`` where all does."""
        given = {name: defaults[name] if values.get(name) is None else values[name] for name in defaults}
        if any(given[name] == value for name, value in self.unless.items()):
            return None
        bottom, top = self.counts(layers, int(given[self.bottom]), int(given[self.top]))
        steps = int(given[self.transition])
        blocks = f"{self.bottom} {bottom} and {self.top} {top}"
        if not bottom and not top:
            return f"{blocks} take none of the {layers} layers"
        if bottom + top >= layers:
            return f"{blocks} leave none of the {layers} layers between them"
        lower, upper = transitions(layers, bottom, top, steps)
        sides = ((self.bottom, bottom, lower), (self.top, top, upper))
        lost = [name for name, wanted, kept in sides if wanted and not kept]
        if not steps or not lost:
            return None
        left = "both transitions are" if len(lost) == 2 else f"the transition beside {lost[0]} is"
        room = f"{layers - bottom - top} of {layers} layers"
        return f"{left} left out: {blocks} leave {room}, too few for {self.transition} {steps}"


def transitions(layers: int, bottom: int, top: int, transition: int) -> tuple[int, int]:
    """Layers of transition above the bottom block and below the top one: all that are asked for, or none
    where they would leave no layer between; the upper ones give way first.
    """
    room = layers - bottom - top
    lower = transition if bottom and room > transition else 0
    upper = transition if top and room - lower > transition else 0
    return lower, upper
