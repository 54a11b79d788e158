"""What a LoRA adapter made from a recipe will hold: which tensors become factors, which are saved whole, and
which are left as the base has them. Loads no torch.

Where every source is an adapter over the base itself and the steps are linear, the factors are merged as
they are (never A with another's B), and no weight of the base is read. Otherwise each module's dense change
is decomposed.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from merge.arch.roles import is_conv1d, tied_names
from merge.catalog import catalogue
from merge.checkpoint.adapter import AdapterIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.kernels.truncation import Wanted, bytes_of, product_bytes, products_of
from merge.planning.forms.factored import factor_step
from merge.planning.forms.loadable import STACKED, refused, stacked_with
from merge.planning.outputs import FLOATS, Outcome, OutputTensor, tensors_read, uses_base
from merge.planning.resolve import matches
from merge.planning.sizing import Demand, Sizes, sizes
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.recipe.results import AdapterResult

Fate = Literal["lora", "save", "drop"]
DEFAULTS: Mapping[str, Fate] = {"linear": "lora", "head": "lora"}
"""What becomes of a class that the recipe does not speak of; everything else is dropped."""
ABOUT_OTHERS = frozenset(
    {
        "missing_tensor",
        "extra_tensor",
        "shape_mismatch",
        "vocabulary_mismatch",
        "dtype_mismatch",
        "buffer_dropped",
    }
)
"""Findings about a tensor that do not stop an adapter which leaves that tensor as it is."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One module of the adapter. ``turned`` where the weight is stored as (in, out), and for embeddings.

    ``factored`` modules are made from the sources' own factors, whose ranks add up to ``ranks``.
    """

    output: OutputTensor
    kind: Literal["linear", "embedding"]
    turned: bool
    factored: bool
    ranks: int
    most: int

    @property
    def path(self) -> str:
        """The module's name in the model."""
        return self.output.name.removesuffix(".weight")

    def peak_bytes(self, wanted: Wanted, entry: int) -> int:
        """Bytes that making its factors takes."""
        rows, columns = self.output.shape
        if self.factored:
            return product_bytes(rows, columns, self.ranks, self.most)
        return bytes_of(rows, columns, wanted, entry)


