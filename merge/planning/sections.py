"""Which tensor of which model each tensor of the result comes from: whole models, slices of layers, modules.

A recipe without slices is one stretch that covers everything. With slices there is one stretch a slice: its
layers, and what lies before the layers (first slice) or after them (last slice). Names are mapped by the
layer index in them, so every architecture whose layers are numbered can be sliced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from merge.arch.roles import Role, Towers, place_of, role_of, tower_and_layer
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.planning.resolve import Section, section_of, whole
from merge.recipe.findings import error, warning
from merge.recipe.parts import LayerRange, Slice
from merge.recipe.recipe import Recipe

Path = tuple[str | int, ...]
Outer = Literal["position", "zero"]


@dataclass(frozen=True)
class Strand:
    """One model in a stretch: its key, and the first of its layers that is used."""

    model: str
    first: int = 0


@dataclass(frozen=True)
class Cut:
    """Layers ``begin`` to ``begin + count`` of the result's list of layers ``tower``."""

    tower: str
    begin: int
    count: int
    is_first: bool
    is_last: bool
    known: dict[int, dict[int | None, list[TensorInfo]]] = field(compare=False, repr=False)

    def by_layer(self, index: ModelIndex) -> Mapping[int | None, list[TensorInfo]]:
        """The tensors of a model by layer of this tower (``None`` for all others), each in file order; looked
        up once for all cuts of a tower.
        """
        if id(index) not in self.known:
            found: dict[int | None, list[TensorInfo]] = {}
            for info in in_file_order(index):
                found.setdefault(self.layer(info.name), []).append(info)
            self.known[id(index)] = found
        return self.known[id(index)]

    def layer(self, name: str) -> int | None:
        """The layer of this tower that a tensor belongs to, in whichever model's counting."""
        found = tower_and_layer(name)
        return found[1] if found is not None and found[0] == self.tower else None

    def moved(self, name: str, by: int) -> str:
        """The name with its layer index changed by ``by``; names outside the tower stay."""
        layer = self.layer(name)
        if layer is None:
            return name
        rest = name[len(self.tower) + 1 + len(str(layer)) :]
        return f"{self.tower}.{layer + by}{rest}"


@dataclass(frozen=True)
class Stretch:
    """A part of the result that is made of the same models all along; ``cut`` is ``None`` where all layers
    are taken. ``base`` is where differences are taken from, where the recipe knows such a model.
    """

    section: Section
    sources: tuple[Strand, ...]
    base: Strand | None
    owns: Callable[[str], bool]
    cut: Cut | None = None

    def lead(self, reads_base: bool) -> Strand:
        """The model whose tensors, shapes and dtypes the result has here: the base where it is read."""
        return self.base if reads_base and self.base is not None else self.sources[0]

    def name_in(self, strand: Strand, name: str) -> str:
        """The name in this model of a tensor of the result."""
        return name if self.cut is None else self.cut.moved(name, strand.first - self.cut.begin)

    def tensors_of(self, strand: Strand, index: ModelIndex) -> Iterator[tuple[str, TensorInfo]]:
        """(name in the result, tensor) for each tensor of this model that belongs here: in the order of its
        files, layer by layer where layers are cut.
        """
        cut = self.cut
        if cut is None:
            yield from ((info.name, info) for info in in_file_order(index) if self.owns(info.name))
            return
        layers = cut.by_layer(index)
        outside = [info for info in layers.get(None, ()) if self.owns(info.name)]
        if cut.is_first:
            yield from ((info.name, info) for info in outside if not _is_after(info, index))
        for layer in range(strand.first, strand.first + cut.count):
            for info in layers.get(layer, ()):
                yield cut.moved(info.name, cut.begin - strand.first), info
        if cut.is_last:
            yield from ((info.name, info) for info in outside if _is_after(info, index))

    def depth(self, name: str, role: Role, towers: Towers, outer: Outer) -> float:
        """Place on a depth curve, 0 to 1: over the layers of the slice where layers are cut."""
        layer = None if self.cut is None else self.cut.layer(name)
        if self.cut is None or layer is None:
            return towers.depth(name, role, outer)
        return (layer - self.cut.begin) / (self.cut.count - 1) if self.cut.count > 1 else 1.0


def in_file_order(index: ModelIndex) -> list[TensorInfo]:
    """A model's tensors as they lie on disk."""
    return sorted(index.tensors.values(), key=lambda info: (info.file, info.begin, info.name))


def _is_after(info: TensorInfo, index: ModelIndex) -> bool:
    role = role_of(info.name, info.shape, index.config, info.dtype)
    return place_of(info.name, role) == "after"


@dataclass(frozen=True)
class Arrangement:
    """The stretches of a result, in the order in which their tensors are written, and what is wrong."""

    stretches: tuple[Stretch, ...]
    findings: tuple[Finding, ...]

    def layers(self, reads_base: bool) -> Mapping[str, tuple[tuple[str, int], ...]]:
        """For each list of layers that is cut, (model key, layer) of each of the result's layers."""
        found: dict[str, tuple[tuple[str, int], ...]] = {}
        for stretch in self.stretches:
            if stretch.cut is not None:
                lead, tower = stretch.lead(reads_base), stretch.cut.tower
                own = tuple((lead.model, lead.first + offset) for offset in range(stretch.cut.count))
                found[tower] = found.get(tower, ()) + own
        return found


