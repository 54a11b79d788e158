"""Settings of one method that limit each other, such as two shares that add up to one at most, and those that
are allowed but deserve a word of caution.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limit:
    """Each setting in ``of`` times its factor, all added up, may be at most ``at_most``; unless any setting
    has the value that ``unless`` names.
    """

    of: Mapping[str, float]
    at_most: float = 0.0
    unless: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, from which ``Limit(**...)`` makes it again."""
        return asdict(self)

    def rule(self) -> str:
        """The limit in words."""
        return f"`{_terms(self.of)}` is at most {self.at_most:g}" + _lifted(self.unless)

    def broken(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong with one plain value of every setting, or ``None``."""
        if any(values[name] == value for name, value in self.unless.items()):
            return None
        if sum(factor * values[name] for name, factor in self.of.items()) <= self.at_most + 1e-9:
            return None
        told = " and ".join(f"{name} is {values[name]:g}" for name in self.of)
        return f"{_terms(self.of)} must be at most {self.at_most:g}, but {told}"


@dataclass(frozen=True)
class Caution:
    """Something to know before a method is used. With ``setting`` it is told only where that setting is at
    least ``at_least``, or with ``shared_out`` at least ``at_least`` divided by the number of other sources;
    and never where any setting has the value that ``unless`` names.
    """

    about: str
    setting: str | None = None
    at_least: float = 0.0
    shared_out: bool = False
    unless: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, from which ``Caution(**...)`` makes it again."""
        return asdict(self)

    def rule(self) -> str:
        """When it is told, in words; empty where always."""
        if self.setting is None:
            return ""
        bound = f"{self.at_least:g}" + (" / (sources - 1)" if self.shared_out else "")
        return f"where `{self.setting}` is at least {bound}" + _lifted(self.unless)

    def heard(self, defaults: Mapping[str, Any], values: Mapping[str, Any], sources: int) -> str | None:
        """The sentence for these settings and so many sources, or ``None`` where all is well."""
        mine = _of_source(defaults, {name: values.get(name) for name in self.unless}, 0)
        if any(mine[name] == value for name, value in self.unless.items()):
            return None
        if self.setting is None:
            return self.about
        given = values.get(self.setting)
        every = given if isinstance(given, tuple) else (given,)
        plain = [defaults[self.setting] if value is None else value for value in every]
        if self.shared_out and sources < 2:
            return None
        bound = self.at_least / (sources - 1) if self.shared_out else self.at_least
        if max(plain) < bound:
            return None
        return f"with {sources} sources and {self.setting} {max(plain):g} (from {bound:.3g} on), {self.about}"


def conflicts(
    limits: Sequence[Limit], defaults: Mapping[str, Any], values: Mapping[str, Any]
) -> Iterator[str]:
    """A sentence for every limit that resolved settings break, once for all sources; a tuple holds a value a
    source, ``None`` stands for the default.
    """
    sources = max((len(value) for value in values.values() if isinstance(value, tuple)), default=1)
    for limit in limits:
        found = (limit.broken(_of_source(defaults, values, place)) for place in range(sources))
        yield from list(filter(None, found))[:1]


def _of_source(defaults: Mapping[str, Any], values: Mapping[str, Any], place: int) -> dict[str, Any]:
    mine = dict(defaults)
    for name, value in values.items():
        value = value[place] if isinstance(value, tuple) else value
        if value is not None:
            mine[name] = value
    return mine


def _lifted(unless: Mapping[str, Any]) -> str:
    """What lifts a rule, in words; empty where nothing does."""
    told = " or ".join(f"`{name}` is {value}" for name, value in unless.items())
    return f", unless {told}" if told else ""


def _terms(of: Mapping[str, float]) -> str:
    signed = [("- " if factor < 0 else "+ ", abs(factor), name) for name, factor in of.items()]
    text = " ".join(f"{sign}{'' if size == 1 else f'{size:g} '}{name}" for sign, size, name in signed)
    return text.removeprefix("+ ")
