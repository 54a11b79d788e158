"""mergekit's parameters become settings of steps, sources and slices, and overrides for its filters.

For one parameter of one tensor mergekit asks model, slice, module and top level in turn, and in each of them
a list of filters from the front; the first that fits wins. Here overrides come last and the last one wins,
so a chain of rules is written from its end: what has no filter as a setting, the filters as overrides.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge.mergekit.methods import IDLE, Method, Parameter
from merge.mergekit.shape import Given, Path, Piece, Region, Scope
from merge.mergekit.values import (
    all_flags,
    all_numbers,
    first_matches,
    read_flags,
    read_scalars,
    refuse,
    unknown,
)

Rule = tuple[str | None, Any]
"""A glob, or ``None`` for every tensor, and the value there."""


class Ledger:
    """Writes every parameter of a method where it belongs; the result is in its public attributes."""

    def __init__(
        self,
        name: str,
        method: Method,
        regions: Sequence[Region],
        shared: Scope,
        labels: Mapping[str, str],
        *,
        sliced: bool,
    ) -> None:
        self._name = name
        self._method = method
        self._regions = regions
        self._shared = shared
        self._sliced = sliced
        self.labels = labels
        self.steps = [{"method": step, **fixed} for step, fixed in method.steps]
        self.weights: dict[str, Any] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.overrides: list[dict[str, Any]] = []
        self.has_curves = False
        self.has_negative_weights = False
        self.idle: set[str] = set()

    def write(self) -> None:
        """Checks all names, then writes parameter by parameter."""
        self._check_names(self._shared, of_model=False)
        below = list(scopes_of(self._regions))
        for scope, of_model in below:
            self._check_names(scope, of_model=of_model)
        for parameter in self._method.parameters:
            if self._sliced and any(parameter.name in scope.values for scope, _ in below):
                self._write_in_pieces(parameter)
            elif parameter.by_source:
                self._write_by_source(parameter)
            else:
                rules = self._rules(parameter, self._shared)
                self._put(parameter, rules, self._step(parameter), self.overrides)

    def _check_names(self, scope: Scope, *, of_model: bool) -> None:
        names = [parameter.name for parameter in self._method.parameters]
        family = ("rescale", "int8_mask") if "lambda" in names else ()  # those on task vectors know these too
        names += [name for name in family if name not in names]
        for name in scope.values:
            known = self._method.parameter(name)
            if known is None and name in IDLE:
                if is_ever_true(scope.values[name]) or name != "rescale":
                    self.idle.add(name)
            elif known is None:
                refuse(*scope.at, str(name), unknown(str(name), names, f"parameter of {self._name}"))
            elif of_model and not known.by_source:
                message = f"{name} is for the whole merge: move it to the top-level parameters."
                refuse(*scope.at, name, message)

    def _rules(self, parameter: Parameter, *scopes: Scope) -> list[Rule]:
        """The rules of these places, the strongest first; values in our words."""
        rules: list[Rule] = []
        for scope in scopes:
            at = (*scope.at, parameter.name)
            for match, value in first_matches(scope.values.get(parameter.name), at):
                rules.append((match, self._value(parameter, value, at)))
                self.has_negative_weights |= parameter.step is None and "-" in str(value)
        return rules

    def _value(self, parameter: Parameter, value: Any, at: Path) -> Any:
        read = read_flags(value) if parameter.is_flag else read_scalars(value)
        if parameter.is_flag:
            if not all_flags(read):
                refuse(*at, f"{parameter.name} must be true or false, or a list of them.")
            if parameter.words and isinstance(read, list):
                refuse(*at, f"{parameter.name} must be plain true or false here, by filters if you like.")
            return parameter.words[read] if parameter.words else read
        if not all_numbers(read):
            message = f"{parameter.name} must be a number, a gradient, or a list of filter and value."
            refuse(*at, message)
        whole = isinstance(parameter.default, int) and not isinstance(read, list) and read == int(read)
        return int(read) if whole else read

    def _write_by_source(self, parameter: Parameter) -> None:
        """A parameter each model may set, where no slice or module says anything of it."""
        givens = {given.source: given for each in self._regions for p in each.pieces for given in p.given}
        own = [given for given in givens.values() if parameter.name in given.own.values and not self._sliced]
        shared = self._rules(parameter, self._shared)
        filtered = self._sliced and any(match is not None for match, _ in shared)
        if parameter.step is not None and not own and not filtered:
            self._put(parameter, shared, self._step(parameter), self.overrides)
            return
        for given in givens.values():
            scopes = (self._shared,) if self._sliced else (given.own, self._shared)
            target = self.weights if parameter.step is None else self.settings.setdefault(given.source, {})
            key = given.source if parameter.step is None else self._qualified(parameter)
            self._put(parameter, self._rules(parameter, *scopes), target, self.overrides, given.source, key)

    def _write_in_pieces(self, parameter: Parameter) -> None:
        """A parameter that modules, slices or their models speak of: written into every slice."""
        if not parameter.by_source and not parameter.required:
            self._put(parameter, [], self._step(parameter), self.overrides)
        for region in self._regions:
            for piece in region.pieces:
                wide = (piece.own, region.own, self._shared)
                overrides: list[dict[str, Any]] = []
                if parameter.by_source:
                    for given in piece.given:
                        self._put_given(parameter, self._rules(parameter, given.own, *wide), given, overrides)
                else:
                    settings = piece.written.setdefault("settings", {})
                    rules = self._rules(parameter, *wide)
                    self._put(parameter, rules, settings, overrides, None, self._qualified(parameter))
                if overrides:
                    piece.written.setdefault("overrides", []).extend(overrides)

    def _put_given(
        self, parameter: Parameter, rules: list[Rule], given: Given, overrides: list[dict[str, Any]]
    ) -> None:
        weight = parameter.step is None
        target = given.written if weight else given.written.setdefault("settings", {})
        key = "weight" if weight else self._qualified(parameter)
        self._put(parameter, rules, target, overrides, given.source, key)

    def _step(self, parameter: Parameter) -> dict[str, Any]:
        return self.steps[parameter.step or 0]

    def _put(
        self,
        parameter: Parameter,
        rules: list[Rule],
        target: dict[str, Any],
        overrides: list[dict[str, Any]],
        source: str | None = None,
        key: str | None = None,
    ) -> None:
        """What has no filter goes to ``target``, the filters to ``overrides``, the strongest last."""
        plain = next((value for match, value in rules if match is None), parameter.usual)
        if parameter.required and plain is parameter.default:
            self._refuse_missing(parameter, source, bool(rules))
        target[key or parameter.setting] = self._seen(plain)
        speaking = "weight" if parameter.step is None else self._qualified(parameter)
        found: list[dict[str, Any]] = []
        for match, value in rules:
            if match is None:
                break
            found.append({"match": match, "source": source, "settings": {speaking: self._seen(value)}})
        overrides += reversed(found)

    def _refuse_missing(self, parameter: Parameter, source: str | None, has_filters: bool) -> None:
        of = "" if source is None else f" for {self.labels[source]}"
        some = (
            " for the tensors no filter names: end the list with a value that has none" if has_filters else ""
        )
        refuse("parameters", parameter.name, f"{self._name} needs a {parameter.name}{of}{some}.")

    def _qualified(self, parameter: Parameter) -> str:
        """The setting's name among settings of all steps."""
        if len(self.steps) == 1 or parameter.step is None:
            return parameter.setting
        return f"{self.steps[parameter.step]['method']}.{parameter.setting}"

    def _seen(self, value: Any) -> Any:
        self.has_curves = self.has_curves or isinstance(value, list)
        return value


