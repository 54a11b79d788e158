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
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from merge import errors, file_errors
from merge.arch.aliases import names_in
from merge.arch.roles import is_conv1d
from merge.arch.ties import tied_names
from merge.checkpoint.adapter_config import check_config, patterned
from merge.checkpoint.adapter_names import CONFIG_FILE, WEIGHT_FILE, check_files
from merge.checkpoint.header import TensorInfo, parse_header, parse_json_object

NAMES = "mergery.names"
"""Where the header of such a file that Mergery made tells what the base's files call tensors for which
Transformers, and so PEFT, has other names.
"""

ROWS = "mergery.rows"
"""Where it tells of pieces of one tensor of the base's files at which of its rows each begins."""

PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:(?P<linear>lora_[AB])(?:\.(?!weight$|bias$)[^.]+)?\.weight|(?P<embedding>lora_embedding_[AB])(?:\.[^.]+)?)"
)
_AGAIN = re.compile(r"\.(original_module|modules_to_save)(?=\.)")
"""With ``bias: all``, PEFT writes the biases of modules saved whole again, and also what they were."""
_HEAD = "lm_head.weight"
"""What a tied head is called where it is not stored."""


@dataclass(frozen=True)
class LoraPair:
    """The change of one tensor: A is (r, in), B (out, r); ``transposed`` where it is stored as (in, out).
    ``below`` are those of further rows, where modules have apart what is one tensor in the files.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    module: str
    kind: Literal["linear", "embedding"]
    transposed: bool = False
    below: tuple["LoraPair", ...] = ()

    @property
    def rank(self) -> int:
        """The rank r."""
        return sum(each.a.shape[0] for each in (self, *self.below))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the change, (out, in)."""
        return sum(each.b.shape[0] for each in (self, *self.below)), self.a.shape[1]

    @property
    def factors(self) -> tuple[TensorInfo, ...]:
        """Every A and B."""
        return tuple(info for each in (self, *self.below) for info in (each.a, each.b))


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

    ``names`` are what it says itself that the model's files call tensors of other names, and ``rows`` where
    in those the pieces begin that modules have apart.
    A bundle's member has ``masked`` changes, and knows which base it belongs ``over``; its ``model_config``
    and ``small`` files (paths in the bundle) are those that are others than the base's.
    """

    label: str
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    files: Mapping[str, int]
    digest: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masked: Mapping[str, Masked] = dataclasses.field(default_factory=dict)
    over: BundleBase | None = None
    model_config: Mapping[str, Any] | None = None
    small: tuple[str, ...] = ()
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def stored(self, name: str) -> tuple[TensorInfo, ...]:
        """What lies on the disk of its change to one tensor."""
        found: list[TensorInfo] = []
        if (pair := self.pairs.get(name)) is not None:
            found += [part for info in pair.factors for part in info.stored]
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
    check_files(label, files)
    if WEIGHT_FILE not in headers:
        raise file_errors.FileMissing(f"{label}: the header of {WEIGHT_FILE} was not fetched.")
    config = parse_json_object(f"{label}: {CONFIG_FILE}", texts[CONFIG_FILE])
    check_config(label, config)
    header = parse_header(f"{label}: {WEIGHT_FILE}", headers[WEIGHT_FILE], files[WEIGHT_FILE])
    tensors = {name: replace(info, file=WEIGHT_FILE) for name, info in header.tensors.items()}
    pairs, replaced = _sort_tensors(label, tensors, config)
    facts = [config, files[WEIGHT_FILE], hashlib.sha256(headers[WEIGHT_FILE]).hexdigest()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    told, begins = (parse_json_object(f"{label}: {each}", header.metadata.get(each, "{}").encode())
                    for each in (NAMES, ROWS))  # fmt: skip
    names = {name: str(own) for name, own in told.items()}
    rows = {name: row for name, row in begins.items() if isinstance(row, int)}
    return AdapterIndex(label, pairs, replaced, config, dict(files), digest, names, rows=rows)


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
            f"{adapter.label} changes {wanted}, which {model} does not have: it was made for another "
            "model, or for a module that Transformers cuts out of a larger tensor of these files."
        )
    pairs = {
        name: _oriented(adapter, pair, tensors[name], config)
        for name, pair in adapter.pairs.items()
        if name not in second
    }
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
    """Changed tensors that are another changed one under a second name, and need no place of their own.

    Raises ``AdapterMismatch`` where one of two tied tensors is changed and the other is not: PEFT unties them
    then, which a checkpoint with one tensor cannot hold.
    """
    names = (*tensors, *adapter.pairs, *adapter.replaced, _HEAD)
    tied = {head: own for head, own in tied_names(config, names).items() if head.endswith(".weight")}
    both: set[str] = set()
    for head, embedding in tied.items():
        pair = {head, embedding}
        if adapter.config.get("ensure_weight_tying") and _alike(adapter, head, embedding):
            both.add(head)
        elif found := sorted(pair & adapter.changed):
            raise errors.AdapterMismatch(
                f"{adapter.label} changes {' and '.join(found)}, but in {model} the output head is the "
                "embedding (tied), and they would no longer be one tensor. Save both with "
                "modules_to_save and ensure_weight_tying, or untie the model first."
            )
    return frozenset(both)


def _alike(adapter: AdapterIndex, head: str, embedding: str) -> bool:
    """Whether both are changed in one way: PEFT ties their factors, and what is saved whole."""
    scales = {pair.scale if (pair := adapter.pairs.get(name)) else None for name in (head, embedding)}
    whole = {name in adapter.replaced for name in (head, embedding)}
    return len(scales) == len(whole) == 1 and (scales != {None} or whole == {True})


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
    rank = int(patterned(config.get("rank_pattern"), target, config["r"]))
    if rank < 1:
        raise errors.AdapterRefused(f"{label}: rank_pattern gives {module} the rank {rank}; 1 is the least.")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise errors.AdapterRefused(
            f"{label}: {module} should have rank {rank} by {CONFIG_FILE}, "
            f"but its factors have {a.shape[0]} and {b.shape[1]}."
        )
    alpha = float(patterned(config.get("alpha_pattern"), target, config["lora_alpha"]))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(a, b, scale, module, "linear" if kind == "linear" else "embedding")


def _by_parameter(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT was told of the module's weight, not of the module."""
    return any(f".{module}.weight".endswith(f".{each}") for each in config.get("target_parameters") or ())


