"""A mixture of experts assembled from dense models: which tensor becomes which expert's. Loads no torch.

The feed-forward layers of each source are copied as one expert (or as a shared one), everything else is what
the recipe's steps make of it, and the routers are made apart (``merge.results.moe``). Names are those that
such models have on the Hub, one tensor an expert; Transformers fuses them while loading.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merge.arch.rope import rope_kind
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.planning.forms.moe_config import (
    DEEPSEEK_CLASSES,
    PLAIN_ROPES,
    for_deepseek,
    for_mixtral,
    for_qwen,
    mixture_config,
    windows,
)
from merge.planning.outputs import Input, Outcome, OutputTensor
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.recipe.results import MoeResult

MADE = "made"
"""The policy of a tensor that is computed from no tensor of an input."""
FLOAT = 4
FORWARD_BYTES = 64 << 20
_FEED_FORWARD = re.compile(
    r"(?P<layer>(?:.*\.)?layers\.(?P<number>\d+))\.mlp\.(?P<part>gate|up|down)_proj\.weight"
)


@dataclass(frozen=True)
class Family:
    """How one kind of mixture names things. ``parts`` are the names of gate, up and down projection.

    ``shared_counts`` says how many shared experts it may have.
    """

    model_type: str
    architecture: str
    sources: frozenset[str]
    experts: str
    parts: tuple[str, str, str]
    router: str
    count: str
    shared: str | None = None
    shared_router: str | None = None
    shared_counts: tuple[int, ...] = (0,)


_PLAIN = ("gate_proj", "up_proj", "down_proj")
FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(
        "mixtral", "MixtralForCausalLM", frozenset({"llama", "mistral"}),
        "block_sparse_moe.experts", ("w1", "w3", "w2"), "block_sparse_moe.gate", "num_local_experts",
    ),
    "qwen2_moe": Family(
        "qwen2_moe", "Qwen2MoeForCausalLM", frozenset({"llama", "mistral", "qwen2"}),
        "mlp.experts", _PLAIN, "mlp.gate", "num_experts", "mlp.shared_expert", "mlp.shared_expert_gate", (1,),
    ),
    "qwen3_moe": Family(
        "qwen3_moe", "Qwen3MoeForCausalLM", frozenset({"qwen3"}),
        "mlp.experts", _PLAIN, "mlp.gate", "num_experts",
    ),
    "deepseek": Family(
        "deepseek", "DeepseekForCausalLM", frozenset({"llama", "mistral"}),
        "mlp.experts", _PLAIN, "mlp.gate", "n_routed_experts", "mlp.shared_experts", None, (0, 1),
    ),
}  # fmt: skip

_BY_KIND = {"qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


@dataclass(frozen=True, slots=True)
class Router:
    """One router: the output that holds its rows, its layer, and the source that each row speaks for."""

    output: OutputTensor
    layer: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one expert's tensor: normal numbers times ``noise`` are added, then it is multiplied by
    ``scale``.
    """

    source: str
    noise: float
    scale: float


@dataclass(frozen=True)
class MoePlan:
    """Experts and shared experts by source id, and the routers; ``guide`` is the model that prompts go
    through. ``changed`` says, by output, what is done to experts that are no plain copies.
    """

    family: Family
    asked: MoeResult
    experts: tuple[str, ...]
    shared: tuple[str, ...]
    routers: tuple[Router, ...]
    guide: str
    changed: Mapping[str, Change] = field(default_factory=dict)

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the result, from that of the dense reference model."""
        family, count = self.family, len(self.experts)
        active = self.asked.experts_per_token
        made = mixture_config(config, family.architecture, family.model_type, (family.count, count), active)
        layers = self.layers
        if family.model_type == "mixtral":
            return for_mixtral(made, config, layers)
        if family.model_type == "deepseek":
            return for_deepseek(made, config, len(self.shared))
        return for_qwen(made, config, family.shared is not None, layers)

    @property
    def layers(self) -> int:
        """How many layers are mixtures: all of them."""
        return len({router.layer for router in self.routers})

    @property
    def code(self) -> Mapping[str, str]:
        """The classes that the result is loaded with where transformers has none."""
        return DEEPSEEK_CLASSES if self.family.model_type == "deepseek" else {}

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people."""
        return {
            "architecture": self.family.architecture,
            "experts": list(self.experts),
            "shared": list(self.shared),
            "gate": self.asked.gate,
            "routers": len(self.routers),
        }

    def tensors_read(self, key: str, model: ModelIndex) -> tuple[str, ...]:
        """The tensors of a model that the routers are made with."""
        if key != self.guide or self.asked.gate.endswith("random"):
            return ()
        wanted = (
            r"embed_tokens\.weight$"
            if self.asked.gate == "cheap_embed"
            else r"embed_tokens\.weight$|layers\."
        )
        return tuple(name for name in model.tensors if re.search(rf"(^|\.)({wanted})", name))

    def peak_bytes(self, models: Mapping[str, ModelIndex]) -> int:
        """Bytes that making the routers takes: one layer of the guide in float32, where prompts go through
        it.
        """
        if not self.asked.gate.startswith("hidden"):
            return 0
        layers: dict[str, int] = {}
        for name, info in models[self.guide].tensors.items():
            found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
            if found:
                layers[found[1]] = layers.get(found[1], 0) + info.numel * FLOAT
        return 2 * max(layers.values(), default=0) + FORWARD_BYTES

    def check_room(self, models: Mapping[str, ModelIndex], budget: int) -> Iterator[Finding]:
        """A layer of the guide that does not fit the budget."""
        needed = self.peak_bytes(models)
        if needed > budget:
            message = (
                f"The memory budget is {budget} bytes, but {needed} are needed to run a layer of "
                f"{models[self.guide].label} on the prompts; gate: cheap_embed needs nearly none."
            )
            yield error("budget_too_small", message, "result", "gate")


