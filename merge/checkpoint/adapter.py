"""LoRA adapters: which tensors they change, and by what, checked to be something that applies exactly.

A target W becomes W + scale * B A (transposed where W is stored as (in, out), and for embeddings). scale is
alpha / r, or alpha / sqrt(r) for rsLoRA, with alpha and r of that module (``alpha_pattern``,
``rank_pattern``). Saved modules and biases replace the base's tensors. What cannot be done exactly this way
is refused by name.
"""

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from merge import errors, file_errors
from merge.arch.aliases import names_in
from merge.arch.roles import is_conv1d
from merge.arch.ties import tied_names
from merge.checkpoint.header import TensorInfo, parse_header, parse_json_object

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"

PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:(?P<linear>lora_[AB])(?:\.(?!weight$|bias$)[^.]+)?\.weight|(?P<embedding>lora_embedding_[AB])(?:\.[^.]+)?)"
)
_AGAIN = re.compile(r"\.(original_module|modules_to_save)(?=\.)")
"""With ``bias: all``, PEFT writes the biases of modules saved whole again, and also what they were."""
_HEAD = "lm_head.weight"
"""What a tied head is called where it is not stored."""
_EXACT_INITS = frozenset({"gaussian", "eva", "orthogonal"})
_REFUSED_FIELDS = {
    "use_dora": "DoRA also learns magnitudes",
    "lora_bias": "the adapter has biases of its own",
    "layer_replication": "it repeats layers",
    "trainable_token_indices": "it trains single token rows",
    "alora_invocation_tokens": "it only acts after an invocation (aLoRA)",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters (Arrow)",
    "loftq_config": "LoftQ changes the base's weights",
    "kasa_config": "KaSA weighs the directions between its factors and cuts the base",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "velora_config": "VeLoRA keeps tensors of its own",
}