def _renamed(adapter: AdapterIndex, tensors: Mapping[str, TensorInfo], model: str) -> AdapterIndex:
    """The adapter by the model's names, as far as the model has what it changes."""
    wanted = {name: pair.shape for name, pair in adapter.pairs.items()}
    wanted |= {name: info.shape for name, info in adapter.replaced.items()}
    names = names_in(wanted, {name: info.shape for name, info in tensors.items()})
    names |= {name: own for name, own in adapter.names.items() if name in wanted and own in tensors}
    biases = adapter.config.get("bias") == "all"  # PEFT writes one that two modules share under both names
    for name, times in Counter(names.values()).items():
        own = [wanted for wanted, found in names.items() if found == name]
        kind = adapter.pairs if own[0] in adapter.pairs else adapter.replaced
        if (
            times > 1
            and not kind.keys() & adapter.rows.keys() >= set(own)
            and not (biases and name.endswith(".bias"))
        ):
            raise errors.AdapterMismatch(
                f"{adapter.label} changes {' and '.join(own)}, which are both {name} in {model}."
            )
    return replace(
        adapter,
        pairs=_stacked(adapter, names),
        replaced=_joined(adapter, names),
    )


def _stacked(adapter: AdapterIndex, names: Mapping[str, str]) -> dict[str, LoraPair]:
    """The pairs by the names of the model's files, with the pieces of one tensor in the order of its rows."""
    found: dict[str, LoraPair] = {}
    for wanted in sorted(adapter.pairs, key=lambda wanted: adapter.rows.get(wanted, 0)):
        pair, above = adapter.pairs[wanted], found.get(names[wanted])
        if above is not None and above.shape != (adapter.rows[wanted], pair.shape[1]):
            raise _no_piece(adapter, wanted, names[wanted])
        found[names[wanted]] = pair if above is None else replace(above, below=(*above.below, pair))
    return {names[wanted]: found[names[wanted]] for wanted in adapter.pairs}


def _joined(adapter: AdapterIndex, names: Mapping[str, str]) -> dict[str, TensorInfo]:
    """The same of what is saved whole: pieces of one tensor lie one behind the other."""
    found: dict[str, TensorInfo] = {}
    for wanted in sorted(adapter.replaced, key=lambda wanted: adapter.rows.get(wanted, 0)):
        info, above = adapter.replaced[wanted], found.get(names[wanted])
        if above is not None and wanted in adapter.rows:
            fitting = (adapter.rows[wanted], *info.shape[1:])
            if not info.shape or (above.end, above.dtype, above.shape) != (info.begin, info.dtype, fitting):
                raise _no_piece(adapter, wanted, names[wanted])
            info = replace(above, shape=(above.shape[0] + info.shape[0], *info.shape[1:]), end=info.end)
        found[names[wanted]] = info
    return {names[wanted]: found[names[wanted]] for wanted in adapter.replaced}


def _no_piece(adapter: AdapterIndex, wanted: str, name: str) -> errors.AdapterMismatch:
    return errors.AdapterMismatch(f"{adapter.label}: {wanted} is no piece of {name} that fits below others.")


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