@dataclass(frozen=True)
class AdapterPlan:
    """Modules with factors, tensors saved whole, and tensors whose change is only measured and told. Experts
    that stay as they are ``beside`` others have factors of zeros, as PEFT stacks all of a layer.
    """

    modules: tuple[LoraModule, ...]
    beside: tuple[LoraModule, ...]
    saved: tuple[OutputTensor, ...]
    dropped: tuple[OutputTensor, ...]
    wanted: Wanted
    dtype: str

    @property
    def outputs(self) -> tuple[OutputTensor, ...]:
        """Every tensor that is looked at."""
        return (*(module.output for module in self.modules), *self.saved, *self.dropped)

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people."""
        return {
            "modules": len(self.modules),
            "from_factors": sum(module.factored for module in self.modules),
            "largest_rank": max((module.most for module in self.modules), default=0),
            "error": self.wanted.error,
            "saved": len(self.saved),
            "left_out": dict(Counter(output.role for output in self.dropped)),
        }

    def tensors_read(self) -> dict[str, frozenset[str]]:
        """The tensors whose weights are read, by model key: none for modules made from factors alone."""
        dense = [module.output for module in self.modules if not module.factored]
        found = tensors_read((*dense, *self.saved, *self.dropped))
        base = frozenset(output.name for output in (*dense, *self.dropped))
        return {**found, "base": found.get("base", frozenset()) | base}

    def most_bytes(self) -> int:
        """The largest that the adapter can become; all experts have the rank that one of them needs."""
        width = 2 if self.dtype in ("BF16", "F16") else 4
        experts = [module for module in self.modules if module.output.role == "expert"]
        most = max((module.most for module in experts), default=0)
        factors = sum(module.most * sum(module.output.shape) for module in self.modules)
        factors += sum((most - module.most) * sum(module.output.shape) for module in experts)
        factors += sum(most * sum(module.output.shape) for module in self.beside)
        return width * (factors + sum(prod(output.shape) for output in self.saved))

    def peak_bytes(self, demand: Demand) -> tuple[int, str]:
        """Bytes that the hungriest module takes beside the merge itself, and its tensor's name. What the
        merge needs together is kept, so that it is merged once.
        """
        each = [(m.peak_bytes(self.wanted, demand.compute_bytes), m.output.name) for m in self.modules]
        most, tensor = max(each, default=(0, ""))
        return most + demand.whole * demand.compute_bytes, tensor

    def changes_bytes(self, demand: Demand) -> int:
        """Bytes of the largest change that is kept between passes over it, where there is room."""
        dense = (prod(module.output.shape) for module in self.modules if not module.factored)
        return demand.compute_bytes * max(dense, default=0)

    def products(self) -> float:
        """Of numbers, for decomposing the changes that come as whole matrices."""
        dense = (module.output.shape for module in self.modules if not module.factored)
        return sum(products_of(shape[0], shape[1], self.wanted) for shape in dense)

    def sizes(self, demand: Demand, threads: int, budget: int, beside: int = 0) -> Sizes | None:
        """As ``merge.planning.sizing.sizes``, with each thread also decomposing a module."""
        each, _ = self.peak_bytes(demand)
        for crew in range(threads, 0, -1):
            found = sizes(demand, crew, budget - crew * each, beside)
            if found is not None and found.threads == crew:
                return replace(found, peak_bytes=found.peak_bytes + crew * each)
        return None


def plan_adapter(
    recipe: Recipe, models: Mapping[str, ModelIndex], outcome: Outcome
) -> tuple[AdapterPlan, tuple[Finding, ...]]:
    """What becomes of every tensor of ``outcome``, whose reference is the base; with all findings."""
    asked = recipe.result
    assert isinstance(asked, AdapterResult)
    choice = _Choice(recipe, asked, models)
    fates = _fates(choice, outcome)
    modules = tuple(choice.module(output) for output, fate in fates if fate == "lora")
    saved = tuple(output for output, fate in fates if fate == "save")
    kept = {output.name for output, fate in fates if fate != "drop"}
    choice.tell_of_experts(modules)
    beside = choice.beside(modules, outcome)
    findings = tuple(told_of_left(outcome.findings, kept, "adapter")) + tuple(choice.findings)
    broken = {finding.tensor for finding in findings if finding.code in ABOUT_OTHERS}
    dropped = tuple(o for o, fate in fates if fate == "drop" and o.name not in broken and o.dtype in FLOATS)
    if not modules:
        message = "No tensor becomes a LoRA: check result.include, result.exclude and result.classes."
        findings += (error("adapter_empty", message, "result"),)
    plan = AdapterPlan(modules, beside, saved, dropped, choice.wanted, choice.dtype)
    return plan, findings


def _fates(choice: "_Choice", outcome: Outcome) -> Sequence[tuple[OutputTensor, Fate]]:
    """What becomes of every tensor that changes. Beside a weight that is saved whole all of its module is
    saved too, changed or not: PEFT loads such modules as a whole. It stays as it is where that cannot be.
    """
    outputs = [output for output in outcome.tensors if choice.finds(output)]
    fates = {output.name: choice.fate(output) for output in outputs if choice.concerns(output)}
    inside: dict[str, list[OutputTensor]] = {
        module_of(name): [] for name, fate in fates.items() if _is_whole(name, fate)
    }
    for output in outputs:
        for module in _modules_of(output.name) & inside.keys():
            inside[module].append(output)
    for module, members in inside.items():
        if module and all(fates.get(each.name) != "lora" for each in members):
            fates |= {each.name: "save" for each in members}
            continue
        for output in outputs:
            if module_of(output.name) == module and _is_whole(output.name, fates.get(output.name)):
                fates[output.name] = choice.left(output)
    return [(output, fates[output.name]) for output in outputs if output.name in fates]


def _is_whole(name: str, fate: Fate | None) -> bool:
    """Whether PEFT is to save the module of a tensor; biases it can save alone."""
    return fate == "save" and not name.endswith(".bias")


def _modules_of(name: str) -> frozenset[str]:
    """All modules that a tensor is in, from the outermost."""
    parts = name.split(".")
    return frozenset(".".join(parts[:count]) for count in range(1, len(parts)))


def module_of(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _fits(asked: Sequence[str], output: OutputTensor) -> bool:
    return any(matches(match, output.name, output.role, output.layer) for match in asked)


def told_of_left(findings: Sequence[Finding], kept: Container[str], what: str) -> Iterator[Finding]:
    """Errors about tensors that an adapter (or ``what`` it is) leaves alone are only told."""
    for finding in findings:
        if finding.code in ABOUT_OTHERS and finding.tensor is not None and finding.tensor not in kept:
            message = f"{finding.message} The {what} leaves it as the base has it."
            yield warning(finding.code, message, model=finding.model, tensor=finding.tensor)
        else:
            yield finding


class _Choice:
    """Decides tensor by tensor."""

    def __init__(self, recipe: Recipe, asked: AdapterResult, models: Mapping[str, ModelIndex]) -> None:
        self.findings: list[Finding] = []
        rank = asked.max_rank if asked.rank is None else asked.rank
        self.wanted = Wanted(rank, asked.error, asked.share)
        wanted = recipe.dtype.output
        self.dtype = {"bfloat16": "BF16", "float16": "F16"}.get(wanted or "", "F32")
        self._recipe, self._asked = recipe, asked
        self._base = models["base"]
        self._kind = str(self._base.config.get("model_type"))
        self._tied = self._tied_embeddings()
        sources = [models[source.id] for source in recipe.sources]
        adapters = [model.adapter for model in sources if model.adapter is not None]
        over_base = len(adapters) == len(sources) and all(m.label == self._base.label for m in sources)
        self._adapters: Sequence[AdapterIndex] = adapters if over_base else ()
        self._linear = all(catalogue()[step.method].linear for step in recipe.steps)
        self._on_factors = len(recipe.steps) == 1 and factor_step(recipe) == 0

    def finds(self, output: OutputTensor) -> bool:
        """Whether the base has the tensor; one that only sources have (``missing``) can be in no adapter."""
        there = output.name in self._base.tensors
        self._tell(not there, output, "is not in the base, so an adapter cannot hold it; it is left out")
        return there

    def concerns(self, output: OutputTensor) -> bool:
        """Whether the tensor can come out other than the base has it."""
        if output.policy in ("equal", "base") or output.dtype not in FLOATS:
            return False
        return not self._adapters or not self._still(output) or self._touched(output.name)

    def fate(self, output: OutputTensor) -> Fate:
        """``lora``, ``save`` or ``drop``."""
        if not self._included(output):
            return "drop"
        said = {str(role): fate for role, fate in self._asked.classes.items()}.get(output.role)
        said = "save" if _fits(self._asked.save, output) else said
        wanted = meant = said or self._default(output)
        is_matrix = len(output.shape) == 2 and prod(output.shape) > 0 and output.name.endswith(".weight")
        if wanted == "lora" and not is_matrix:
            wanted = "drop"
            self._tell(said is not None, output, "is no matrix, so it cannot become a LoRA; it is left out")
        why = refused(output.name, self._kind, self._base.tensors) if wanted == "lora" else None
        if why is not None:
            wanted = "drop"
            self._tell(True, output, why)
        if wanted != "drop" and output.name in self._tied:
            wanted = "drop"
            problem = "is also the output head (tied), which an adapter cannot change alike; it is left out"
            self._tell(said is not None or meant == "save", output, problem)
        return wanted

    def left(self, output: OutputTensor) -> Fate:
        """Told of a tensor beside which a LoRA, or all of the model, would have to be saved whole."""
        problem = "lies beside modules with a LoRA, or in none, so PEFT cannot save it alone; it is left out"
        self._tell(True, output, problem)
        return "drop"

    def module(self, output: OutputTensor) -> LoraModule:
        """The plan of one module that becomes factors."""
        kind: Literal["linear", "embedding"] = "embedding" if output.role == "embed" else "linear"
        pairs = [a.pairs[output.name] for a in self._adapters if output.name in a.pairs]
        saved = any(output.name in a.changed and output.name not in a.pairs for a in self._adapters)
        summed = (self._linear or output.policy != "method") and self._still(output) and not saved
        factored = bool(pairs) and (summed or (self._on_factors and output.policy == "method"))
        if pairs:
            kind = pairs[0].kind
        turned = kind == "embedding" or is_conv1d(output.name, self._base.config)
        if factored:
            turned = pairs[0].transposed
        ranks = sum(pair.rank for pair in pairs)
        most = self.wanted.most(*output.shape)
        return LoraModule(output, kind, turned, factored, ranks, min(most, ranks) if factored else most)

    def beside(self, modules: Sequence[LoraModule], outcome: Outcome) -> tuple[LoraModule, ...]:
        """Matrices of experts that PEFT stacks with some of these ``modules``, and that are none of them."""
        names = {module.output.name for module in modules}
        stacked = stacked_with(names if self._kind in STACKED else ())
        others = [each for each in outcome.tensors if each.name not in names and stacked(each.name)]
        return tuple(self.module(each) for each in others if each.name in self._base.tensors)

    def tell_of_experts(self, modules: Sequence[LoraModule]) -> None:
        """Warns where PEFT does not find experts in the model that Transformers makes."""
        if self._kind not in STACKED and any(module.output.role == "expert" for module in modules):
            message = (
                f"PEFT with Transformers 5 does not find the experts of a {self._kind}, and leaves them as "
                "they are: write a checkpoint, or leave them out."
            )
            self.findings.append(warning("adapter_experts", message, "result", "classes", "expert"))

    def _default(self, output: OutputTensor) -> Fate:
        if self._adapters and self._still(output):
            return "save" if any(output.name in a.replaced for a in self._adapters) else "lora"
        return DEFAULTS.get(output.role, "drop")

    def _included(self, output: OutputTensor) -> bool:
        include = self._asked.include
        return (not include or _fits(include, output)) and not _fits(self._asked.exclude, output)

    def _still(self, output: OutputTensor) -> bool:
        """Whether the steps give the base where every source equals it."""
        if output.policy != "method" or uses_base(self._recipe):
            return True
        for place, step in enumerate(self._recipe.steps):
            known, settings = catalogue()[step.method], output.settings[place]
            knob = known.needs["weight_sum"]
            if isinstance(knob, str):
                return bool(settings.get(knob, known.settings[knob]["default"]))
            if knob is None and settings:
                return False
        return True

    def _touched(self, name: str) -> bool:
        return any(name in adapter.changed for adapter in self._adapters)

    def _tied_embeddings(self) -> frozenset[str]:
        heads = tied_names(self._base.config, (*self._base.tensors, "lm_head.weight"))
        return frozenset((*heads.keys(), *heads.values()))

    def _tell(self, asked_for: bool, output: OutputTensor, problem: str) -> None:
        if asked_for:
            message = f"{output.name} {problem}."
            self.findings.append(
                warning("adapter_left_out", message, "result", "classes", output.role, tensor=output.name)
            )