@dataclass(frozen=True)
class LoraPair:
    """The change of one tensor: A is (r, in), B (out, r); ``transposed`` where it is stored as (in, out)."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    module: str
    kind: Literal["linear", "embedding"]
    transposed: bool = False

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the change, (out, in)."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Masked:
    """A change that a bundle holds: ``scale`` times the entries of ``vector`` with a bit in ``mask``."""

    vector: TensorInfo
    mask: TensorInfo
    scale: float


@dataclass(frozen=True)
class BundleBase:
    """The model that a bundle's members are changes of: ``model`` is its name, ``inside`` its folder in the
    bundle where it is there. ``structure`` is the digest of its index; ``files`` are digests of its weight
    files, whole ones or of samples as ``way`` says.
    """

    model: str
    inside: str | None
    structure: str
    way: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class AdapterIndex:
    """An adapter's pairs and whole replacements, by its own tensor names; by the model's once ``fit``.

    A bundle's member has ``masked`` changes, and knows which base it belongs ``over``; its ``model_config``
    and ``small`` files (paths in the bundle) are those that are others than the base's.
    """

    label: str
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    files: Mapping[str, int]
    digest: str
    masked: Mapping[str, Masked] = dataclasses.field(default_factory=dict)
    over: BundleBase | None = None
    model_config: Mapping[str, Any] | None = None
    small: tuple[str, ...] = ()

    def stored(self, name: str) -> tuple[TensorInfo, ...]:
        """What lies on the disk of its change to one tensor."""
        found: list[TensorInfo] = []
        if (pair := self.pairs.get(name)) is not None:
            found += [*pair.a.stored, *pair.b.stored]
        if (whole := self.replaced.get(name)) is not None:
            found.append(whole)
        if (masked := self.masked.get(name)) is not None:
            found += [masked.vector, masked.mask]
        return tuple(found)

    @property
    def changed(self) -> frozenset[str]:
        """The tensors it changes."""
        return frozenset((*self.pairs, *self.replaced, *self.masked))

    @property
    def weights(self) -> tuple[str, ...]:
        """The files that hold its tensors, sorted."""
        return tuple(sorted({part.file for name in self.changed for part in self.stored(name)}))

    @property
    def bytes(self) -> int:
        """Bytes of all its tensors on disk."""
        return sum(part.nbytes for name in self.changed for part in self.stored(name))


def index_adapter(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> AdapterIndex:
    """Checks a PEFT LoRA folder. Raises ``AdapterRefused`` or ``FileRefused``, naming the field."""
    if CONFIG_FILE not in texts:
        raise errors.AdapterRefused(f"{label}: there is no {CONFIG_FILE}, so this is not a LoRA adapter.")
    if WEIGHT_FILE not in files:
        pickled = "adapter_model.bin" in files
        made = "make safetensors of it with `python -m merge convert FOLDER OUT`."
        hint = f"only a pickle, which can run code; {made}" if pickled else "missing."
        raise (file_errors.PickleRefused if pickled else file_errors.FileMissing)(
            f"{label}: {WEIGHT_FILE} is {hint}"
        )
    if WEIGHT_FILE not in headers:
        raise file_errors.FileMissing(f"{label}: the header of {WEIGHT_FILE} was not fetched.")
    config = parse_json_object(f"{label}: {CONFIG_FILE}", texts[CONFIG_FILE])
    _check_config(label, config)
    header = parse_header(f"{label}: {WEIGHT_FILE}", headers[WEIGHT_FILE], files[WEIGHT_FILE])
    tensors = {name: replace(info, file=WEIGHT_FILE) for name, info in header.tensors.items()}
    pairs, replaced = _sort_tensors(label, tensors, config)
    facts = [config, files[WEIGHT_FILE], hashlib.sha256(headers[WEIGHT_FILE]).hexdigest()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return AdapterIndex(label, pairs, replaced, config, dict(files), digest)


def fit(
    adapter: AdapterIndex, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], model: str
) -> AdapterIndex:
    """The adapter with the model's own tensor names, every target found and of the right shape.

    Raises ``AdapterMismatch``: a target is missing, has another shape, or is tied to another tensor.
    """
    if adapter.over is not None:
        return _fit_member(adapter, tensors, model)
    adapter = _renamed(adapter, tensors, model)
    second = _second_names(adapter, tensors, config, model)
    for wanted in sorted(adapter.changed - second - tensors.keys()):
        raise errors.AdapterMismatch(
            f"{adapter.label} changes {wanted}, which {model} does not have: it was made for another model."
        )
    pairs = {name: _oriented(adapter, pair, tensors[name], config) for name, pair in adapter.pairs.items()}
    replaced: dict[str, TensorInfo] = {}
    for name, info in adapter.replaced.items():
        if name in second:
            continue
        if info.shape != tensors[name].shape:
            raise errors.AdapterMismatch(
                f"{adapter.label} replaces {name} by a tensor of shape {info.shape}, "
                f"but in {model} it has {tensors[name].shape}."
            )
        replaced[name] = info
    return replace(adapter, pairs=pairs, replaced=replaced)


def _second_names(
    adapter: AdapterIndex, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], model: str
) -> frozenset[str]:
    """Replaced tensors that are another replaced one under a second name, and need no place of their own.

    Raises ``AdapterMismatch`` where one of two tied tensors is changed and the other is not: PEFT unties them
    then, which a checkpoint with one tensor cannot hold.
    """
    names = (*tensors, *adapter.pairs, *adapter.replaced, _HEAD)
    tied = {head: own for head, own in tied_names(config, names).items() if head.endswith(".weight")}
    both: set[str] = set()
    for head, embedding in tied.items():
        pair = {head, embedding}
        if pair <= adapter.replaced.keys() and adapter.config.get("ensure_weight_tying"):
            both.add(head)
        elif found := sorted(pair & adapter.changed):
            raise errors.AdapterMismatch(
                f"{adapter.label} changes {' and '.join(found)}, but in {model} the output head is the "
                "embedding (tied), and they would no longer be one tensor. Save both with "
                "modules_to_save and ensure_weight_tying, or untie the model first."
            )
    return frozenset(both)


def _fit_member(adapter: AdapterIndex, tensors: Mapping[str, TensorInfo], model: str) -> AdapterIndex:
    """A bundle's member goes by the names of its base, as they are stored."""
    changes = {name: masked.vector.shape for name, masked in adapter.masked.items()}
    changes |= {name: pair.shape for name, pair in adapter.pairs.items()}
    for name, shape in changes.items():
        info = tensors.get(name)
        if info is None or info.shape != shape:
            has = "does not have" if info is None else f"has as {list(info.shape)}"
            raise errors.AdapterMismatch(
                f"{adapter.label} changes {name}, {list(shape)}, which {model} {has}."
            )
    return adapter


