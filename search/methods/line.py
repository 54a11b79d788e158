"""One number: an even sweep, then parabolas and halved steps around the best value seen."""

from search.settings import LineSettings
from search.space import Space
from search.trial import Ask, Found, Search, Task

SAME = 1e-9


def search(space: Space, p: LineSettings, task: Task) -> Search:
    """The sweep shows the response curve; each round then measures half-way to both neighbours of the best
    value, and the top of the parabola through the three (exact for a quadratic).
    """
    seen: dict[float, float] = {}
    wanted = [at / (p.sweep - 1) for at in range(p.sweep)]
    left = task.evaluations
    for _ in range(p.rounds + 1):
        wanted = wanted[:left]
        if not wanted:
            break
        told = yield [Ask(space.point([unit])) for unit in wanted]
        seen |= {unit: task.value(each) for unit, each in zip(wanted, told, strict=True)}
        left -= len(wanted)
        wanted = closer(seen)
    return Found()


def closer(seen: dict[float, float]) -> list[float]:
    """Where to look next, given values by place; nothing where all is known."""
    places = sorted(seen)
    best = max(places, key=lambda unit: seen[unit])
    at = places.index(best)
    around = places[max(0, at - 1) : at + 2]
    found = [(best + each) / 2 for each in around if each != best]
    if len(around) == 3:
        top = vertex([(each, seen[each]) for each in around])
        found += [] if top is None else [top]
    return [each for each in dict.fromkeys(found) if min(abs(each - old) for old in places) > SAME]


def vertex(points: list[tuple[float, float]]) -> float | None:
    """Where the parabola through three points is highest, if it has a top between them."""
    (a, fa), (b, fb), (c, fc) = points
    first, second = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if not first - second:
        return None
    top = b - 0.5 * ((b - a) * first - (b - c) * second) / (first - second)
    return top if a < top < c else None
