"""The catalogue of merge methods."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from api.deps import AnyCaller, Id
from api.errors import Problem
from api.schemas.common import problems
from api.schemas.methods import MethodFullOut, MethodOut, MethodsOut
from merge.catalog import MethodEntry, nearest
from merge.evidence import evidence_line
from merge.guide import advice_on
from merge.recipe.presets import listing

router = APIRouter(prefix="/v1/methods", tags=["methods"], responses=problems())


@router.get("")
def list_methods(_: AnyCaller) -> MethodsOut:
    """Every method and every preset, by name."""
    return MethodsOut(data=[MethodOut(**_told(each)) for each in listing().values()])


@router.get("/{name}", responses=problems(404))
def get_method(name: Id, _: AnyCaller) -> MethodFullOut:
    """One method or preset with the JSON schema of its settings."""
    known = listing()
    entry = known.get(name)
    if entry is None:
        raise Problem("not_found", f"there is no method {name!r}{nearest(name, known)}")
    return MethodFullOut(**{**_told(entry), "settings": entry.schema})


def _told(entry: MethodEntry) -> dict[str, Any]:
    return {**entry.as_dict(), **asdict(advice_on(entry)), "evidence": evidence_line(entry.name)}
