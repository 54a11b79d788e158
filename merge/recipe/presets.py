"""Presets: well-known names that are chains of methods. Everything about them stands in ``PRESETS``.

A recipe may name one where it may name a method; ``expand`` puts the chain there before anything else looks
at the recipe. Loads no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.catalog import MethodEntry, catalogue, coarsest, nearest
from merge.errors import UnknownMethod

_SPOKEN_OF = ("sources", "overrides", "slices", "modules")
"""Fields of a recipe in which settings of the steps may be given."""


@dataclass(frozen=True)
class Preset:
    """A name, its chain (method, settings that differ from the method's own), and a sentence."""

    name: str
    title: str
    about: str
    paper: str | None
    chain: tuple[tuple[str, Mapping[str, Any]], ...]

    def owner(self, setting: str) -> tuple[int, str] | None:
        """Place in the chain and plain name of a setting: the first method that has it, or the one named in
        ``method.setting``; ``None`` where no method has it.
        """
        wanted, _, plain = setting.rpartition(".")
        places = (
            place
            for place, (method, _) in enumerate(self.chain)
            if plain in catalogue()[method].settings and wanted in ("", method)
        )
        return next(((place, plain) for place in places), None)

    def steps(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chain as a recipe writes it, ``settings`` in place; what no method has stays on the last."""
        made = [{"method": method, **own} for method, own in self.chain]
        for name, value in settings.items():
            place, plain = self.owner(name) or (-1, name)
            made[place][plain] = value
        return made


@dataclass(frozen=True)
class PresetEntry(MethodEntry):
    """A preset in the form of the catalogue: kind ``preset``; ``steps`` is the chain a recipe would write."""

    steps: list[dict[str, Any]] = field(default_factory=list)


def _preset(
    name: str, title: str, about: str, paper: str, *chain: str | tuple[str, dict[str, Any]]
) -> Preset:
    pairs = tuple((step, {}) if isinstance(step, str) else step for step in chain)
    return Preset(name, title, about, paper, pairs)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset(
            "dare_linear",
            "DARE + task arithmetic",
            "Drops entries of every task vector at random, then adds what is left, rescaled, to the base.",
            "arXiv:2311.03099",
            "dare",
            "task_arithmetic",
        ),
        _preset(
            "dare_ties",
            "DARE + TIES",
            "Drops entries of every task vector at random in place of TIES's trim, then elects one sign an "
            "entry and adds what agrees.",
            "arXiv:2311.03099",
            "dare",
            ("ties", {"density": 1.0, "normalize": False}),
        ),
        _preset(
            "breadcrumbs_linear",
            "Model Breadcrumbs",
            "Drops the largest and the smallest entries of every task vector, then adds what is left to the "
            "base.",
            "arXiv:2312.06795",
            "breadcrumbs",
            "task_arithmetic",
        ),
        _preset(
            "breadcrumbs_ties",
            "Breadcrumbs + TIES",
            "Drops the largest and the smallest entries of every task vector, then elects one sign an entry "
            "and adds what agrees.",
            "arXiv:2312.06795",
            "breadcrumbs",
            ("ties", {"density": 1.0, "normalize": False}),
        ),
        _preset(
            "della_linear",
            "DELLA + task arithmetic",
            "Drops small entries of every task vector more often than large ones, then adds what is left, "
            "rescaled, to the base.",
            "arXiv:2406.11617",
            "della",
            "task_arithmetic",
        ),
        _preset(
            "della_ties",
            "DELLA-Merging",
            "Drops small entries of every task vector more often than large ones, then elects one sign an "
            "entry and averages what agrees.",
            "arXiv:2406.11617",
            "della",
            ("ties", {"density": 1.0}),
        ),
        _preset(
            "task_arithmetic_aim",
            "Task arithmetic + AIM",
            "Adds the task vectors to the base, then holds back the changes to its most active channels.",
            "arXiv:2502.02421",
            "task_arithmetic",
            "aim",
        ),
        _preset(
            "ties_aim",
            "TIES + AIM",
            "Trims, elects and averages as TIES does, then holds back changes to the most active channels.",
            "arXiv:2502.02421",
            "ties",
            "aim",
        ),
        _preset(
            "dare_ties_aim",
            "DARE + TIES + AIM",
            "DARE + TIES, then holds back the changes to the most active channels.",
            "arXiv:2502.02421",
            "dare",
            ("ties", {"density": 1.0, "normalize": False}),
            "aim",
        ),
    )
}


def expand(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's plain data with every preset replaced by its chain; the same object where there is none.

    A setting beside a preset goes to the first method of the chain that has it, ``method.setting`` to that
    method. Among the settings of sources, overrides and slices a bare name means the same.
    """
    steps = document.get("steps")
    if not isinstance(steps, list | tuple):
        return document
    chains = [_chain(step) for step in steps]
    if not any(chains):
        return document
    made: list[Any] = []
    for step, chain in zip(steps, chains, strict=True):
        made += [step] if chain is None else chain[0].steps(chain[1])
    owners = [_written(step, chain) for step, chain in zip(steps, chains, strict=True)]
    spoken = {name: _spoken(document[name], owners) for name in _SPOKEN_OF if name in document}
    return {**document, "steps": made, **spoken}


def _chain(step: Any) -> tuple[Preset, dict[str, Any]] | None:
    """The preset and its settings, or ``None`` where a step is a method or malformed."""
    if isinstance(step, str):
        step = {"method": step}
    if not isinstance(step, Mapping) or not isinstance(step.get("method"), str):
        return None
    nested = step.get("settings", {})
    beside = {name: value for name, value in step.items() if name not in ("method", "settings")}
    wrong = not isinstance(nested, Mapping) or nested.keys() & beside.keys()
    if (
        wrong
        or step["method"] not in PRESETS
        or not all(isinstance(name, str) for name in (*nested, *beside))
    ):
        return None
    return PRESETS[step["method"]], {**nested, **beside}


def _written(step: Any, chain: tuple[Preset, Any] | None) -> Preset:
    """The preset, or the single method as a chain of its own."""
    if chain is not None:
        return chain[0]
    name = step.get("method") if isinstance(step, Mapping) else step
    known = isinstance(name, str) and name in catalogue()
    return Preset("", "", "", None, ((str(name), {}),) if known else ())


def _spoken(value: Any, owners: Sequence[Preset]) -> Any:
    """``value`` with bare settings under every ``settings`` qualified where a chain would otherwise hear them
    twice.
    """
    if isinstance(value, list | tuple):
        return [_spoken(item, owners) for item in value]
    if not isinstance(value, Mapping):
        return value
    made = {}
    for name, item in value.items():
        if name == "settings" and isinstance(item, Mapping):
            made[name] = {
                **dict(_qualified(item, owners)),
                **{k: v for k, v in item.items() if "." in str(k)},
            }
        else:
            made[name] = _spoken(item, owners)
    return made


def _qualified(settings: Mapping[Any, Any], owners: Sequence[Preset]) -> Iterator[tuple[Any, Any]]:
    for name, value in settings.items():
        bare = isinstance(name, str) and "." not in name
        having = [(owner, found[0]) for owner in owners if bare and (found := owner.owner(name))]
        heard = sum(name in catalogue()[method].settings for owner, _ in having for method, _ in owner.chain)
        if heard == len(having):
            yield name, value
        else:
            yield from ((f"{owner.chain[place][0]}.{name}", value) for owner, place in having)


def listing() -> dict[str, MethodEntry]:
    """Methods and presets by name, in alphabetical order."""
    return dict(
        sorted({**catalogue(), **{name: entry_of(preset) for name, preset in PRESETS.items()}}.items())
    )


def entry(name: str) -> MethodEntry:
    """The entry of one method or preset; raises ``UnknownMethod`` with the nearest names."""
    known = listing()
    if name not in known:
        raise UnknownMethod(f"there is no method {name!r}{nearest(name, known)}")
    return known[name]


def entry_of(preset: Preset) -> PresetEntry:
    """A preset as the catalogue tells it: what its chain needs together, and every setting of it.

    A setting that an earlier method of the chain has too is called ``method.setting``.
    """
    chain = [catalogue()[method] for method, _ in preset.chain]
    properties: dict[str, Any] = {}
    for known, (method, own) in zip(chain, preset.chain, strict=True):
        for name, body in known.settings.items():
            free = name not in properties
            properties[name if free else f"{method}.{name}"] = {
                **body,
                "default": own.get(name, body["default"]),
            }
    combine = next(known for known in chain if known.kind == "combine")
    measured = [statistic for known in chain for statistic in known.statistics]
    bases = [known.needs["base"] for known in chain]
    most = [known.needs["sources"][1] for known in chain if known.needs["sources"][1] is not None]
    return PresetEntry(
        name=preset.name,
        title=preset.title,
        kind="preset",
        family="presets",
        about=preset.about,
        paper=preset.paper,
        version=max(known.version for known in chain),
        granularity=coarsest(known.granularity for known in chain),
        needs={
            **combine.needs,
            "base": True if True in bases else next(filter(None, bases), False),
            "sources": [max(known.needs["sources"][0] for known in chain), min(most, default=None)],
            "stats": [stat for known in chain for stat in known.needs["stats"]],
            "limits": [limit for known in chain for limit in known.limits],
            "cautions": [caution for known in chain for caution in known.cautions],
            **({"statistics": measured} if measured else {}),
        },
        schema={**chain[-1].schema, "properties": properties},
        classes=combine.classes,
        breaks={law: why for known in chain for law, why in known.breaks.items()},
        steps=preset.steps({}),
    )
