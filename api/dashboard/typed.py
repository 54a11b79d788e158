"""What the forms of searches, scores and routers are made of: texts as typed, and rows of evaluation sets."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from api.dashboard.draft import Draft
from api.dashboard.forms import trimmed

INPUTS = {"/hub_credential": "credential", "/webhook": "webhook_url"}
_SET = re.compile(r"/evaluate/sets/(\d+)/(name|kind|data|limit|settings)")


@dataclass
class Typed(ABC):
    """Every text of a form as typed; ``sets`` has what every form has: evaluation sets, token, webhook."""

    TEXTS: ClassVar[tuple[str, ...]] = ()
    """Names of its own inputs; without the first there is nothing to plan."""
    INPUTS: ClassVar[Mapping[str, str]] = {}
    """Which input is meant by what begins with a pointer."""

    texts: dict[str, str] = field(default_factory=dict)
    sets: Draft = field(default_factory=lambda: Draft(evaluate=[{}]))

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> Self:
        """What a posted form holds."""
        return cls({name: trimmed(str(form.get(name) or "")) for name in cls.TEXTS}, Draft.from_form(form))

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""

    @property
    def wrong(self) -> dict[str, str]:
        """A sentence for each input that cannot be read, or cannot work."""
        return self.sets.wrong

    @property
    def is_blank(self) -> bool:
        """Whether nothing is there yet that could be planned."""
        return not self.texts.get(self.TEXTS[0])

    def input_of(self, pointer: str) -> str:
        """Name of the input that a JSON pointer into the order means; nothing for what has none."""
        if named := _SET.match(pointer):
            return f"evaluate-{named[1]}-{'where' if named[2] == 'data' else named[2]}"
        if pointer.startswith("/evaluate/sets"):
            return "evaluate-0-where"
        known = {**self.INPUTS, **INPUTS}
        rest = "rest" if self.sets.rest else ""
        return next((name for start, name in known.items() if pointer.startswith(start)), rest)

    def act(self, action: str) -> None:
        """What a button does: adds or removes an evaluation set."""
        self.sets.act(action)

    def wishes(self, *names: str) -> dict[str, Any]:
        """Of what every form has, these parts of the order, as far as they were filled in."""
        wished = self.sets.wishes()
        return {name: wished[name] for name in ("webhook", "hub_credential", *names) if name in wished}

    def completed(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """An order with what has no field of its own."""
        return self.sets.completed(order)

    def number(self, name: str) -> int | None:
        """The whole number that was typed into an input, if one was."""
        text = self.texts[name]
        return self.sets.whole(name, text) if text else None