def plan_moe(recipe: Recipe, models: Mapping[str, ModelIndex], outcome: Outcome) -> tuple[MoePlan, Outcome]:
    """The outputs of the mixture in place of those of a dense result, with all findings."""
    asked = recipe.result
    assert isinstance(asked, MoeResult)
    family = _family(recipe, asked, models[recipe.sources[0].id])
    experts = tuple(source_id for source_id in recipe.source_ids() if source_id not in asked.shared)
    findings = [*outcome.findings, *_check_shared(recipe, asked, family)]
    outputs: list[OutputTensor] = []
    routers: list[Router] = []
    for output in outcome.tensors:
        found = _FEED_FORWARD.fullmatch(output.name)
        if found is None:
            outputs.append(output)
            continue
        block, part = found["layer"], ("gate", "up", "down").index(found["part"])
        outputs += _experts(output, f"{block}.{family.experts}", family.parts[part], experts)
        if family.shared is not None and asked.shared:
            outputs.append(
                _copy(output, f"{block}.{family.shared}.{family.parts[part]}.weight", asked.shared[0])
            )
        if part == 0:
            routers += _routers(output, block, int(found["number"]), family, experts, asked.shared)
    outputs += [router.output for router in routers]
    if not routers:
        message = "The models have no feed-forward layers of the kind that becomes experts (mlp.gate_proj)."
        findings.append(error("moe_source_unsupported", message, "result", "architecture"))
    findings += _check_sources(recipe, models, family, len({router.layer for router in routers}))
    expected = {output.name for output in outputs if output.policy.startswith("source:")}
    findings += (
        each for output in outputs if output.name in expected for each in _check_copy(output, models)
    )
    guide = "base" if recipe.base is not None else recipe.sources[0].id
    changed = {output.name: change for output in outputs if (change := _change(recipe, output)) is not None}
    plan = MoePlan(family, asked, experts, asked.shared, tuple(routers), guide, changed)
    return plan, Outcome(tuple(outputs), tuple(findings), outcome.layers)


def _experts(output: OutputTensor, prefix: str, part: str, experts: Sequence[str]) -> Iterator[OutputTensor]:
    for number, expert in enumerate(experts):
        yield _copy(output, f"{prefix}.{number}.{part}.weight", expert)


def _copy(output: OutputTensor, name: str, source_id: str) -> OutputTensor:
    inputs = (Input(source_id, output.name),)
    return replace(output, name=name, role="expert", policy=f"source:{source_id}", inputs=inputs)


def _routers(
    output: OutputTensor,
    block: str,
    layer: int,
    family: Family,
    experts: tuple[str, ...],
    shared: tuple[str, ...],
) -> Iterator[Router]:
    rows = [(family.router, experts)]
    if family.shared_router is not None:
        rows.append((family.shared_router, shared))
    for name, sources in rows:
        made = replace(
            output,
            name=f"{block}.{name}.weight",
            role="router",
            policy=MADE,
            shape=(len(sources), output.shape[1]),
            inputs=(),
        )
        yield Router(made, layer, sources)


def _change(recipe: Recipe, output: OutputTensor) -> Change | None:
    """What the recipe asks for an expert's tensor beyond copying it; the scale is for what an expert adds to
    the stream, its last projection.
    """
    if output.role != "expert":
        return None
    (given,) = output.inputs
    source = next(source for source in recipe.sources if source.id == given.model)
    scale = source.residual_scale if ".down_proj." in given.tensor else 1.0
    return Change(source.id, source.noise_scale, scale) if source.noise_scale or scale != 1 else None


