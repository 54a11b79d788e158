"""How much longer a method on whole matrices takes than the decompositions in it.

``python -m bench.spectral`` merges one matrix of each shape with every such method, in memory and on one
thread (a run merges several tensors side by side), and prints seconds of CPU and the ratio to two yardsticks.
*made*: the calls of torch's ``eigh``, ``svd``, ``qr`` and ``cholesky`` in it, which an ``eigh`` of a short
side, or equations solved without one, make cheap, and the ratio large. *asked*: the decompositions that the
method's equations name, as torch does them alone: thin SVDs in float32, and ``eigh`` in float64 of what is a
sum of squares, of matrices with the shapes that they are of (``ASKED``).
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.contract.groups import Site
from merge.contract.method import Method, registered
from merge.methods import load
from merge.running.chain import Block, Bound, Chain

SHAPES = "2048x2048,2048x5632"
DECOMPOSING = ("eigh", "svd", "qr", "cholesky_ex")
ALONE: dict[str, dict[str, Any]] = {"opcm": {"scope": "tensor"}, "doge": {"scope": "tensor", "density": 1.0}}
"""Settings under which one tensor needs no pass over the others."""
Asked = tuple[int, str, int, int]
"""How many decompositions of a kind, of how many rows and columns."""


def _kept(m: int, n: int, sources: int) -> int:
    """Directions that are kept of all sources together."""
    return min(m, n) // sources * sources


def _apart(m: int, n: int, sources: int) -> list[Asked]:
    """What makes the parts of all sources orthogonal: each side stacked."""
    side = _kept(m, n, sources)
    return [(1, "svd", m, side), (1, "svd", n, side)]


ASKED: dict[str, Callable[[int, int, int], list[Asked]]] = {
    "tsv_m": lambda m, n, count: [(count, "svd", m, n), *_apart(m, n, count)],
    "iso_c": lambda m, n, count: [(1, "svd", m, n)],  # noqa: ARG005
    "iso_cts": lambda m, n, count: [
        (1 + count, "svd", m, n),
        (1, "svd", m, min(m, n)),
        (1, "svd", n, min(m, n)),
    ],
    "wudi": lambda m, n, count: [(1, "eigh", min(n, m * count), min(n, m * count))],
    "optmerge": lambda m, n, count: [
        (2 * count, "svd", m, n),
        (1, "eigh", _kept(m, n, count), _kept(m, n, count)),
    ],
    "opcm": lambda m, n, count: [(count - 1, "svd", m, n)],
    "knots": lambda m, n, count: [(1, "svd", m, n * count)],
    "doge": lambda m, n, count: [(count, "svd", m, n), (1, "svd", m, _kept(m, n, count))],
}
"""Of one (m, n) matrix and so many sources, by the equations at the head of each method's file."""


def main() -> None:
    """Parses arguments and prints the table."""
    load()
    known = {name: method for name, method in registered().items() if method.family == "spectral"}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(known), help="comma separated")
    parser.add_argument("--shapes", default=SHAPES, help="of the matrices, outputs times inputs")
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument(
        "--asked", action="store_true", help="also time what the equations ask for (longer than the methods)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        base, sources = family(rows, columns, options.sources)
        print(f"{shape}, {options.sources} sources")
        print(f"{'':10} {'seconds':>8} {'made':>8} {'asked':>8}   ratio to each")
        alone = Alone()
        for name in options.methods.split(","):
            with counted() as spent:
                whole = seconds_of(partial(merge, known[name], base, sources))
            wanted = ASKED[name](rows, columns, options.sources) if options.asked else []
            yardsticks = sum(spent.values()), sum(alone.seconds(each) for each in wanted)
            ratios = " ".join(f"{whole / each:8.2f}" if each else f"{'-':>8}" for each in yardsticks)
            numbers = " ".join(f"{each:8.1f}" for each in (whole, *yardsticks))
            print(f"{name:10} {numbers} {ratios}", flush=True)


class Alone:
    """Seconds of CPU of decompositions by themselves, each shape timed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], float] = {}

    def seconds(self, asked: Asked) -> float:
        """Of so many of them. A matrix and its transpose take the same."""
        count, kind, *sides = asked
        rows, columns = sorted(sides)
        key = (kind, rows, columns)
        if key not in self._known:
            matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
            if kind == "eigh":
                squares = matrix.double() @ matrix.double().T
                self._known[key] = seconds_of(partial(torch.linalg.eigh, squares))
            else:
                self._known[key] = seconds_of(partial(torch.linalg.svd, matrix, full_matrices=False))
        return count * self._known[key]


def family(rows: int, columns: int, sources: int) -> tuple[Tensor, list[Tensor]]:
    """A base, and sources with noise that falls off like that of tuned models, some of it shared."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, columns, generator=generator) * 0.02
    shared, *own = (torch.randn(rows, columns, generator=generator) for _ in range(sources + 1))
    falling = torch.linspace(3, 0.1, columns)
    return base, [base + 1e-3 * (shared + each) * falling for each in own]


def merge(method: Method, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """One tensor, as the engine calls the method."""
    names = tuple(f"s{place}" for place in range(len(sources)))
    site = Site("w", "linear", tuple(base.shape), names)
    params = method.settings(ALONE.get(method.name, {}), len(sources))
    bound = Bound(method, (params,), method.name)
    chain = Chain(site, (bound,), (1.0,) * len(sources), 0)
    return chain.compute(Block(0, tuple(base.shape), base, list(sources)))


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Seconds inside the decompositions, by name."""
    plain = {name: getattr(torch.linalg, name) for name in DECOMPOSING}
    spent = dict.fromkeys(DECOMPOSING, 0.0)

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            begin = time.process_time()
            found = plain[name](*args, **more)
            spent[name] += time.process_time() - begin
            return found

        return call

    for name in DECOMPOSING:
        setattr(torch.linalg, name, timed(name))
    try:
        yield spent
    finally:
        for name, function in plain.items():
            setattr(torch.linalg, name, function)


def seconds_of(work: Callable[[], object]) -> float:
    """Of CPU, on one thread: what else the machine does matters less."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