def arrange(
    recipe: Recipe, models: Mapping[str, ModelIndex], reference: str, *, reads_base: bool
) -> Arrangement:
    """The stretches of a recipe on these models; with ``reads_base`` the base of each slice must fit too."""
    if not recipe.slices and not recipe.modules:
        return Arrangement((_everything(recipe, lambda _: True),), ())
    arranger = _Arranger(recipe, models, models[reference], reads_base)
    owners = {name: module.tensors for name, module in recipe.modules.items()}
    for name, module in recipe.modules.items():
        arranger.add(module.slices, ("modules", name), _owner_is(name, owners))
    if recipe.slices:
        arranger.add(recipe.slices, (), _owner_is(None, owners))
    else:
        arranger.stretches.append(_everything(recipe, _owner_is(None, owners)))
    return Arrangement(tuple(arranger.stretches), (*_unused(recipe), *arranger.findings))


def _everything(recipe: Recipe, owns: Callable[[str], bool]) -> Stretch:
    base = Strand("base") if recipe.base is not None else None
    return Stretch(whole(recipe), tuple(Strand(name) for name in recipe.source_ids()), base, owns)


def _owner_is(wanted: str | None, owners: Mapping[str, Sequence[str]]) -> Callable[[str], bool]:
    """Whether a tensor is of this module: of the first one of which a glob fits."""

    def owns(tensor: str) -> bool:
        fits = (name for name, globs in owners.items() if any(fnmatchcase(tensor, glob) for glob in globs))
        return next(fits, None) == wanted

    return owns


def _unused(recipe: Recipe) -> Iterator[Finding]:
    used = {each.id for _, part in recipe.sections() for each in part.sources}
    used |= {part.base for _, part in recipe.sections()}
    for position, source in enumerate(recipe.sources):
        if recipe.slices and source.id not in used:
            message = f"{source.id} is in none of the slices."
            yield warning("source_unused", message, "sources", position, model=source.id)


class _Arranger:
    """Turns the slices of one module after another into stretches, and gathers what is wrong with them."""

    def __init__(
        self, recipe: Recipe, models: Mapping[str, ModelIndex], reference: ModelIndex, reads_base: bool
    ) -> None:
        self._recipe = recipe
        self._models = models
        self._reference = reference
        self._reads_base = reads_base
        self.stretches: list[Stretch] = []
        self.findings: list[Finding] = []

    def add(self, slices: Sequence[Slice], at: Path, owns: Callable[[str], bool]) -> None:
        """The slices of one module (of the whole model where ``at`` is empty)."""
        names = [name for name in self._reference.tensors if owns(name)]
        if not names:
            message = f"No tensor of {self._reference.label} fits the globs of this module."
            self.findings.append(error("module_empty", message, *at, "tensors"))
        elif slices[0].sources[0].layers is None:
            self.stretches.append(self._stretch(slices[0], owns, None))
        else:
            tower = self._tower(names, at)
            if tower is not None:
                self._cut(slices, tower, (*at, "slices"), owns)

    def _tower(self, names: Sequence[str], at: Path) -> str | None:
        """The one list of layers among these tensors."""
        towers = sorted(Towers.of(names).lengths)
        if len(towers) == 1:
            return towers[0]
        label = self._reference.label
        message = (
            f"{label} has several lists of layers ({', '.join(towers)}): put the slices into modules, each "
            "with the globs of one of them as its tensors."
            if towers
            else f"{label} has no numbered layers here, so there is nothing to slice."
        )
        self.findings.append(error("layers_unclear" if towers else "layers_none", message, *at, "slices"))
        return None

    def _cut(self, slices: Sequence[Slice], tower: str, at: Path, owns: Callable[[str], bool]) -> None:
        begin = 0
        known: dict[int, dict[int | None, list[TensorInfo]]] = {}
        for position, part in enumerate(slices):
            first, end = part.sources[0].layers or (0, 0)
            cut = Cut(tower, begin, end - first, position == 0, position == len(slices) - 1, known)
            begin += cut.count
            wrong = list(self._check(part, cut, (*at, position)))
            self.findings += wrong
            if not wrong:
                self.stretches.append(self._stretch(part, owns, cut))

    def _check(self, part: Slice, cut: Cut, at: Path) -> Iterator[Finding]:
        """Ranges that leave a model, or differ in length from the first source's."""
        asked: list[tuple[str, LayerRange | None, Path]] = [
            (each.id, each.layers, (*at, "sources", position, "layers"))
            for position, each in enumerate(part.sources)
        ]
        if self._reads_base and part.base in self._models:
            layers = part.base_layers or part.sources[0].layers
            asked.append((part.base, layers, (*at, "base_layers" if part.base_layers else "base")))
        wrong: set[Path] = set()
        for key, layers, where in asked:
            if where[-1] == "base" and asked[0][2] in wrong:
                continue
            first, end = layers or (0, 0)
            model = self._models[key]
            length = max((layer + 1 for layer in cut.by_layer(model) if layer is not None), default=0)
            if end > length:
                message = (
                    f"{model.label} has {length} layers ({cut.tower}): there are no layers {first} to {end}."
                )
                wrong.add(where)
                yield error("layers_out_of_range", message, *where, model=key)
            elif end - first != cut.count:
                message = (
                    f"All models of a slice must give as many layers: {model.label} gives {end - first}, "
                    f"the first source {cut.count}."
                )
                yield error("layers_differ", message, *where, model=key)

    def _stretch(self, part: Slice, owns: Callable[[str], bool], cut: Cut | None) -> Stretch:
        sources = tuple(Strand(each.id, (each.layers or (0, 0))[0]) for each in part.sources)
        first = (part.base_layers or part.sources[0].layers or (0, 0))[0]
        base = Strand(part.base, first) if part.base in self._models else None
        return Stretch(section_of(part, self._recipe), sources, base, owns, cut)
