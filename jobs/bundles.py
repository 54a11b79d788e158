"""How orders about a bundle are planned: a member made a model again, and a router."""

from collections.abc import Iterator
from math import prod
from typing import Any

from jobs.asking import Asking, PlannedModels, Ready, looked_at
from jobs.errors import RequestInvalid
from jobs.evaluating import FLOAT_BYTES
from jobs.pinned import PinnedInput
from jobs.places import JOB_NAME
from jobs.request import JobOrder, MaterialiseRequest, RouterRequest
from jobs.wishes import Wish
from merge.bundle.gate import LAYER, gate_files, gate_weight
from merge.bundle.recipe import base_of, materialise_recipe
from merge.checkpoint.bundle import ADAPTERS, BundleIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, GateUnsupported, PlanRefused
from merge.file_errors import BundleBaseChanged, FileRefused
from merge.planning.forms.moe import FORWARD_BYTES
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER

GATE_COPIES = 8 * FLOAT_BYTES
"""Bytes for one entry of a weight that is read of every member and decomposed: four numbers of float64."""


def recipe_of_member(order: MaterialiseRequest, asking: Asking) -> Recipe:
    """The merge that gives the member, with the bundle pinned. Raises ``PlanRefused``, ``HubError``."""
    bundle, index = asking.look_at_bundle(order.bundle)
    name, inside = bundle.pinned_name, _separator(bundle)
    try:
        return materialise_recipe(
            index, name, order.wanted, base=order.base, dtype=order.dtype, inside=inside
        )
    except FileRefused as error:
        at = "/base" if isinstance(error, BundleBaseChanged) else "/member" if order.member else "/members"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None


def _separator(bundle: PinnedInput) -> str:
    """What stands between the name of a bundle and that of a folder in it."""
    name = bundle.pinned_name
    whole = bundle.snapshot is not None or JOB_NAME.fullmatch(name) is not None
    return ":" if whole and ":" not in name else "/"


def plan_router(order: JobOrder, asking: Asking) -> Ready:
    """Examples are told apart by what the base holds of them, so that it alone is read; without examples, one
    weight of it and of every member is.
    """
    assert isinstance(order, RouterRequest)
    bundle, index = asking.look_at_bundle(order.bundle)
    try:
        for each in order.examples or ():
            index.check_member(each.member)
        base = base_of(index, bundle.pinned_name, order.base, _separator(bundle))
    except FileRefused as error:
        at = "/base" if isinstance(error, BundleBaseChanged) else "/examples"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None
    if order.examples is not None:
        shown = {each.member for each in order.examples}
        if absent := [member for member in index.members if member not in shown]:
            raise RequestInvalid(
                f"there is no example for {', '.join(absent)}; give some for every member", "/examples"
            )
    inputs, models = asking.look([Wish("base", base, "/base")])
    model = models["base"]
    if index.base.inside is None and model.digest != index.base.structure:
        said = f"{model.label} is not the model that the bundle was made over."
        raise PlanRefused((Finding("error", BundleBaseChanged.code, said, "/base"),))
    subject = {"bundle": bundle.pinned_name, "base": inputs[0].pinned_name, "members": list(index.members)}
    if order.examples is None:
        return _plan_gate(order, asking, (bundle, index), base, subject)
    if not layer_bytes(model):
        said = f"{model.label} has no numbered layers to route by."
        raise PlanRefused((Finding("error", GateUnsupported.code, said, "/base"),))
    peak = FORWARD_BYTES + max(layer_bytes(model).values())
    return looked_at(inputs, models, "cpu", peak, subject | {"examples": len(order.examples)})


def _plan_gate(
    order: RouterRequest,
    asking: Asking,
    bundle: tuple[PinnedInput, BundleIndex],
    base: str,
    subject: dict[str, Any],
) -> PlannedModels:
    """Every member is looked at as an adapter over the base; of each, the files with one weight are read."""
    wishes = [Wish("base", base, "/base"), *_members(*bundle, base)]
    inputs, models = asking.look(wishes)
    model = models["base"]
    try:
        layer, name = gate_weight(model, order.layer)
    except GateUnsupported as error:
        at = "/base" if order.layer is None else "/layer"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None
    read = tuple(each for each in inputs if each.role == "base" or each.role.endswith(ADAPTER))
    peak = GATE_COPIES * model.tensors[name].numel * (1 + len(bundle[1].members))
    files = gate_files(model, {key: each for key, each in models.items() if key != "base"}, name)
    return looked_at(read, models, "cpu", peak, subject | {"layer": layer}, files)


def _members(bundle: PinnedInput, index: BundleIndex, base: str) -> Iterator[Wish]:
    """Every member's base, and what is added to it."""
    for member in index.members:
        yield Wish(member, base, "/base")
        if index.kind == "twin":
            inside = f"{bundle.pinned_name}{_separator(bundle)}{ADAPTERS}/{member}"
            yield Wish(member + ADAPTER, inside, "/bundle")
        else:
            yield Wish(member + ADAPTER, bundle.pinned_name, "/bundle", member)


def layer_bytes(model: ModelIndex) -> dict[str, int]:
    """What every numbered layer takes in float32, by number."""
    found: dict[str, int] = {}
    for name, info in model.tensors.items():
        if (layer := LAYER.search(name)) is not None:
            found[layer[1]] = found.get(layer[1], 0) + FLOAT_BYTES * prod(info.shape)
    return found
