"""What a search may be led by: metrics of the sets that its candidates are scored on."""

from collections.abc import Mapping, Sequence

from search.errors import WrongAt
from search.order import Objective


def check_objectives(
    objectives: Sequence[Objective],
    sets: Mapping[str, tuple[str, Sequence[str]]],
    members: Sequence[str] | None = None,
) -> None:
    """Raises ``WrongAt`` where an objective names none of the ``sets`` (the kind and metrics of each, by
    name), what its set does not measure, or none of a bundle's ``members`` (``None``: it is no bundle).
    """
    for place, objective in enumerate(objectives):
        pointer = f"/search/objectives/{place}"
        if objective.set not in sets:
            said = f"an objective names the set {objective.set!r}; evaluate has {', '.join(sets)}"
            raise WrongAt(said, f"{pointer}/set")
        kind, known = sets[objective.set]
        if not known:
            raise WrongAt(
                f"the set {objective.set!r} is of lm_eval, which says what it measures only when it has run: "
                "take another kind of set",
                f"{pointer}/set",
            )
        if objective.metric not in (None, *known):
            raise WrongAt(
                f"the {kind} set {objective.set!r} does not measure {objective.metric!r}, "
                f"but {', '.join(known)}",
                f"{pointer}/metric",
            )
        _check_member(objective.member, members, f"{pointer}/member")


def _check_member(member: str | None, members: Sequence[str] | None, pointer: str) -> None:
    if member is None or member in (members or ()):
        return
    if members is None:
        raise WrongAt(
            "only a bundle has members: leave member out, or ask for result: {form: bundle}", pointer
        )
    raise WrongAt(f"the bundle has no member {member!r}; it has {', '.join(members)}", pointer)
