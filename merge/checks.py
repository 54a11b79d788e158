"""What can be said about a recipe and about models as wholes, before looking at single tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge.arch.roles import tied_names
from merge.catalog import MethodEntry, catalogue, nearest
from merge.checkpoint.index import ModelIndex
from merge.document import pointer_of
from merge.errors import Finding
from merge.recipe import Recipe
from merge.resolve import Site, setting_sites

_KINDS = ("prepare", "combine", "adjust")
_WHAT_DIFFERS = ("hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads",
                 "rope_theta", "rms_norm_eps", "layer_norm_eps", "sliding_window")  # fmt: skip


def error(
    code: str, message: str, *at: str | int, model: str | None = None, tensor: str | None = None
) -> Finding:
    """A finding that stops the job; ``at`` is the path into the recipe."""
    return Finding("error", code, message, pointer_of(*at) if at else None, model, tensor)


def warning(
    code: str, message: str, *at: str | int, model: str | None = None, tensor: str | None = None
) -> Finding:
    """A finding that is only told."""
    return Finding("warning", code, message, pointer_of(*at) if at else None, model, tensor)


def check_steps(recipe: Recipe) -> Iterator[Finding]:
    """Unknown methods, and chains that are not prepares, one combine, adjusts."""
    kinds = []
    for position, step in enumerate(recipe.steps):
        known = catalogue().get(step.method)
        if known is None:
            message = f"There is no method {step.method!r}{nearest(step.method, catalogue())}"
            yield error("unknown_method", message, "steps", position, "method")
            return
        kinds.append(known.kind)
    if kinds.count("combine") != 1 or kinds != sorted(kinds, key=_KINDS.index):
        chain = ", ".join(f"{step.method} ({kind})" for step, kind in zip(recipe.steps, kinds, strict=True))
        message = f"Steps are any number of prepare, one combine, any number of adjust; here: {chain}."
        yield error("chain_invalid", message, "steps")


def check_settings(recipe: Recipe) -> Iterator[Finding]:
    """Unknown settings, values out of range, curves and per-source values where there can be none."""
    for site in setting_sites(recipe):
        steps = recipe.steps if site.step is None else (recipe.steps[site.step],)
        entries = [catalogue()[step.method] for step in steps]
        if site.method is not None and site.step is None:
            message = f"{site.method}.{site.setting}: no step uses the method {site.method!r}."
            yield Finding("error", "setting_unknown", message, site.pointer, site.source)
        elif site.setting == "weight" and site.step is None:
            yield from _check_weight(site)
        else:
            yield from _check_site(site, entries)


def _check_weight(site: Site) -> Iterator[Finding]:
    values = site.value if isinstance(site.value, list) else [site.value]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        message = "weight must be a number, or a list of them by depth."
        yield Finding("error", "setting_invalid", message, site.pointer, site.source)
    elif site.pointer.startswith("/sources/"):
        message = "weight stands beside model, not among its settings."
        yield Finding("error", "setting_invalid", message, site.pointer, site.source)


def _check_site(site: Site, entries: Sequence[MethodEntry]) -> Iterator[Finding]:
    having = [entry for entry in entries if site.setting in entry.settings]
    if not having:
        known = sorted({name for entry in entries for name in entry.settings})
        names = " and ".join(entry.name for entry in entries)
        message = f"{names}: unknown setting {site.setting!r}{nearest(site.setting, known)}"
        yield Finding("error", "setting_unknown", message, site.pointer, site.source)
    for entry in having:
        for _, sentence in entry.problems({site.setting: site.value}):
            yield Finding("error", "setting_invalid", sentence + ".", site.pointer, site.source)
        if site.source is not None and not entry.settings[site.setting].get("x-by-source"):
            message = f"{entry.name}: {site.setting} is one for all sources; set it in the step."
            yield Finding("error", "setting_not_by_source", message, site.pointer, site.source)


def check_needs(recipe: Recipe) -> Iterator[Finding]:
    """A base that is missing, too few or too many sources."""
    count = len(recipe.sources)
    for position, step in enumerate(recipe.steps):
        needs = catalogue()[step.method].needs
        least, most = needs["sources"]
        if needs["base"] and recipe.base is None:
            message = (
                f"{step.method} works on what sources changed in a base model, but the recipe names no base."
            )
            yield error("base_missing", message, "base")
        if count < least or (most is not None and count > most):
            wanted = (
                f"exactly {least}"
                if least == most
                else f"at least {least}"
                if most is None
                else f"{least} to {most}"
            )
            message = f"{step.method} takes {wanted} source{'s' if wanted[-1] != '1' else ''}, not {count}."
            yield error("source_count", message, "steps", position)


def check_models(models: Mapping[str, ModelIndex], used: Sequence[str]) -> Iterator[Finding]:
    """Models as wholes against the first of ``used``: architecture, quantisation, tied embeddings,
    vocabulary.
    """
    for key in used:
        if models[key].quantization:
            message = (
                f"{models[key].label} is quantised ({models[key].quantization}): its tensors are codes, "
                "not numbers. Use the unquantised model."
            )
            yield error("quantized", message, model=key)
    reference = models[used[0]]
    for key in used[1:]:
        yield from _check_pair(reference, models[key], key)
        yield from _check_vocabulary(reference, models[key], key)


def _check_pair(reference: ModelIndex, model: ModelIndex, key: str) -> Iterator[Finding]:
    ours, theirs = reference.config.get("model_type"), model.config.get("model_type")
    if ours and theirs and ours != theirs:
        message = (
            f"{model.label} is of type {theirs}, but {reference.label} of type {ours}: they cannot be merged."
        )
        yield error("architecture_mismatch", message, model=key)
        return
    ours, theirs = reference.config.get("architectures"), model.config.get("architectures")
    if ours and theirs and ours != theirs:
        kinds = f"{model.label} is a {_first(theirs)}, {reference.label} a {_first(ours)}"
        message = f"{kinds}; the result is the latter."
        yield warning("architecture_differs", message, model=key)
    heads = any(
        name.endswith(("lm_head.weight", "embed_out.weight"))
        for m in (reference, model)
        for name in m.tensors
    )
    if heads and _ties(reference.config) != _ties(model.config):
        tying, other = (reference, model) if _ties(reference.config) else (model, reference)
        message = (
            f"{tying.label} uses its embedding as output head (tied), {other.label} has a head of its own; "
            "they cannot be merged as they are."
        )
        yield error("tied_embeddings_differ", message, model=key)
    differing = [name for name in _WHAT_DIFFERS if _differ(reference.config, model.config, name)]
    if differing:
        shown = ", ".join(f"{n} {model.config[n]} against {reference.config[n]}" for n in differing)
        message = f"The config of {model.label} differs from {reference.label}'s, which is used: {shown}."
        yield warning("config_differs", message, model=key)


def _check_vocabulary(reference: ModelIndex, model: ModelIndex, key: str) -> Iterator[Finding]:
    ours, theirs = reference.tokenizer, model.tokenizer
    if ours is None or theirs is None or ours.digest == theirs.digest:
        return
    sizes = (
        f"{theirs.vocab_size} and {ours.vocab_size} tokens"
        if ours.vocab_size != theirs.vocab_size
        else "other ids"
    )
    message = (
        f"The tokenizers of {model.label} and {reference.label} differ ({sizes}): rows of the "
        "embeddings may not mean the same token."
    )
    yield warning("tokenizer_differs", message, "tokenizer", model=key)


def _first(names: Any) -> str:
    return str(names[0])[:80] if isinstance(names, list) and names else str(names)[:80]


def _ties(config: Mapping[str, Any]) -> bool:
    return bool(tied_names(config, ("lm_head.weight", "embed_tokens.weight")))


def _differ(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> bool:
    return name in ours and name in theirs and ours[name] != theirs[name]
