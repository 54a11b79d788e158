"""The steps of a plan bound to single tensors: methods with their params, by sharing what is the same."""

from collections.abc import Iterable, Mapping
from typing import Any

from merge.arch.roles import Towers, is_turned
from merge.contract.groups import Site
from merge.contract.method import Kind, get
from merge.plan import Plan
from merge.planning.outputs import OutputTensor
from merge.running.chain import Bound, Chain


class Binder:
    """Makes the chain of each output of a plan; ``names`` are those of all outputs."""

    def __init__(self, plan: Plan, names: Iterable[str]) -> None:
        self._plan = plan
        self._towers = Towers.of(names)
        self._params: dict[Any, tuple[Bound, ...]] = {}
        self._alike: dict[Any, tuple[Bound, ...]] = {}
        self._stands_for = {source.id: source.stands_for for source in plan.recipe.sources}

    def chain(self, output: OutputTensor) -> Chain:
        """The steps of the recipe, or the mean that a policy asks for, bound to one tensor."""
        config = self._plan.models[self._plan.reference].config
        turned = is_turned(output.name, output.shape, config)
        sources, layers = output.source_names(), self._towers.length(output.name)
        counts = tuple(self._stands_for.get(source.model, 1) for source in output.sources)
        longest = self._towers.longest
        site = Site(output.name, output.role, output.seen, sources, turned, layers, counts, longest)
        if output.policy == "method":
            seed = self._plan.recipe.seed
            return Chain(site, self._bound(output), output.weights, seed, sources=output.ids)
        method, count = get("linear"), len(output.sources)
        bound = Bound(method, (method.settings({}, count),), "policy")
        return Chain(site, (bound,), tuple(map(float, counts)), self._plan.recipe.seed)

    def _bound(self, output: OutputTensor) -> tuple[Bound, ...]:
        count = len(output.sources)
        key = (count, *map(id, output.settings))
        if key not in self._params:
            bound = tuple(
                self._bind(place, settings, count) for place, settings in enumerate(output.settings)
            )
            self._params[key] = self._alike.setdefault(tuple((b.label, b.params) for b in bound), bound)
        return self._params[key]

    def _bind(self, place: int, settings: Mapping[str, Any], count: int) -> Bound:
        names = [step.method for step in self._plan.recipe.steps]
        method = get(names[place])
        label = f"{method.name}#{names[:place].count(method.name)}"
        if method.kind is Kind.PREPARE:
            each = tuple(method.settings(settings, count, position) for position in range(count))
            return Bound(method, each, label)
        return Bound(method, (method.settings(settings, count),), label)
