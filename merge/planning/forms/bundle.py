"""What a bundle made from a recipe will hold: which tensors, in which files, and how large. Loads no torch.

tall, emr and rmm bundles hold changes of a base, tensor by tensor, so that their files are known before the
first byte is computed; a twin bundle is a checkpoint and adapters, which are planned as such.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from merge.checkpoint.adapter import LoraPair
from merge.checkpoint.bundle import FACTOR_PARTS, STEM
from merge.checkpoint.header import DTYPE_NAMES, nbytes_of
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout, TensorSpec, lay_out, numbered
from merge.errors import Finding
from merge.kernels.truncation import DOUBLE
from merge.planning.forms.adapter import told_of_left
from merge.planning.outputs import FLOATS, Input, Outcome, OutputTensor
from merge.planning.resolve import matches
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.recipe.results import AdapterResult, BundleResult

TWIN_CLASSES = {
    "embed": "lora", "head": "lora", "linear": "lora", "norm": "save", "bias": "save", "conv": "save",
    "router": "lora", "expert": "lora",
}  # fmt: skip
"""What becomes of a tensor class in a twin's adapters: matrices are cut, everything else is kept whole."""
FACTOR_COPIES = 6
"""Times that the factors of one tensor are in memory while their directions are found."""


@dataclass(frozen=True)
class Kept:
    """A tensor of the bundle: what it is made from, by member (``None`` where one lacks it), and what is
    stored of it. ``rank`` is that of the factors, and 0 where there are none.
    """

    output: OutputTensor
    base: Input
    members: tuple[Input | None, ...]
    stored: tuple[TensorSpec, ...]
    rank: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What is stored, by name."""
        return tuple(name for name, _, _ in self.stored)


@dataclass(frozen=True)
class BundlePlan:
    """The tensors of the bundle and the files in which they lie, and how many of each class stay as the base
    has them; a twin has none of its own.
    """

    asked: BundleResult
    members: tuple[str, ...]
    kept: Mapping[str, Kept]
    layouts: tuple[ShardLayout, ...]
    left: Mapping[str, int]
    held_bytes: int = 0

    @property
    def kind(self) -> str:
        """tall, emr, twin or rmm."""
        return self.asked.kind

    @property
    def outputs(self) -> tuple[OutputTensor, ...]:
        """Every tensor that is looked at."""
        return tuple(each.output for each in self.kept.values())

    @property
    def keeps_base(self) -> bool:
        """Whether the base's files are copied into the bundle."""
        return self.asked.base == "inside"

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people."""
        own = sum(nbytes_of(dtype, shape) for each in self.kept.values() for _, dtype, shape in each.stored)
        return {
            "kind": self.kind,
            "members": list(self.members),
            "settings": self.asked.settings(),
            "tensors": len(self.kept),
            "bytes": own,
            "member_bytes": self._member_bytes(),
            "left_out": dict(self.left),
        }

    def _member_bytes(self) -> dict[str, int]:
        """What each member takes of its own: its masks, or its coefficients."""
        sizes = [
            (name, nbytes_of(dtype, shape))
            for each in self.kept.values()
            for name, dtype, shape in each.stored
        ]
        if self.kind == "rmm":
            own = sum(size for name, size in sizes if name.endswith(FACTOR_PARTS[-1]))
            return dict.fromkeys(self.members, own // len(self.members))
        return {
            member: sum(size for name, size in sizes if name.startswith(f"mask/{member}/"))
            for member in self.members
        }

    def tensors_read(self) -> dict[str, frozenset[str]]:
        """The tensors whose weights are read, by model key; of adapters whose factors are kept, their model's
        are named and not read.
        """
        found: dict[str, set[str]] = {}
        for each in self.kept.values():
            for source in (each.base, *each.members, *each.output.inputs):
                if source is not None:
                    found.setdefault(source.model, set()).add(source.tensor)
        return {key: frozenset(names) for key, names in found.items()}


def plan_bundle(
    recipe: Recipe, models: Mapping[str, ModelIndex], outcome: Outcome
) -> tuple[BundlePlan, tuple[Finding, ...]]:
    """What becomes of every tensor of ``outcome``, whose reference is the base; with all findings."""
    asked = recipe.result
    assert isinstance(asked, BundleResult)
    members = recipe.source_ids()
    if asked.kind == "twin":
        return BundlePlan(asked, members, {}, (), {}), outcome.findings
    choice = _Choice(recipe, asked, models)
    wanted = [output for output in outcome.tensors if choice.concerns(output)]
    kept = {output.name: choice.kept(output) for output in wanted if choice.includes(output)}
    left = Counter[str](output.role for output in wanted if output.name not in kept)
    findings = tuple(told_of_left(outcome.findings, kept, "bundle")) + tuple(choice.findings)
    if not kept:
        message = "No tensor would be in the bundle: check result.exclude and the classes' policies."
        findings += (error("bundle_empty", message, "result"),)
    if asked.kind == "rmm":
        findings += tuple(_check_saving(kept, choice))
    layouts = _laid_out([each.stored for each in kept.values()], recipe.shard_bytes)
    held = FACTOR_COPIES * DOUBLE * max((choice.numbers(each) for each in kept.values()), default=0)
    return BundlePlan(asked, members, kept, layouts, dict(left), held), findings


def _check_saving(kept: Mapping[str, Kept], choice: "_Choice") -> Iterator[Finding]:
    """Refuses as many directions as save nothing."""
    own = sum(nbytes_of(dtype, shape) for each in kept.values() for _, dtype, shape in each.stored)
    theirs = sum(choice.stored_bytes(each.output) for each in kept.values())
    if kept and own >= theirs:
        message = (
            f"With these components the bundle takes {own} bytes, and the adapters themselves {theirs}: ask "
            "for fewer components, or keep the adapters."
        )
        yield error("bundle_no_saving", message, "result", "components")


def twin_adapter(asked: BundleResult) -> AdapterResult:
    """The form of a twin's adapters: a share of every matrix's rank, everything else whole."""
    return AdapterResult.model_validate(
        {
            "form": "adapter",
            "share": asked.setting("keep"),
            "classes": TWIN_CLASSES,
            "save": ["*.bias"],
            "exclude": list(asked.exclude),
        }
    )


def _laid_out(tensors: Sequence[Sequence[TensorSpec]], shard_bytes: int) -> tuple[ShardLayout, ...]:
    """Files of about ``shard_bytes``; all that is stored of one tensor lies in one file."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for specs in tensors:
        size = sum(nbytes_of(dtype, shape) for _, dtype, shape in specs)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1] += specs
        filled += size
    files = numbered(STEM, len(groups))
    return tuple(lay_out(file, group) for file, group in zip(files, groups, strict=True) if group)


