"""The recipe that gives a bundle's member back as an ordinary checkpoint: a merge of one source. Loads no
torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.checkpoint.bundle import ADAPTERS, MANIFEST, BundleIndex
from merge.checkpoint.index import index_adapter_folder
from merge.file_errors import BundleBaseChanged, BundleRefused, MemberUnknown, ModelNotFound
from merge.recipe.recipe import Recipe, recipe_from


def materialise_recipe(
    index: BundleIndex,
    bundle: str,
    members: str | Mapping[str, float],
    *,
    base: str | None = None,
    dtype: str | None = None,
    inside: str = "/",
) -> Recipe:
    """``members`` is one member, or several with weights: the base plus the weighted sum of their changes.

    ``bundle`` is its name, ``inside`` what stands between that and the name of a folder in it, and ``base``
    the name of the base where the one that the bundle names is not to be used. Raises ``MemberUnknown``.
    """
    weights = {members: 1.0} if isinstance(members, str) else dict(members)
    for name in weights:
        index.check_member(name)
    model = base_of(index, bundle, base, inside)
    sources = [_source(index, bundle, name, model, weight, inside) for name, weight in weights.items()]
    alone = list(weights.values()) == [1.0]
    return recipe_from(
        {
            "base": model,
            "sources": sources,
            "steps": ["passthrough" if alone else "task_arithmetic"],
            "dtype": {"output": dtype},
            **({"reference": sources[0]["id"]} if alone else {}),
        }
    )


def member_of_folder(bundle: Path, member: str, base: Path | None, dtype: str | None) -> Recipe:
    """The recipe of a member of a bundle's folder; ``member`` may be written ``math=0.7,code=0.3``.

    A base that is named relative to where the bundle was made is looked for from here and beside the bundle.
    Raises ``MemberUnknown``, ``ModelNotFound`` and others of ``FileRefused``.
    """
    index = bundle_of_folder(bundle)
    inside = index.base.inside
    at = None if inside is not None and base is None else str(base_folder(index, bundle, base))
    return materialise_recipe(index, str(bundle), weighted(member), base=at, dtype=dtype)


def bundle_of_folder(folder: Path) -> BundleIndex:
    """The bundle in a folder. Raises ``BundleRefused`` where something else lies there."""
    is_other = folder.is_dir() and not (folder / MANIFEST).exists()
    index = None if is_other else index_adapter_folder(folder)
    if not isinstance(index, BundleIndex):
        raise BundleRefused(f"{folder} is no bundle: it has no {MANIFEST}.")
    return index


def base_folder(index: BundleIndex, bundle: Path, base: Path | None) -> Path:
    """Where the base of a bundle's folder lies: inside it, where the caller says, or where it was."""
    if index.base.inside is not None and base is None:
        return bundle / index.base.inside
    named = index.base.model
    places = (Path(named), bundle.parent / named) if base is None else (base,)
    found = next((at for at in places if at.is_dir()), None)
    if found is None:
        tried = " or ".join(dict.fromkeys(map(str, places)))
        raise ModelNotFound(
            f"{bundle} was made over {named}, and there is no folder {tried}; say with --base where it lies."
        )
    return found


def weighted(text: str) -> str | dict[str, float]:
    """A member's name, or several with their weights, from ``math`` or ``math=0.7,code=0.3``."""
    if "=" not in text:
        return text
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (each.strip() for each in part.partition("="))
        if name in found:
            raise MemberUnknown(f"{name!r} has two weights; write every member once.")
        try:
            found[name] = float(weight)
        except ValueError:
            raise MemberUnknown(f"{part!r} is no member with a weight; write math=0.7,code=0.3.") from None
    return found


def base_of(index: BundleIndex, bundle: str, base: str | None, inside: str = "/") -> str:
    """The name of the model that the members are changes of."""
    if index.base.inside is None:
        return index.base.model if base is None else base
    if base is not None:
        raise BundleBaseChanged(
            f"{index.label} holds its own base ({index.base.inside}): leave the other one out."
        )
    return f"{bundle}{inside}{index.base.inside}"


def _source(
    index: BundleIndex, bundle: str, member: str, model: str, weight: float, inside: str
) -> dict[str, Any]:
    source = {"id": member, "model": model, "weight": weight}
    if index.kind == "twin":
        return source | {"adapter": f"{bundle}{inside}{ADAPTERS}/{member}"}
    return source | {"adapter": bundle, "member": member}