def _family(recipe: Recipe, asked: MoeResult, model: ModelIndex) -> Family:
    if asked.architecture != "auto":
        return FAMILIES[asked.architecture]
    kind = str(model.config.get("model_type"))
    plainly = asked.shared and kind != "qwen2" and not any(_prompted(recipe, name) for name in asked.shared)
    if plainly:
        return FAMILIES["deepseek"]
    return FAMILIES["qwen2_moe" if asked.shared else _BY_KIND.get(kind, "mixtral")]


def _prompted(recipe: Recipe, source_id: str) -> bool:
    return any(source.id == source_id and source.prompts for source in recipe.sources)


def _check_shared(recipe: Recipe, asked: MoeResult, family: Family) -> Iterator[Finding]:
    if len(asked.shared) not in family.shared_counts:
        wanted = " or ".join(str(count or "no") for count in family.shared_counts)
        message = (
            f"{family.model_type} has {wanted} shared expert, but result.shared names {len(asked.shared)}."
        )
        yield error("moe_shared_count", message, "result", "shared")
    for position, source in enumerate(recipe.sources):
        routed = source.id not in asked.shared or family.shared_router is not None
        if routed and not asked.gate.endswith("random") and not source.prompts:
            message = f"The gate {asked.gate} needs prompts that tell what {source.id} is for."
            yield error("prompts_missing", message, "sources", position, "prompts")
        elif not routed and (source.prompts or source.negative_prompts):
            message = f"The shared expert of {family.model_type} has no router: its prompts have no effect."
            yield warning("prompts_unused", message, "sources", position, "prompts")
    if family.model_type == "deepseek":
        message = (
            "Transformers has no class for DeepSeek-MoE: the result names the code of its first model on the "
            "Hub, which Transformers 5 cannot run, and the check after a merge runs no such code. vLLM and "
            "SGLang have a class of their own; qwen2_moe with a shared expert loads as it is."
        )
        yield warning("moe_remote_code", message, "result", "architecture")


def _check_sources(
    recipe: Recipe, models: Mapping[str, ModelIndex], family: Family, layers: int
) -> Iterator[Finding]:
    for position, source in enumerate(recipe.sources):
        config = models[source.id].config
        kind = config.get("model_type")
        if kind not in family.sources:
            known = ", ".join(sorted(family.sources))
            message = (
                f"{models[source.id].label} is of type {kind}: {family.model_type} is made from {known}."
            )
            yield error("moe_source_unsupported", message, "sources", position, "model", model=source.id)
        elif config.get("mlp_bias") or (config.get("attention_bias") and kind != "qwen3"):
            message = f"{models[source.id].label} has biases, which {family.model_type} has no place for."
            yield error("moe_source_unsupported", message, "sources", position, "model", model=source.id)
        elif (odd := _odd(config, family.model_type, layers)) is not None:
            message = f"{models[source.id].label} has {odd}, which {family.model_type} cannot have."
            yield error("moe_source_unsupported", message, "sources", position, "model", model=source.id)


def _odd(config: Mapping[str, Any], family: str, layers: int) -> str | None:
    """What a family of mixtures cannot say of its layers."""
    seen = set(windows(config, layers))
    if family == "qwen3_moe" and len(seen) > 1:
        return "a sliding window in some layers and none in others"
    if family != "deepseek":
        return None
    reach = config.get("max_position_embeddings")
    if any(window and not (isinstance(reach, int) and reach <= window) for window in seen):
        return "a sliding window"
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if rope_kind(config) not in PLAIN_ROPES:
        return f"rotary embeddings of the kind {rope_kind(config)}"
    own = config.get("head_dim")
    if own and isinstance(heads, int) and isinstance(width, int) and heads and own != width // heads:
        return f"heads of {own} numbers instead of {width // heads}"
    return None


def _check_copy(output: OutputTensor, models: Mapping[str, ModelIndex]) -> Iterator[Finding]:
    (source,) = output.inputs
    info = models[source.model].tensors.get(source.tensor)
    about = {"model": source.model, "tensor": source.tensor}
    if info is None:
        yield error("missing_tensor", f"{models[source.model].label} lacks {source.tensor}.", **about)
    elif info.shape != output.shape:
        shapes = f"{list(info.shape)} in {models[source.model].label}, but {list(output.shape)} is wanted"
        yield error("shape_mismatch", f"{source.tensor} is {shapes}: all experts must be alike.", **about)