def scopes_of(regions: Sequence[Region]) -> Iterator[tuple[Scope, bool]]:
    """Every place below the top level where parameters stand, and whether it is a model's own."""
    for region in regions:
        yield region.own, False
        for piece in region.pieces:
            yield piece.own, False
            yield from ((given.own, True) for given in piece.given)


def is_ever_true(value: Any) -> bool:
    """Whether a parameter is true anywhere in its gradients and filters."""
    read = [read_flags(item) for _, item in first_matches(value, ())]
    return any(item is True or (isinstance(item, list) and True in item) for item in read)


def flags_of(
    defaults: Mapping[str, bool], names: Sequence[str], scope: Scope, *, refused: bool = False
) -> list[bool]:
    """Plain true or false for parameters that cannot differ from tensor to tensor."""
    found = []
    for name in names:
        value = read_flags(scope.values.get(name, defaults.get(name)))
        if name in scope.values and (refused or not isinstance(value, bool)):
            refuse(*scope.at, name, f"{name} must be plain true or false, once at the top level.")
        found.append(bool(value))
    return found


def written_pieces(region: Region) -> list[dict[str, Any]]:
    """The slices of a region in our form."""
    return [_written(piece) for piece in region.pieces]


def _written(piece: Piece) -> dict[str, Any]:
    return {"sources": [given.written for given in piece.given], **piece.written}