class _Choice:
    """Decides tensor by tensor."""

    def __init__(self, recipe: Recipe, asked: BundleResult, models: Mapping[str, ModelIndex]) -> None:
        self.findings: list[Finding] = []
        self._recipe, self._asked, self._models = recipe, asked, models
        self._adapters = {source.id: models[source.id].adapter for source in recipe.sources}
        stored = {info.dtype for adapter in self._adapters.values() if adapter is not None
                  for pair in adapter.pairs.values() for info in pair.factors}  # fmt: skip
        given = recipe.dtype.output
        self._dtype = DTYPE_NAMES[given or ""] if given in DTYPE_NAMES else _widest(stored)

    def concerns(self, output: OutputTensor) -> bool:
        """Whether the tensor can be other in a member than in the base."""
        if output.policy in ("equal", "base") or output.dtype not in FLOATS:
            return False
        return self._asked.kind != "rmm" or any(self._pairs(output)) or self._saved(output)

    def includes(self, output: OutputTensor) -> bool:
        """Whether the tensor is not excluded, and fits in every member."""
        about = (output.name, output.role, output.layer)
        if any(matches(match, *about) for match in self._asked.exclude):
            return False
        if self._saved(output):
            message = (
                f"An adapter holds {output.name} whole (modules_to_save or bias), which an rmm bundle cannot "
                "keep: exclude it, or use kind tall, emr or twin."
            )
            self.findings.append(error("bundle_saved_module", message, "result", tensor=output.name))
            return False
        return all(self._fits(output, key) for key in ("base", *self._recipe.source_ids()))

    def kept(self, output: OutputTensor) -> Kept:
        """The tensor as the bundle has it."""
        names = {source.model: source for source in output.inputs}
        members = tuple(
            names.get(key, Input(key, output.name)) if self._has(output, key) else None
            for key in self._recipe.source_ids()
        )
        base = Input("base", output.name)
        if self._asked.kind != "rmm":
            return Kept(output, base, members, tuple(self._masked_specs(output)))
        ranks = [pair.rank for pair in self._pairs(output) if pair is not None]
        rank = min(max(ranks), *output.shape)
        return Kept(output, base, members, tuple(self._factor_specs(output, rank)), rank)

    def numbers(self, each: Kept) -> int:
        """Numbers in the factors of all members of one tensor."""
        return len(each.members) * each.rank * sum(each.output.shape)

    def stored_bytes(self, output: OutputTensor) -> int:
        """Bytes of the adapters' own factors of one tensor."""
        pairs = (pair for pair in self._pairs(output) if pair is not None)
        return sum(info.nbytes for pair in pairs for info in pair.factors)

    def _masked_specs(self, output: OutputTensor) -> Iterator[TensorSpec]:
        yield f"vector/{output.name}", output.dtype, output.shape
        for member in self._recipe.source_ids():
            yield f"mask/{member}/{output.name}", "U8", (-(-prod(output.shape) // 8),)

    def _factor_specs(self, output: OutputTensor, rank: int) -> Iterator[TensorSpec]:
        count = len(self._recipe.sources)
        directions = min(self._asked.setting("components"), rank, count - 1)
        for side, positions in zip(("b", "a"), output.shape, strict=True):
            shapes = ((positions, rank), (positions, rank, directions), (positions, directions, count))
            for part, shape in zip(FACTOR_PARTS, shapes, strict=True):
                yield f"{side}/{output.name}.{part}", self._dtype, shape

    def _pairs(self, output: OutputTensor) -> list[LoraPair | None]:
        return [None if each is None else each.pairs.get(output.name) for each in self._adapters.values()]

    def _saved(self, output: OutputTensor) -> bool:
        if self._asked.kind != "rmm":
            return False
        return any(each is not None and output.name in each.replaced for each in self._adapters.values())

    def _has(self, output: OutputTensor, key: str) -> bool:
        return key != "base" and output.name in self._models[key].tensors

    def _fits(self, output: OutputTensor, key: str) -> bool:
        info = self._models[key].tensors.get(output.name)
        if info is not None and info.shape == output.shape and info.dtype in FLOATS:
            return True
        label = self._models[key].label
        if info is None and key != "base":
            message = f"{label} lacks {output.name}; in the bundle it has the base's."
            self.findings.append(warning("bundle_left_out", message, model=key, tensor=output.name))
            return True
        message = f"{output.name} is not the same kind of tensor in {label}: exclude it from the bundle."
        self.findings.append(error("bundle_misfit", message, "result", model=key, tensor=output.name))
        return False


def _widest(dtypes: set[str]) -> str:
    return next(
        (each for each in ("F64", "F32") if each in dtypes), dtypes.pop() if len(dtypes) == 1 else "F32"
    )
