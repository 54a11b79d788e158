"""Statistics of a model on data, as files: what they are called, how they are found again, how they are read.

A folder holds ``statistics.safetensors`` (names ``<kind>/<tensor of the model>``) and ``manifest.json``.
Nothing here needs torch until a tensor is asked for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.errors import OutputExists, StatisticsInvalid, StatisticUnknown

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS_VERSION = 3
"""Raised whenever the same model and data would give other numbers."""
FILE = "statistics.safetensors"
MANIFEST = "manifest.json"

INPUT_KINDS: Mapping[str, str] = {
    "mean_abs_input": "(in,): mean over tokens of |x| of each input channel; (experts, in) of stacked ones",
    "input_second_moment": "(in,): mean over tokens of x^2 of each input channel",
    "gram": "(in, in): mean over tokens of x x'",
}
GRADIENT_KINDS: Mapping[str, str] = {
    "fisher": "shape of the tensor: diagonal Fisher of one position, labels drawn from the model",
    "fisher_argmax": "shape of the tensor: the same with the likeliest label of each position",
    "fisher_exact": "shape of the tensor: the same with every label, weighted by its probability",
    "grad_weight": "shape of the tensor: mean over sequences of (gradient of the loss x weight)^2",
}
OTHER_KINDS: Mapping[str, str] = {
    "routing_counts": "(experts,): tokens that each expert was given, under the router's name",
    "activation_norm": "(): mean over tokens of the L2 norm of what leaves a block, under the block's path",
}
KINDS: Mapping[str, str] = {**INPUT_KINDS, **GRADIENT_KINDS, **OTHER_KINDS}
"""Those of one model. ``merge.joint`` measures more, which take several models and a recipe's settings:
``gram_merged`` ((in, in): mean over tokens of x x', the x coming through blocks that are merged already), and
in the shape of the tensor ``votes`` (mean over sequences of 1: take the entry, -1: keep it, 0: no say) and
``mask`` (1 where the entry is in the source's trained region, else 0).
"""
_SHARED = frozenset({*INPUT_KINDS, "gram_merged"})


@dataclass(frozen=True)
class Manifest:
    """What a folder of statistics was made from and what is in it.

    ``axis`` is the axis of a stored tensor along which its input channels lie: 1 for (out, in), 0 for
    Conv1D and gains, 2 or 1 for stacked experts. ``shared`` maps a tensor to the one whose inputs are the
    same and under whose name the numbers are stored. ``counted`` are the tokens a tensor's inputs were
    measured on (a list where experts are stacked), ``dead_channels`` how many of its channels were never
    anything but zero. ``unmeasured`` are tensors of the model that have none of the
    statistics: embeddings, biases, what the data never came to.
    """

    digest: str
    kinds: tuple[str, ...]
    model_sha256: str
    tokenizer_sha256: str | None
    data_sha256: str
    settings: Mapping[str, Any]
    tokens: int
    documents: int
    version: int = STATISTICS_VERSION
    axis: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    counted: Mapping[str, int | list[int]] = field(default_factory=dict)
    dead_channels: Mapping[str, int] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def statistics_digest(
    model_sha256: str,
    tokenizer_sha256: str | None,
    data_sha256: str,
    kinds: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """The name under which statistics are found again: equal digests, equal numbers (of one machine type)."""
    facts = {
        "model": model_sha256,
        "tokenizer": tokenizer_sha256,
        "data": data_sha256,
        "kinds": sorted(set(kinds)),
        "settings": dict(settings),
        "version": STATISTICS_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds sorted and once each; raises ``StatisticUnknown``."""
    for kind in kinds:
        if kind not in KINDS:
            raise StatisticUnknown(
                f"There is no statistic called {kind!r}; the known ones are {', '.join(KINDS)}."
            )
    if not kinds:
        raise StatisticUnknown(f"No statistic was asked for; the known ones are {', '.join(KINDS)}.")
    return tuple(sorted(set(kinds)))


class Statistics:
    """A folder of statistics, read tensor by tensor."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.manifest = manifest
        try:
            self._file: Any = safe_open(folder / FILE, framework="pt")
        except Exception as error:  # the reader's errors have no common base
            raise StatisticsInvalid(f"{folder / FILE} cannot be read ({error}); measure it again.") from error
        keys: Any = self._file.keys
        self._names = frozenset(str(name) for name in keys())

    def names(self, kind: str) -> tuple[str, ...]:
        """The model's tensors that have this statistic, sorted."""
        own = {name.removeprefix(f"{kind}/") for name in self._names if name.startswith(f"{kind}/")}
        shared = self.manifest.shared if kind in _SHARED else {}
        return tuple(sorted(own | {name for name, first in shared.items() if first in own}))

    def get(self, kind: str, tensor_name: str) -> "Tensor | None":
        """The statistic of a tensor, float32 (int64 for counts); ``None`` where it has none."""
        shared = self.manifest.shared if kind in _SHARED else {}
        name = f"{kind}/{shared.get(tensor_name, tensor_name)}"
        return self._file.get_tensor(name) if name in self._names else None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of statistics, torch-free. Raises ``StatisticsInvalid``."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        lists = {key: tuple(found[key]) for key in ("kinds", "unmeasured", "notes")}
        manifest = Manifest(**{**found, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StatisticsInvalid(f"{folder} holds no statistics that can be read ({error}).") from error
    if manifest.version != STATISTICS_VERSION:
        raise StatisticsInvalid(
            f"{folder} holds statistics of version {manifest.version}; this Mergery makes and reads version "
            f"{STATISTICS_VERSION}: measure them again."
        )
    return manifest


def kept(out: Path, digest: str) -> Manifest | None:
    """The manifest of statistics that lie in ``out`` already; raises ``OutputExists`` where something else
    does.
    """
    if not out.exists():
        return None
    try:
        found = read_manifest(out)
    except StatisticsInvalid:
        found = None
    if found is None or found.digest != digest:
        raise OutputExists(f"{out} is already there, and holds something else; give another folder.")
    return found


def read_statistics(folder: Path) -> Statistics:
    """Opens a folder of statistics. Raises ``StatisticsInvalid``."""
    return Statistics(folder, read_manifest(folder))
