"""The tensors of the result, one by one: which models each is made from, how, and what stands in the way."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.arch.roles import Towers, layer_of, role_of, tied_names
from merge.catalog import catalogue
from merge.checkpoint.header import DTYPE_NAMES, TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.checks import error, warning
from merge.errors import Finding
from merge.recipe import Recipe
from merge.resolve import matches, policy_for, settings_for, weights_for

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})
MOST_OF_A_KIND = 20
"""Findings of one code about one model that are told in full; the rest are counted."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to be written. ``policy`` is ``method``, ``mean``, ``base``, ``source:<id>`` or ``equal``.

    ``settings`` holds the resolved settings of every step (shared between tensors that have the same),
    ``weights`` every source's weight.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    policy: str
    settings: tuple[Mapping[str, Any], ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """The output's tensors in the order they are written, and everything found on the way."""

    tensors: tuple[OutputTensor, ...]
    findings: tuple[Finding, ...]


def uses_base(recipe: Recipe) -> bool:
    """Whether any step works on differences from the base."""
    return any(catalogue()[step.method].needs["base"] for step in recipe.steps)


def reference_key(recipe: Recipe) -> str:
    """The model whose tensors, config and order the result has: the base where it is used, else the first
    source.
    """
    return "base" if recipe.base is not None and uses_base(recipe) else recipe.sources[0].id


def inputs_of(policy: str, recipe: Recipe) -> tuple[str, ...]:
    """The models a tensor of this policy is read from, the base first where it is read."""
    ids = recipe.source_ids()
    if policy == "base":
        return ("base",)
    if policy.startswith("source:"):
        return (policy.removeprefix("source:"),)
    return ("base", *ids) if uses_base(recipe) and policy in ("method", "equal") else ids


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
        self._shared: dict[Any, tuple[tuple[dict[str, Any], ...], tuple[float, ...]]] = {}

    def resolve(self, info: TensorInfo) -> OutputTensor:
        """Everything about one output tensor that the recipe and the header of its model decide."""
        role = role_of(info.name, info.shape, self._config, info.dtype)
        layer = layer_of(info.name)
        depth = self._towers.depth(info.name, role, self._recipe.outer_depth)
        over = tuple(
            i for i, o in enumerate(self._recipe.overrides) if matches(o.match, info.name, role, layer)
        )
        key = (depth, over)
        if key not in self._shared:
            settings = tuple(
                settings_for(info.name, role, layer, depth, step, self._recipe, knobs=knobs)
                for step, knobs in zip(self._recipe.steps, self._knobs, strict=True)
            )
            self._shared[key] = settings, weights_for(info.name, role, layer, depth, self._recipe)
        settings, weights = self._shared[key]
        chosen = policy_for(info.name, role, layer, self._recipe)
        fallback = (
            "equal"
            if role == "buffer" or info.dtype in INTEGERS
            else self._combine.classes.get(role, "method")
        )
        return OutputTensor(
            info.name, self._dtype(info), info.shape, role, layer, chosen or fallback, settings, weights
        )

    def _dtype(self, info: TensorInfo) -> str:
        wanted = self._recipe.dtype.output
        return info.dtype if wanted in (None, "input") or info.dtype not in FLOATS else DTYPE_NAMES[wanted]


def resolve_outputs(recipe: Recipe, models: Mapping[str, ModelIndex]) -> Outcome:
    """Walks the reference's tensors in the order of its files, then checks every model against them."""
    key = reference_key(recipe)
    reference = models[key]
    resolver = Resolver(recipe, reference)
    tied = tied_names(reference.config, reference.tensors)
    ordered = sorted(reference.tensors.values(), key=lambda info: (info.file, info.begin, info.name))
    outputs = [resolver.resolve(info) for info in ordered if info.name not in tied]
    findings: list[Finding] = []
    for head, embedding in tied.items():
        message = f"{head} is tied to {embedding}: one tensor is written, with the settings of {embedding}."
        findings.append(warning("tied_tensor", message, model=key, tensor=head))
    outputs += _extras(recipe, models, reference, resolver, tied, findings)
    for output in outputs:
        findings += _check_output(output, recipe, models)
    findings += _check_weights(recipe, outputs)
    findings += _check_global(recipe, outputs)
    return Outcome(tuple(outputs), tuple(_shortened(findings)))


def _extras(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    reference: ModelIndex,
    resolver: Resolver,
    tied: Mapping[str, str],
    findings: list[Finding],
) -> list[OutputTensor]:
    """Tensors that only a source has: taken where an override says so, else told."""
    taken: dict[str, OutputTensor] = {}
    keys = (*(("base",) if uses_base(recipe) else ()), *recipe.source_ids())
    for key in keys:
        for name in sorted(models[key].tensors.keys() - reference.tensors.keys()):
            if name in taken or name in tied or tied_names(models[key].config, (name, *tied.values())):
                continue
            output = resolver.resolve(models[key].tensors[name])
            if output.policy == f"source:{key}":
                taken[name] = output
            elif output.role == "buffer":
                message = f"{name} is only in {models[key].label} and is left out."
                findings.append(warning("buffer_dropped", message, model=key, tensor=name))
            else:
                message = (
                    f"{models[key].label} has the tensor {name}, which {reference.label} has not. "
                    f"An override with policy source:{key} would take it over."
                )
                findings.append(error("extra_tensor", message, model=key, tensor=name))
    return list(taken.values())


def _check_output(
    output: OutputTensor, recipe: Recipe, models: Mapping[str, ModelIndex]
) -> Iterator[Finding]:
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
    for key in inputs_of(output.policy, recipe):
        info = models[key].tensors.get(output.name)
        if info is None:
            message = f"{models[key].label} lacks the tensor {output.name}."
            yield error("missing_tensor", message, model=key, tensor=output.name)
        else:
            yield from _check_info(output, info, key, models[key].label)


def _check_info(output: OutputTensor, info: TensorInfo, key: str, label: str) -> Iterator[Finding]:
    about = {"model": key, "tensor": output.name}
    if info.shape != output.shape:
        rows = output.role in ("embed", "head") and info.shape[1:] == output.shape[1:]
        code = "vocabulary_mismatch" if rows else "shape_mismatch"
        hint = f": {info.shape[0]} tokens against {output.shape[0]}" if rows else ""
        message = f"{output.name} is {list(info.shape)} in {label}, but {list(output.shape)} is wanted{hint}."
        yield error(code, message, **about)
    if info.dtype not in FLOATS | INTEGERS:
        message = f"{output.name} of {label} is stored as {info.dtype}: merge the unquantised model instead."
        yield error("dtype_unsupported", message, **about)
    elif (info.dtype in FLOATS) != (output.dtype in FLOATS):
        message = f"{output.name} is {info.dtype} in {label}, but the result's is {output.dtype}."
        yield error("dtype_mismatch", message, **about)
    elif info.dtype in INTEGERS and info.dtype != output.dtype:
        message = f"{output.name} is {info.dtype} in {label}, but {output.dtype} is wanted."
        yield error("dtype_mismatch", message, **about)


def _check_weights(recipe: Recipe, outputs: Sequence[OutputTensor]) -> Iterator[Finding]:
    dividing = [
        (i, knob) for i, s in enumerate(recipe.steps) if (knob := catalogue()[s.method].needs["weight_sum"])
    ]
    seen: set[tuple[float, ...]] = set()
    for output in outputs:
        if output.policy != "method" or output.weights in seen:
            continue
        seen.add(output.weights)
        for position, knob in dividing:
            default = catalogue()[recipe.steps[position].method].settings[knob]["default"]
            if output.settings[position].get(knob, default) and abs(sum(output.weights)) < 1e-9:
                message = f"The weights add up to zero on {output.name}, and {knob} would divide by that."
                yield error("weights_sum_to_zero", message, "sources", tensor=output.name)


def _check_global(recipe: Recipe, outputs: Sequence[OutputTensor]) -> Iterator[Finding]:
    """What ranks over all tensors needs one value for all tensors."""
    for position, step in enumerate(recipe.steps):
        entry = catalogue()[step.method]
        for stat in entry.needs["stats"]:
            scope, share = stat.get("scope"), stat.get("share")
            ours = [o.settings[position] for o in outputs if o.policy == "method"]
            scopes = (
                {settings.get(scope, "tensor") for settings in ours}
                if scope in entry.settings
                else {"tensor"}
            )
            shares = {settings.get(share) for settings in ours}
            if "global" in scopes and (len(scopes) > 1 or len(shares) > 1):
                message = (
                    f"{step.method}: with scope global, {scope} and {share} must be the same for all tensors."
                )
                yield error("global_setting_varies", message, "steps", position, share or scope)


def _shortened(findings: Sequence[Finding]) -> Iterator[Finding]:
    counts: Counter[tuple[str, str | None]] = Counter()
    for finding in findings:
        counts[finding.code, finding.model] += 1
        if counts[finding.code, finding.model] <= MOST_OF_A_KIND:
            yield finding
    for (code, model), count in counts.items():
        if count > MOST_OF_A_KIND:
            make = error if any(f.code == code and f.severity == "error" for f in findings) else warning
            yield make(code, f"... and {count - MOST_OF_A_KIND} more tensors with {code}.", model=model)