def _check_config(label: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise errors.AdapterRefused(f"{label}: peft_type {str(kind)[:40]!r} is not supported; only LORA is.")
    for field, why in _REFUSED_FIELDS.items():
        if config.get(field):
            raise errors.AdapterRefused(
                f"{label}: {field} is set, and {why}: it cannot be applied exactly as B A."
            )
    bare = config.get("target_parameters") or []
    for each in bare if isinstance(bare, list) else [bare]:
        if not (str(each).endswith(".weight") and isinstance(bare, list)):
            raise errors.AdapterRefused(f"{label}: {str(each)[:40]} of target_parameters is no weight.")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init not in _EXACT_INITS:
        raise errors.AdapterRefused(
            f"{label}: init_lora_weights is {init[:40]!r}, which changes the base's weights; "
            "convert the adapter to a plain LoRA (path_initial_model_for_weight_conversion) first."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise errors.AdapterRefused(f"{label}: r must be a positive whole number, not {str(rank)[:40]}.")
    _number(label, "lora_alpha", alpha)
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict):
            raise errors.AdapterRefused(f"{label}: {field} must map module names to numbers.")
        for key, value in pattern.items():
            _number(label, field, value)
            _check_pattern(label, field, key)


def _number(label: str, field: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and abs(value) <= sys.float_info.max):  # nor NaN, nor digits beyond any float
        raise errors.AdapterRefused(f"{label}: {field} holds {str(value)[:40]}, which is not a number.")
    return float(value)


def _check_pattern(label: str, field: str, pattern: str) -> None:
    """Only patterns that match in reasonable time: they are regular expressions from a stranger."""
    quantifiers = len(re.findall(r"(?<!\\)[*+{?]", pattern))
    if len(pattern) > 256 or quantifiers > 2 or re.search(r"\)[*+{?]|\(\?", pattern):
        raise errors.AdapterRefused(
            f"{label}: the {field} key {pattern[:80]!r} is too complicated a pattern."
        )
    try:
        re.compile(pattern)
    except re.error:
        raise errors.AdapterRefused(
            f"{label}: the {field} key {pattern[:80]!r} is not a valid pattern."
        ) from None


def _sort_tensors(
    label: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[dict[str, LoraPair], dict[str, TensorInfo]]:
    factors: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        once, again = _AGAIN.subn("", name)
        if again and once in tensors:
            continue
        plain = name.removeprefix(PREFIX)
        found = _FACTOR.fullmatch(plain)
        if found:
            parts, kind = factors.setdefault(found["module"], {}), found["linear"] or found["embedding"]
            _check_alone(label, parts.get(kind), name)
            parts[kind] = info
        elif "lora_" in plain or "trainable_tokens" in plain:
            raise errors.AdapterRefused(f"{label}: {name} is neither a LoRA factor nor a saved module.")
        else:
            _check_alone(label, replaced.get(_saved_name(plain)), name)
            replaced[_saved_name(plain)] = info
    if not factors:
        raise errors.AdapterRefused(f"{label}: {WEIGHT_FILE} holds no LoRA factors.")
    return {
        f"{module}.weight": _pair(label, module, parts, config) for module, parts in factors.items()
    }, replaced


def _check_alone(label: str, other: TensorInfo | None, name: str) -> None:
    """Two adapters in one file, of which one would be lost."""
    if other is not None:
        raise errors.AdapterRefused(
            f"{label}: {other.name} and {name} are for the same tensor; save one adapter by itself."
        )


def _saved_name(name: str) -> str:
    return re.sub(r"\.(modules_to_save(\.[^.]+)?|base_layer)\.(?=[^.]+$)", ".", name)


def _pair(label: str, module: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> LoraPair:
    if parts.keys() == {"lora_A", "lora_B"}:
        a, b, kind = parts["lora_A"], parts["lora_B"], "linear"
    elif parts.keys() == {"lora_embedding_A", "lora_embedding_B"}:
        a, b, kind = parts["lora_embedding_A"], parts["lora_embedding_B"], "embedding"
    else:
        raise errors.AdapterRefused(
            f"{label}: {module} has {', '.join(sorted(parts))} but needs one A and one B."
        )
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise errors.AdapterRefused(f"{label}: the factors of {module} are not matrices (a convolution?).")
    target = f"{module}.weight" if _by_parameter(config, module) else module
    rank = int(_patterned(config.get("rank_pattern"), target, config["r"]))
    if rank < 1:
        raise errors.AdapterRefused(f"{label}: rank_pattern gives {module} the rank {rank}; 1 is the least.")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise errors.AdapterRefused(
            f"{label}: {module} should have rank {rank} by {CONFIG_FILE}, "
            f"but its factors have {a.shape[0]} and {b.shape[1]}."
        )
    alpha = float(_patterned(config.get("alpha_pattern"), target, config["lora_alpha"]))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(a, b, scale, module, "linear" if kind == "linear" else "embedding")


def _by_parameter(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT was told of the module's weight, not of the module."""
    return any(f".{module}.weight".endswith(f".{each}") for each in config.get("target_parameters") or ())


def _patterned(patterns: Any, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def _renamed(adapter: AdapterIndex, tensors: Mapping[str, TensorInfo], model: str) -> AdapterIndex:
    """The adapter by the model's names, as far as the model has what it changes."""
    wanted = {name: pair.shape for name, pair in adapter.pairs.items()}
    wanted |= {name: info.shape for name, info in adapter.replaced.items()}
    names = names_in(wanted, {name: info.shape for name, info in tensors.items()})
    for name, times in Counter(names.values()).items():
        if times > 1:
            both = " and ".join(wanted for wanted, found in names.items() if found == name)
            raise errors.AdapterMismatch(f"{adapter.label} changes {both}, which are both {name} in {model}.")
    return replace(
        adapter,
        pairs={names[wanted]: pair for wanted, pair in adapter.pairs.items()},
        replaced={names[wanted]: info for wanted, info in adapter.replaced.items()},
    )


def _oriented(
    adapter: AdapterIndex, pair: LoraPair, target: TensorInfo, config: Mapping[str, Any]
) -> LoraPair:
    straight = pair.shape
    turned = straight[::-1]
    if pair.kind == "embedding" or _by_parameter(adapter.config, pair.module):
        transposed = pair.kind == "embedding"
    elif straight != turned and target.shape in (straight, turned):
        transposed = target.shape == turned
    else:
        transposed = is_conv1d(target.name, config) or bool(adapter.config.get("fan_in_fan_out"))
    wanted = turned if transposed else straight
    if target.shape != wanted:
        raise errors.AdapterMismatch(
            f"{adapter.label} changes {target.name} as if it had shape {wanted}, but it has {target.shape}."
        )
    return replace(pair, transposed=transposed)
