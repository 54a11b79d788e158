"""The words of PEFT's adapter folder: tensor names, ``adapter_config.json``, and what an adapter loses."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Any

from merge.arch.roles import is_conv1d, role_of
from merge.checkpoint.adapter import PREFIX
from merge.checkpoint.index import ModelIndex
from merge.planning.forms.adapter import LoraModule, module_of
from merge.planning.outputs import OutputTensor
from merge.results.called import Names, pieces_of

_TASKS = (("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"))
"""Not those of classifiers and the like: for these PEFT wants the head whole, whether or not it changed. Nor
that of encoders with decoders: with it PEFT gives every model token ids, also one that listens (Whisper).
"""
_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Modules that PEFT takes for experts and their router, wherever in a mixture they are."""


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

    @property
    def is_expert(self) -> bool:
        """Whether it is one expert's."""
        return self.module.output.role == "expert"


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


def unchanged(module: LoraModule) -> Made:
    """A module whose factors are zeros, and lie in no file."""
    rows, columns = module.output.shape
    return Made(module, "", factor_names(module.kind, module.path), (rows, columns), 0, 0.0, 0.0)


def evened(made: Sequence[Made]) -> list[Made]:
    """The modules with one rank for all experts, the largest: PEFT stacks these where Transformers does."""
    rank = max((each.rank for each in made if each.is_expert), default=0)
    return [replace(each, rank=rank) if each.is_expert else each for each in made]


def loadable(made: Sequence[Made]) -> list[Made]:
    """The same with a factor of zeros where there is none: PEFT loads no adapter of whole tensors alone."""
    first, *rest = made
    return [replace(first, rank=max(first.rank, int(not any(each.rank for each in made)))), *rest]


def adapter_config(
    base: ModelIndex, made: Sequence[Made], saved: Sequence[Saved], called: Names
) -> dict[str, Any]:
    """``adapter_config.json``, by the names that Transformers has for what is ``called`` otherwise in the
    base's files. Every module's alpha is its rank, so that its scale is 1.
    """

    def paths_of(name: str) -> list[str]:
        return [module_of(piece.name) for piece in pieces_of(called, name)]

    bare = _by_parameter(base, made)
    parameters = sorted(f"{path}.weight" for name in bare for path in paths_of(name))
    used = {path + (".weight" if each.tensor in bare else ""): each.rank
            for each in made if each.rank for path in paths_of(each.tensor)}  # fmt: skip
    ranks = Counter(each.rank for each in made if each.is_expert and each.rank) or Counter(used.values())
    rank = max(ranks, key=lambda value: (ranks[value], value)) if ranks else 1
    odd = [f".{path}" for path, own in used.items() if own != rank]
    others = {  # a pattern is taken for every module whose name ends so: the longest come first
        path: used[path]
        for path in sorted(used, key=lambda path: (-len(path), path))
        if any(f".{path}".endswith(end) for end in odd)
    }
    label, _, revision = base.label.partition("@")
    whole = _outermost(
        {path for each in saved if not each.name.endswith(".bias") for path in paths_of(each.output.name)}
    )
    biases = [each for each in saved if not _is_in(paths_of(each.output.name)[0], whole)]
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
        "target_modules": _targets(base, used.keys() - set(parameters), called),
        **({"target_parameters": parameters} if parameters else {}),
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


def _by_parameter(base: ModelIndex, made: Sequence[Made]) -> frozenset[str]:
    """Weights of modules that PEFT has to be told of as parameters: routers, which are no linear layers in
    Transformers 5, and in a mixture what goes by a name that its experts have.
    """
    mixture = any(role_of(name, info.shape, base.config) == "expert" for name, info in base.tensors.items())
    return frozenset(
        each.tensor
        for each in made
        if each.rank and not each.is_expert
        if each.module.output.role == "router"
        or (mixture and module_of(each.tensor).rpartition(".")[2] in _OF_EXPERTS)
    )


def _share(part: float, whole: float) -> float:
    return float(f"{part / whole:.4g}") if whole else 0.0


def _outermost(modules: Iterable[str]) -> list[str]:
    """The modules without those in others, which PEFT saves with these."""
    found: list[str] = []
    for module in sorted(modules, key=lambda path: (path.count("."), path)):
        found += [] if _is_in(module, found) else [module]
    return sorted(found)


def _is_in(module: str, modules: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{outer}.") for outer in modules)


def _targets(base: ModelIndex, paths: Iterable[str], called: Names) -> list[str]:
    """Last components of the modules' names where these mean nothing else, otherwise whole names."""
    ours = set(paths)
    ends = {path.rpartition(".")[2] for path in ours}
    parts = (piece.name.split(".")[:-1] for name in base.tensors for piece in pieces_of(called, name))
    modules = {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)}
    meant = {path for path in modules if path.rpartition(".")[2] in ends}
    return sorted(ends if meant == ours else ours)


def _task(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return next((task for end, task in _TASKS if first.endswith(end)), None)
