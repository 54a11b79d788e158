"""The words of PEFT's adapter folder: tensor names, ``adapter_config.json``, and what an adapter loses."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from merge.arch.roles import is_conv1d
from merge.checkpoint.index import ModelIndex
from merge.planning.forms.adapter import LoraModule, module_of
from merge.planning.outputs import OutputTensor

PREFIX = "base_model.model."
_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
)
"""Not those of classifiers and the like: for these PEFT wants the head whole, whether or not it changed."""


@dataclass(frozen=True)
class Made:
    """A module's factors: ``names`` of A (rank, in) and B (out, rank), ``shape`` (out, in).

    ``norm`` is that of the change, ``lost`` that of what the factors do not give back of it.
    """

    module: LoraModule
    file: str
    names: tuple[str, str]
    shape: tuple[int, int]
    rank: int
    norm: float
    lost: float

    @property
    def path(self) -> str:
        """The module's name in the base's files."""
        return self.module.path

    @property
    def tensor(self) -> str:
        """The name of its weight there."""
        return self.module.output.name


@dataclass(frozen=True)
class Saved:
    """A tensor that the adapter holds whole, under ``name``."""

    output: OutputTensor
    file: str
    name: str
    shape: tuple[int, ...]


def factor_names(kind: str, path: str) -> tuple[str, str]:
    """Names of A and B of a module in the adapter's file."""
    stem = PREFIX + path
    if kind == "embedding":
        return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def saved_name(name: str, lora_paths: Iterable[str]) -> str:
    """Name of a whole tensor: the bias of a module that also has factors stands under its base layer."""
    path, _, last = name.rpartition(".")
    return PREFIX + (f"{path}.base_layer.{last}" if path in set(lora_paths) else name)


def adapter_config(
    base: ModelIndex, made: Sequence[Made], saved: Sequence[Saved], called: Mapping[str, str]
) -> dict[str, Any]:
    """``adapter_config.json``, by the names that Transformers has for what is ``called`` otherwise in the
    base's files. Every module's alpha is its rank, so that its scale is 1.
    """

    def path_of(name: str) -> str:
        return module_of(called.get(name, name))

    used = {path_of(each.tensor): each.rank for each in made if each.rank}
    ranks = Counter(used.values())
    rank = max(ranks, key=lambda value: (ranks[value], value)) if ranks else 1
    odd = [f".{path}" for path, own in used.items() if own != rank]
    others = {  # a pattern is taken for every module whose name ends so: the longest come first
        path: used[path]
        for path in sorted(used, key=lambda path: (-len(path), path))
        if any(f".{path}".endswith(end) for end in odd)
    }
    label, _, revision = base.label.partition("@")
    whole = sorted({path_of(each.output.name) for each in saved if not each.name.endswith(".bias")})
    biases = [each for each in saved if path_of(each.output.name) not in whole]
    beside = all(each.name.endswith(".base_layer.bias") for each in biases)
    return {
        "peft_type": "LORA",
        "task_type": _task(base.config),
        "base_model_name_or_path": label,
        "revision": revision.partition(":")[0] or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": _targets(base, used, called),
        "modules_to_save": whole or None,
        "bias": "none" if not biases else "lora_only" if beside else "all",
        "fan_in_fan_out": any(is_conv1d(each.tensor, base.config) for each in made if each.rank),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def losses(
    made: Sequence[Made], saved: Sequence[Saved], dropped: Mapping[str, float], roles: Mapping[str, str]
) -> dict[str, Any]:
    """What the adapter holds and what it does not, for the manifest: errors are relative Frobenius norms.

    ``error`` is over all modules with factors, ``total_error`` over them and what was left out, which counts
    as lost; what is saved whole is in neither.
    """
    norm, lost = hypot(*(each.norm for each in made)), hypot(*(each.lost for each in made))
    left_out: dict[str, list[float]] = {}
    for name, change in dropped.items():
        if change:
            left_out.setdefault(roles[name], []).append(change)
    gone = hypot(*(change for changes in left_out.values() for change in changes))
    whole = hypot(norm, gone)
    return {
        "error": _share(lost, norm),
        "total_error": _share(hypot(lost, gone), whole),
        "modules": {each.path: {"rank": each.rank, "error": _share(each.lost, each.norm)} for each in made},
        "saved": [each.output.name for each in saved],
        "left_out": {
            role: {"tensors": len(changes), "share": _share(hypot(*changes), whole)}
            for role, changes in sorted(left_out.items())
        },
    }


def _share(part: float, whole: float) -> float:
    return float(f"{part / whole:.4g}") if whole else 0.0


def _targets(base: ModelIndex, paths: Iterable[str], called: Mapping[str, str]) -> list[str]:
    """Last components of the modules' names where these mean nothing else, otherwise whole names."""
    ours = set(paths)
    ends = {path.rpartition(".")[2] for path in ours}
    matrices = (
        called.get(name, name).removesuffix(".weight")
        for name, info in base.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
    )
    meant = {path for path in matrices if path.rpartition(".")[2] in ends}
    return sorted(ends if meant == ours else ours)


def _task(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return next((task for end, task in _TASKS if first.endswith(end)), None)
