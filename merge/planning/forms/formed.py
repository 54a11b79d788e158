"""The outputs of a recipe in the form that is asked for, and the files they lie in. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout, plan_shards
from merge.planning.forms.adapter import AdapterPlan, plan_adapter
from merge.planning.forms.bundle import BundlePlan, plan_bundle
from merge.planning.forms.moe import MoePlan, plan_moe
from merge.planning.outputs import Outcome
from merge.recipe.recipe import Recipe


@dataclass(frozen=True)
class Formed:
    """The outputs, with the plan of their form where it has one of its own."""

    outcome: Outcome
    adapter: AdapterPlan | None = None
    moe: MoePlan | None = None
    bundle: BundlePlan | None = None

    @property
    def held_bytes(self) -> int:
        """Memory a thread beside the merge's own, but for an adapter's, which depends on the blocks."""
        return self.bundle.held_bytes if self.bundle is not None else 0

    def shards(self, recipe: Recipe, reference: ModelIndex) -> tuple[ShardLayout, ...]:
        """The output files; those of an adapter are known when it is made."""
        if self.bundle is not None and self.bundle.kept:
            return self.bundle.layouts
        written = [(o.name, o.dtype, o.shape) for o in self.outcome.tensors]
        if not written or self.adapter is not None:
            return ()
        return plan_shards(written, recipe.shard_bytes, reference.stem)


def form(recipe: Recipe, models: Mapping[str, ModelIndex], outcome: Outcome) -> Formed:
    """What becomes of the outputs of a checkpoint."""
    if recipe.result.form == "adapter":
        adapter, findings = plan_adapter(recipe, models, outcome)
        return Formed(Outcome(adapter.outputs, findings), adapter=adapter)
    if recipe.result.form == "moe":
        moe, outcome = plan_moe(recipe, models, outcome)
        return Formed(outcome, moe=moe)
    if recipe.result.form == "bundle":
        bundle, findings = plan_bundle(recipe, models, outcome)
        tensors = outcome.tensors if bundle.kind == "twin" else bundle.outputs
        return Formed(replace(outcome, tensors=tensors, findings=findings), bundle=bundle)
    return Formed(outcome)
