"""The tensors of the result, one by one: which models each is made from, how, and what stands in the way."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merge.arch.roles import INTEGERS as INTEGERS
from merge.arch.roles import Role, Towers, layer_of, role_of, running_statistic, stack_of, tied_names
from merge.catalog import catalogue
from merge.checkpoint.header import DTYPE_NAMES, TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.planning.checks import check_cautions, check_ends, check_limits
from merge.planning.missing import HINT, settle
from merge.planning.output_tensor import Input as Input
from merge.planning.output_tensor import OutputTensor as OutputTensor
from merge.planning.output_tensor import most_sources as most_sources
from merge.planning.output_tensor import rearranged as rearranged
from merge.planning.output_tensor import tensors_read as tensors_read
from merge.planning.resolve import Section, Spot, matches, matching, policy_for, settings_for, weights_for
from merge.planning.sections import Strand, Stretch, arrange
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.recipe.results import Missing
from merge.tokenizer.planned import VocabularyPlan

FLOATS = frozenset(DTYPE_NAMES.values())
_NUMBERS = FLOATS | INTEGERS


@dataclass(frozen=True)
class Outcome:
    """The output's tensors in the order they are written, and everything found on the way.

    ``layers`` tells for each list of layers that was cut which layer of which model each of its layers is.
    """

    tensors: tuple[OutputTensor, ...]
    findings: tuple[Finding, ...]
    layers: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)


def uses_base(recipe: Recipe) -> bool:
    """Whether any step works on differences from the base: because it must, or because there is one."""
    needs = [catalogue()[step.method].needs["base"] for step in recipe.steps]
    known = recipe.base is not None or any(part.base != "base" for _, part in recipe.sections())
    return any(needed is True or (needed and known) for needed in needs)


def reference_key(recipe: Recipe) -> str:
    """The model whose config, small files and architecture the result has: the one the recipe names, else the
    base where it is used, else the first source.
    """
    if recipe.reference is not None:
        return recipe.reference
    based = recipe.from_base or uses_base(recipe)
    return "base" if recipe.base is not None and based else recipe.sources[0].id


class Resolver:
    """Settings, weights and policies of tensors; what does not differ is computed once and shared."""

    def __init__(self, recipe: Recipe, reference: ModelIndex) -> None:
        self._recipe = recipe
        self._config = reference.config
        self._towers = Towers.of(reference.tensors)
        self._knobs = [catalogue()[step.method].settings for step in recipe.steps]
        self._combine = next(
            catalogue()[s.method] for s in recipe.steps if catalogue()[s.method].kind == "combine"
        )
        self._reads_base = uses_base(recipe)
        self._shared: dict[Any, tuple[tuple[dict[str, Any], ...], tuple[float, ...]]] = {}

    def resolve(self, name: str, info: TensorInfo, stretch: Stretch) -> OutputTensor:
        """Everything about one output tensor that the recipe and the header of its model decide."""
        role = role_of(name, info.shape, self._config, info.dtype)
        spot = Spot(
            name,
            role,
            layer_of(name),
            stretch.depth(name, role, self._towers, self._recipe.outer_depth),
            tuple(stretch.name_in(strand, name) for strand in stretch.sources),
        )
        settings, weights = self._values(spot, stretch.section)
        chosen = policy_for(spot, stretch.section, self._recipe.classes)
        policy = chosen or self._fallback(name, role, info, stretch)
        inputs = tuple(Input(each.model, stretch.name_in(each, name)) for each in self._read(policy, stretch))
        ids = tuple(each.model for each in stretch.sources)
        dtype, stack = self._dtype(info), stack_of(name, info.shape, self._config)
        return OutputTensor(
            name, dtype, info.shape, role, spot.layer, policy, settings, weights, inputs, ids, stack
        )

    def _fallback(self, name: str, role: Role, info: TensorInfo, stretch: Stretch) -> str:
        """What happens where the recipe says nothing. What batch norm has measured is each model's own: the
        mean of the measurements, the first model's count of them.
        """
        if running_statistic(name):
            first = stretch.lead(self._reads_base).model
            counted = "base" if first == "base" else f"source:{first}"
            return "mean" if info.dtype in FLOATS else counted
        if role == "buffer" or info.dtype in INTEGERS:
            return "equal"
        return self._combine.classes.get(role, "method")

    def _values(self, spot: Spot, section: Section) -> tuple[tuple[dict[str, Any], ...], tuple[float, ...]]:
        key = (id(section), spot.depth, *((at, of) for at, _, of in matching(spot, section)))
        if key not in self._shared:
            settings = tuple(
                settings_for(spot, step, section, knobs=knobs)
                for step, knobs in zip(self._recipe.steps, self._knobs, strict=True)
            )
            self._shared[key] = settings, weights_for(spot, section)
        return self._shared[key]

    def _read(self, policy: str, stretch: Stretch) -> tuple[Strand, ...]:
        """The models a tensor of this policy is read from, the base first where it is read."""
        base = () if stretch.base is None else (stretch.base,)
        if policy == "base":
            return base
        if policy.startswith("source:"):
            named = policy.removeprefix("source:")
            return tuple(each for each in stretch.sources if each.model == named)[:1]
        return (
            (*base, *stretch.sources)
            if self._reads_base and policy in ("method", "equal")
            else stretch.sources
        )

    def _dtype(self, info: TensorInfo) -> str:
        wanted = self._recipe.dtype.output
        return info.dtype if wanted in (None, "input") or info.dtype not in FLOATS else DTYPE_NAMES[wanted]


def resolve_outputs(
    recipe: Recipe, models: Mapping[str, ModelIndex], vocabulary: VocabularyPlan | None = None
) -> Outcome:
    """Walks the tensors of the result stretch by stretch, then checks every model against them.

    With a ``vocabulary`` the tensors that are indexed by it are read through its row tables.
    """
    key, reads_base = reference_key(recipe), uses_base(recipe) or recipe.from_base
    arranged = arrange(recipe, models, key, reads_base=reads_base)
    resolver = Resolver(recipe, models[key])
    seats = [
        (stretch, name, info)
        for stretch, lead in ((each, each.lead(reads_base)) for each in arranged.stretches)
        for name, info in stretch.tensors_of(lead, models[lead.model])
    ]
    tied = tied_names(models[key].config, [name for _, name, _ in seats])
    outputs = [resolver.resolve(name, info, stretch) for stretch, name, info in seats if name not in tied]
    findings = list(arranged.findings)
    for head, embedding in tied.items():
        message = f"{head} is tied to {embedding}: one tensor is written, with the settings of {embedding}."
        findings.append(warning("tied_tensor", message, model=key, tensor=head))
    known = {name for _, name, _ in seats}
    for stretch in arranged.stretches:
        outputs += _extras(stretch, models, resolver, reads_base, known, tied, findings, recipe.missing)
    leads = {name: Input(stretch.lead(reads_base).model, info.name) for stretch, name, info in seats}
    outputs, told = settle(outputs, recipe, models, leads)
    findings += told
    if vocabulary is not None:
        findings += [_left_out(output) for output in outputs if _by_column(output, vocabulary)]
        outputs = [_lined_up(output, vocabulary) for output in outputs if not _by_column(output, vocabulary)]
        findings += _check_fills(outputs, vocabulary, models)
    findings += _checked(recipe, models, outputs, tied)
    return Outcome(tuple(outputs), tuple(findings), arranged.layers(reads_base))


def _checked(
    recipe: Recipe, models: Mapping[str, ModelIndex], outputs: Sequence[OutputTensor], tied: Container[str]
) -> Iterator[Finding]:
    """What is to be said of the tensors of the result and of what the recipe asks of them."""
    for output in outputs:
        yield from _check_output(output, models)
    yield from _check_overrides(recipe, outputs, tied)
    yield from _check_counts(recipe, outputs)
    yield from _check_weights(recipe, outputs)
    yield from _check_global(recipe, outputs)
    merged = [output for output in outputs if output.policy == "method"]
    yield from check_limits(recipe, [(each.name, each.settings) for each in merged])
    yield from check_cautions(recipe, [(each.settings, len(each.weights)) for each in merged])
    towers = Towers.of(output.name for output in outputs)
    yield from check_ends(recipe, ((each.settings, towers.length(each.name)) for each in merged))


def _check_overrides(
    recipe: Recipe, outputs: Sequence[OutputTensor], tied: Container[str]
) -> Iterator[Finding]:
    """Overrides that no tensor fits, by its own name or that of a tensor it is made from."""
    for path, override in recipe.placed_overrides():
        if override.match in tied or any(_concerns(override.match, output) for output in outputs):
            continue
        message = (
            f"The override {override.match!r} fits no tensor, so it changes nothing; `inspect` lists names."
        )
        yield warning("override_unused", message, *path, "match")


def _concerns(match: str, output: OutputTensor) -> bool:
    names = {output.name: output.layer} | {each.tensor: layer_of(each.tensor) for each in output.inputs}
    return any(matches(match, name, output.role, layer) for name, layer in names.items())


def _extras(
    stretch: Stretch,
    models: Mapping[str, ModelIndex],
    resolver: Resolver,
    reads_base: bool,
    known: Container[str],
    tied: Mapping[str, str],
    findings: list[Finding],
    rule: Missing,
) -> list[OutputTensor]:
    """Tensors that only a source has: taken where an override or ``missing`` says so, else told."""
    label = models[stretch.lead(reads_base).model].label
    taken: dict[str, OutputTensor] = {}
    for strand in stretch.sources:
        key, model = strand.model, models[strand.model]
        second = tied_names(model.config, (*model.tensors, *tied.values()))
        found = {
            name: info
            for name, info in stretch.tensors_of(strand, model)
            if name not in known and info.name not in second
        }
        for name in sorted(found.keys() - taken.keys()):
            output = resolver.resolve(name, found[name], stretch)
            if output.policy == f"source:{key}" or rule in ("fill", "present"):
                taken[name] = output
            elif rule == "drop":
                message = f"{name} is only in some of the models and is left out."
                findings.append(warning("missing_drop", message, "missing", model=key, tensor=name))
            elif output.role == "buffer":
                message = f"{name} is only in {model.label} and is left out."
                findings.append(warning("buffer_dropped", message, model=key, tensor=found[name].name))
            else:
                message = (
                    f"{model.label} has the tensor {found[name].name}, which {label} has not. "
                    f"An override with policy source:{key} would take it over; {HINT}."
                )
                findings.append(error("extra_tensor", message, model=key, tensor=found[name].name))
    return list(taken.values())


def _check_output(output: OutputTensor, models: Mapping[str, ModelIndex]) -> Iterator[Finding]:
    if output.policy == "error":
        message = (
            f"{output.name} is of class {output.role}, for which the recipe asks to stop (policy error)."
        )
        yield error("policy_error", message, tensor=output.name)
        return
    if output.policy in ("method", "mean") and output.dtype in INTEGERS:
        message = (
            f"{output.name} holds whole numbers ({output.dtype}): only base or source:<id> can be its policy."
        )
        yield error("dtype_mismatch", message, tensor=output.name)
        return
    if not output.inputs:
        message = f"{output.name}: {output.policy} is its policy, but that model is not in its slice."
        yield error("policy_model_absent", message, tensor=output.name)
    for source in output.inputs:
        model = models[source.model]
        info = model.tensors.get(source.tensor)
        if info is None:
            message = f"{model.label} lacks the tensor {source.tensor}; {HINT}."
            yield error("missing_tensor", message, model=source.model, tensor=source.tensor)
        else:
            yield from _check_info(output, info, source, model.label)


def _by_column(output: OutputTensor, vocabulary: VocabularyPlan) -> bool:
    """Whether it is the constant of BART and its like, with a column for each token, and tokens move."""
    named = output.role == "buffer" and output.name.rpartition(".")[2] == "final_logits_bias"
    return named and any(vocabulary.table_of(each.model) is not None for each in output.inputs)


def _left_out(output: OutputTensor) -> Finding:
    message = f"{output.name} has an entry for each token of another vocabulary: it is left out, and zero."
    return warning("buffer_dropped", message, "tokenizer", tensor=output.name)


def _lined_up(output: OutputTensor, vocabulary: VocabularyPlan) -> OutputTensor:
    """A tensor with a row for each token of the result, whatever rows its inputs have."""
    if not all(vocabulary.indexes(each.model, each.tensor) for each in output.inputs):
        return output
    inputs = tuple(replace(each, rows=vocabulary.table_of(each.model)) for each in output.inputs)
    return replace(output, shape=(vocabulary.alignment.rows, *output.shape[1:]), inputs=inputs)


def _check_fills(
    outputs: Sequence[OutputTensor], vocabulary: VocabularyPlan, models: Mapping[str, ModelIndex]
) -> Iterator[Finding]:
    """Models that lend rows have the tensor they are lent to, and rows as wide."""
    for model, tensor, shape in rearranged(outputs):
        for key in sorted(vocabulary.lenders(model) - {model}):
            info = models[key].tensors.get(tensor)
            if info is None or info.shape[1:] != shape[1:] or info.dtype not in FLOATS:
                message = f"{tensor} takes rows from {models[key].label}, which has none that fit."
                yield error("fill_missing", message, "tokenizer", model=key, tensor=tensor)


def _check_info(output: OutputTensor, info: TensorInfo, source: Input, label: str) -> Iterator[Finding]:
    about = {"model": source.model, "tensor": info.name}
    wanted = output.shape if source.rows is None else (*info.shape[:1], *output.shape[1:])
    if info.shape != wanted:
        rows = output.role in ("embed", "head") and info.shape[1:] == output.shape[1:]
        code = "vocabulary_mismatch" if rows else "shape_mismatch"
        hint = (
            f": {info.shape[0]} tokens against {output.shape[0]}; tokenizer: {{source: union}}, or base, "
            "lines the vocabularies up"
            if rows
            else ""
        )
        message = f"{info.name} is {list(info.shape)} in {label}, but {list(output.shape)} is wanted{hint}."
        yield error(code, message, **about)
    if info.dtype not in _NUMBERS:
        message = f"{info.name} of {label} is stored as {info.dtype}: merge the unquantised model instead."
        yield error("dtype_unsupported", message, **about)
    elif (info.dtype in FLOATS) != (output.dtype in FLOATS):
        message = f"{info.name} is {info.dtype} in {label}, but the result's is {output.dtype}."
        yield error("dtype_mismatch", message, **about)
    elif info.dtype in INTEGERS and info.dtype != output.dtype:
        message = f"{info.name} is {info.dtype} in {label}, but {output.dtype} is wanted."
        yield error("dtype_mismatch", message, **about)


def _check_counts(recipe: Recipe, outputs: Sequence[OutputTensor]) -> Iterator[Finding]:
    """The number of sources of tensors that no module claims; slices are checked before."""
    needs = [(step.method, catalogue()[step.method].needs["sources"]) for step in recipe.steps]
    for output in outputs if recipe.modules else ():
        for method, (least, most) in needs:
            count = len(output.weights)
            if output.policy == "method" and (count < least or (most is not None and count > most)):
                message = (
                    f"{output.name}, in none of the modules, has {count} sources, which {method} cannot take."
                )
                yield error("source_count", message, "modules", tensor=output.name)
                return


def _check_weights(recipe: Recipe, outputs: Sequence[OutputTensor]) -> Iterator[Finding]:
    dividing = [
        (i, knob) for i, s in enumerate(recipe.steps) if (knob := catalogue()[s.method].needs["weight_sum"])
    ]
    seen: set[tuple[float, ...]] = set()
    for output in outputs:
        if output.policy != "method" or output.weights in seen or abs(sum(output.weights)) >= 1e-9:
            continue
        for position, knob in dividing:
            known = catalogue()[recipe.steps[position].method]
            if knob is True or output.settings[position].get(knob, known.settings[knob]["default"]):
                seen.add(output.weights)
                what = known.name if knob is True else knob
                message = f"The weights add up to zero on {output.name}, and {what} would divide by that."
                yield error("weights_sum_to_zero", message, "sources", tensor=output.name)


def _check_global(recipe: Recipe, outputs: Sequence[OutputTensor]) -> Iterator[Finding]:
    """What ranks over all tensors needs one value for all tensors."""
    for position, step in enumerate(recipe.steps):
        entry = catalogue()[step.method]
        for stat in entry.needs["stats"]:
            scope, share = stat.get("scope"), stat.get("share")
            ours = [o.settings[position] for o in outputs if o.policy == "method"]
            scopes = (
                {settings.get(scope, entry.settings[scope]["default"]) for settings in ours}
                if scope in entry.settings
                else {"tensor"}
            )
            usual = entry.settings[share]["default"] if share else None
            shares = {settings.get(share, usual) for settings in ours}
            everywhere = stat.get("everywhere", "global")
            if everywhere in scopes and (len(scopes) > 1 or len(shares) > 1):
                both = f"{scope} and {share}" if share else scope
                message = (
                    f"{step.method}: with {scope} {everywhere}, {both} must be the same for all tensors."
                )
                yield error("global_setting_varies", message, "steps", position, share or scope)
