"""What can be said about a recipe and about models as wholes, before looking at single tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from merge.arch.roles import tied_names
from merge.arch.rope import rotation_of
from merge.catalog import MethodEntry, catalogue, nearest
from merge.checkpoint.adapter_config import other_base
from merge.checkpoint.adapter_names import CONFIG_FILE
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.vocabulary import differences
from merge.contract.ends import Ends
from merge.contract.limits import Caution, Limit, conflicts
from merge.errors import Finding
from merge.planning.resolve import Site, setting_sites
from merge.recipe.findings import error, warning
from merge.recipe.presets import listing
from merge.recipe.recipe import Recipe

_KINDS = ("prepare", "combine", "adjust")
_WHAT_NAMES = ("model_type", "architectures", "_class_name")
_WHAT_DIFFERS = ("hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads",
                 "rms_norm_eps", "layer_norm_eps", "sliding_window")  # fmt: skip


def check_steps(recipe: Recipe) -> Iterator[Finding]:
    """Unknown methods, and chains that are not prepares, one combine, adjusts."""
    kinds = []
    for position, step in enumerate(recipe.steps):
        known = catalogue().get(step.method)
        if known is None:
            message = f"There is no method {step.method!r}{nearest(step.method, listing())}"
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
    elif "/overrides/" not in site.pointer:
        message = "weight stands beside model or id, not among the settings."
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
    """A base that is missing, too few or too many sources, in the whole or in a slice."""
    sections = list(recipe.sections())
    counts = [((*at, "sources"), len(part.sources)) for at, part in sections]
    if not recipe.slices and not recipe.modules:
        counts.insert(0, ((), len(recipe.sources)))
    baseless = not sections or any(part.base == "base" for _, part in sections)
    for position, step in enumerate(recipe.steps):
        needs = catalogue()[step.method].needs
        least, most = needs["sources"]
        if needs["base"] is True and recipe.base is None and baseless:
            message = (
                f"{step.method} works on what sources changed in a base model, but the recipe names no base."
            )
            yield error("base_missing", message, "base")
        for name, values in needs.get("base_for", {}).items() if recipe.base is None and baseless else ():
            chosen = step.settings.get(name, catalogue()[step.method].settings[name]["default"])
            if chosen in values:
                message = f"{step.method} with {name} {chosen} needs a base, but the recipe names none."
                yield error("base_missing", message, "steps", position, name)
        for at, count in counts:
            if count < least or (most is not None and count > most):
                wanted = (
                    f"exactly {least}"
                    if least == most
                    else f"at least {least}"
                    if most is None
                    else f"{least} to {most}"
                )
                plural = "s" if wanted[-1] != "1" else ""
                message = f"{step.method} takes {wanted} source{plural}, not {count}."
                yield error("source_count", message, *(at or ("steps", position)))


def check_limits(
    recipe: Recipe, resolved: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]
) -> Iterator[Finding]:
    """Settings that limit each other, by (tensor, settings of every step); each combination is told once."""
    limited = [(at, entry) for at, s in enumerate(recipe.steps) if (entry := catalogue()[s.method]).limits]
    seen: set[tuple[int, str]] = set()
    for tensor, settings in resolved if limited else ():
        for position, entry in limited:
            defaults = {name: body["default"] for name, body in entry.settings.items()}
            limits = [Limit(**limit) for limit in entry.limits]
            for sentence in conflicts(limits, defaults, settings[position]):
                if (position, sentence) not in seen:
                    seen.add((position, sentence))
                    message = f"{entry.name}: {sentence} on {tensor}."
                    yield error("settings_conflict", message, "steps", position, tensor=tensor)


def check_cautions(
    recipe: Recipe, resolved: Iterable[tuple[Sequence[Mapping[str, Any]], int]]
) -> Iterator[Finding]:
    """What methods say is better known beforehand, by (settings of every step, number of sources); each once
    a step.
    """
    careful = [(at, entry) for at, s in enumerate(recipe.steps) if (entry := catalogue()[s.method]).cautions]
    seen: set[tuple[int, str]] = set()
    for settings, sources in resolved if careful else ():
        for position, entry in careful:
            defaults = {name: body["default"] for name, body in entry.settings.items()}
            for caution in (Caution(**each) for each in entry.cautions):
                sentence = caution.heard(defaults, settings[position], sources)
                if sentence is not None and (position, caution.about) not in seen:
                    seen.add((position, caution.about))
                    at: list[str | int] = ["steps", position]
                    at += [caution.setting] if caution.setting else []
                    yield warning("method_caution", f"{entry.name}: {sentence}.", *at)


def check_ends(
    recipe: Recipe, resolved: Iterable[tuple[Sequence[Mapping[str, Any]], int]]
) -> Iterator[Finding]:
    """Layers at the ends of a model, and transitions beside them, that it has no room for, by (settings of
    every step, layers of the tensor's tower, 0 outside of one); each once a step.
    """
    ending = [(at, entry) for at, s in enumerate(recipe.steps) if (entry := catalogue()[s.method]).ends]
    seen: set[tuple[int, str]] = set()
    for settings, layers in resolved if ending else ():
        for position, entry in ending if layers else ():
            defaults = {name: body["default"] for name, body in entry.settings.items()}
            sentence = Ends(**(entry.ends or {})).told(layers, defaults, settings[position])
            if sentence is not None and (position, sentence) not in seen:
                seen.add((position, sentence))
                yield warning("layers_without_room", f"{entry.name}: {sentence}.", "steps", position)


def check_models(
    models: Mapping[str, ModelIndex], used: Sequence[str], *, aligned: bool = False
) -> Iterator[Finding]:
    """Models as wholes against the first of ``used``: architecture, quantisation, tied embeddings,
    vocabulary (unless the recipe has the vocabularies ``aligned``).
    """
    for key in used:
        yield from _check_codes(models[key], key)
        yield from _check_base(models[key], key)
    reference = models[used[0]]
    if not any(reference.config.get(name) for name in _WHAT_NAMES):
        message = (
            f"{reference.label} has no config that names its architecture: tensors are merged by their "
            "names, and tied or transposed ones cannot be told."
        )
        yield warning("architecture_unknown", message, model=used[0])
    for key in used[1:]:
        yield from _check_pair(reference, models[key], key)
        if not aligned:
            yield from _check_vocabulary(reference, models[key], key)


def _check_codes(model: ModelIndex, key: str) -> Iterator[Finding]:
    """Quantised weights: decoded while they are read where the scheme is known, else refused."""
    if model.quantization:
        message = (
            f"{model.label} is quantised ({model.quantization}): its tensors are codes, "
            "not numbers. Use the unquantised model."
        )
        yield error("quantized", message, model=key)
    if model.decoding is not None:
        message = (
            f"{model.label} is quantised ({model.decoding.scheme}) and is decoded while it is read; what was "
            f"rounded away is lost: {model.decoding.loss}. Merge the unquantised model where there is one."
        )
        yield warning("dequantized", message, model=key)
    if model.derived is not None:
        message = (
            f"{model.label} is a GGUF file with no config beside it: one was made from its metadata, which "
            f"may lack {model.derived}. A model of the same sizes in the recipe would lend its own."
        )
        yield warning("config_derived", message, model=key)


def _check_base(model: ModelIndex, key: str) -> Iterator[Finding]:
    """An adapter on another model than the one it was trained over: the shapes fit a sibling just as well."""
    adapter = model.adapter
    named = other_base(adapter.config, model.label) if adapter is not None and adapter.over is None else None
    if adapter is not None and named is not None:
        message = (
            f"{adapter.label} was trained over {named[:200]} by its {CONFIG_FILE}, and is put on "
            f"{model.label}: over other weights it does not do what it learned. Name that model, unless the "
            "two are the same."
        )
        yield warning("adapter_base_differs", message, model=key)


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
    known, own = _stated(reference.config), _stated(model.config)
    differing = [name for name in own if name in known and own[name] != known[name]]
    if differing:
        shown = ", ".join(f"{name} {own[name]} against {known[name]}" for name in differing)
        message = f"The config of {model.label} differs from {reference.label}'s, which is used: {shown}."
        yield warning("config_differs", message, model=key)


def _check_vocabulary(reference: ModelIndex, model: ModelIndex, key: str) -> Iterator[Finding]:
    ours, theirs = reference.tokenizer, model.tokenizer
    if ours is None or theirs is None or ours.digest == theirs.digest:
        return
    known, other = ours.vocabulary(), theirs.vocabulary()
    what = differences(known, other) if known is not None and other is not None else "other ids"
    message = (
        f"The tokenizers of {model.label} and {reference.label} differ ({what}): rows of the embeddings may "
        "not mean the same token. tokenizer: {source: union}, or base, lines them up."
    )
    yield warning("tokenizer_differs", message, "tokenizer", model=key)


def _first(names: Any) -> str:
    return str(names[0])[:80] if isinstance(names, list) and names else str(names)[:80]


def _ties(config: Mapping[str, Any]) -> bool:
    return bool(tied_names(config, ("lm_head.weight", "embed_tokens.weight")))


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What weights mean other things by, of the text's part of a config where it has one."""
    inner = config.get("text_config")
    whole = {**config, **inner} if isinstance(inner, Mapping) else config
    return {name: whole[name] for name in _WHAT_DIFFERS if name in whole} | rotation_of(whole)
