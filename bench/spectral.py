"""How much longer a method on whole matrices takes than the decompositions in it.

``python -m bench.spectral`` merges one matrix of each shape with every such method, in memory and on one
thread (a run merges several tensors side by side), and prints seconds of CPU, those spent inside torch's
``eigh``, ``svd`` and ``qr``, and the ratio to two yardsticks: these calls, and thin SVDs by torch of the same
sources, which is what the published code starts with.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.chain import Block, Bound, Chain
from merge.contract.groups import Site
from merge.contract.method import Method, registered
from merge.methods import load

SHAPES = "2048x2048,2048x5632"
DECOMPOSING = ("eigh", "svd", "qr")
ALONE: dict[str, dict[str, Any]] = {"opcm": {"scope": "tensor"}, "doge": {"scope": "tensor", "density": 1.0}}
"""Settings under which one tensor needs no pass over the others."""


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
    parser.add_argument("--svd", action="store_true", help="also time thin SVDs of the sources")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        base, sources = family(rows, columns, options.sources)
        yardstick = seconds_of(partial(svds, base, sources)) if options.svd else float("nan")
        print(f"{shape}, {options.sources} sources; thin SVDs of all {yardstick:.1f} s")
        for name in options.methods.split(","):
            with counted() as spent:
                whole = seconds_of(partial(merge, known[name], base, sources))
            inside = sum(spent.values())
            ratios = f"{whole / inside:5.2f} {whole / yardstick:5.2f}"
            print(f"{name:10} {whole:7.1f} s  {inside:7.1f} s inside  {ratios}", flush=True)


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


def svds(base: Tensor, sources: Sequence[Tensor]) -> None:
    """The thin SVD of every task vector, in float32."""
    for source in sources:
        torch.linalg.svd(source - base, full_matrices=False)


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
