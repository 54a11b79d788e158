"""What a search may be led by: metrics of the sets that its candidates are scored on."""

from collections.abc import Mapping, Sequence

from scoring.harness.metrics import KNOWN, OF_ITEMS, bare
from search.errors import WrongAt
from search.order import Objective

Sets = Mapping[str, tuple[str, Sequence[str]]]
"""The kind and the metrics of each evaluation set, by name; no metrics where only the run will tell them."""
HARNESS = "lm_eval"


def check_objectives(
    objectives: Sequence[Objective], sets: Sets, members: Sequence[str] | None = None
) -> None:
    """Raises ``WrongAt`` where an objective names none of the ``sets``, what its set does not measure, or
    none of a bundle's ``members`` (``None``: it is no bundle).
    """
    for place, objective in enumerate(objectives):
        pointer = f"/search/objectives/{place}"
        if objective.set not in sets:
            said = f"an objective names the set {objective.set!r}; evaluate has {', '.join(sets)}"
            raise WrongAt(said, f"{pointer}/set")
        kind, known = sets[objective.set]
        if not known:
            _check_untold(objective, pointer)
        elif objective.metric not in (None, *known):
            raise WrongAt(
                f"the {kind} set {objective.set!r} does not measure {objective.metric!r}, "
                f"but {', '.join(known)}",
                f"{pointer}/metric",
            )
        _check_member(objective.member, members, f"{pointer}/member")


def _check_untold(objective: Objective, pointer: str) -> None:
    """A built-in task of lm_eval says what it measures only when it runs: then the order must say more."""
    if objective.metric is None:
        raise WrongAt(
            f"the set {objective.set!r} is a built-in task of lm_eval, which says what it measures only when "
            "it has run: name the metric here, such as acc or exact_match",
            f"{pointer}/metric",
        )
    if objective.goal is None and bare(objective.metric) not in KNOWN:
        raise WrongAt(
            f"whether more or less of {objective.metric!r} is better is not known here: add goal: max, or "
            f"goal: min (known are {', '.join(KNOWN)})",
            f"{pointer}/goal",
        )


def check_items(method: str, first: Objective, sets: Sets) -> None:
    """Raises ``WrongAt`` where a method looks at the score of every example, and lm_eval gives none by the
    metric of the first objective.
    """
    kind, known = sets[first.set]
    metric = first.metric or known[0]
    if method == "m2n2" and kind == HARNESS and bare(metric) not in OF_ITEMS:
        raise WrongAt(
            f"m2n2 needs the score of every example, and lm_eval has none by {metric!r}: take "
            f"{', '.join(sorted(OF_ITEMS))}, or another method",
            "/search/objectives/0/metric",
        )


def _check_member(member: str | None, members: Sequence[str] | None, pointer: str) -> None:
    if member is None or member in (members or ()):
        return
    if members is None:
        raise WrongAt(
            "only a bundle has members: leave member out, or ask for result: {form: bundle}", pointer
        )
    raise WrongAt(f"the bundle has no member {member!r}; it has {', '.join(members)}", pointer)
