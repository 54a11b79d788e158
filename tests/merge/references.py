"""One digest for the output of every method and of chains; ``make references`` writes them anew.

A change of any byte that a method makes shows as a change of ``digests.json``, to be explained by a higher
version of the method or of the engine. The models are made of keyed whole numbers alone (``exact.py``).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge import exact, informed
from tests.merge.every import METHODS, ON_FACTORS, count_of, moved, steps_of
from tests.merge.results import adapters

DIGESTS = Path(__file__).with_name("digests.json")
BUDGET = 96 << 20
ROUNDING = "MKL_CBWR"
"""Says to which processors' linear algebra the results of this one shall be equal; read when it begins."""
DARE_L1 = {"method": "dare", "density": 0.5, "rescale": "l1"}
CHAINS: Mapping[str, tuple[str, list[dict[str, Any]]]] = {
    "linear": ("abc", [{"method": "linear"}]),
    "slerp": ("ab", [{"method": "slerp", "t": [0.2, 0.8]}]),
    "task_arithmetic": ("abc", [{"method": "task_arithmetic", "scale": 0.4}]),
    "ties": ("abc", [{"method": "ties", "density": 0.3}]),
    "ties_global": ("abc", [{"method": "ties", "density": 0.3, "scope": "global"}]),
    "dare_task_arithmetic": ("abc", [{"method": "dare", "density": 0.3}, {"method": "task_arithmetic"}]),
    "dare_ties": ("abc", [DARE_L1, {"method": "ties", "density": 0.6, "scope": "global"}]),
    "passthrough": ("a", [{"method": "passthrough", "scale": 0.5}]),
    "della_ties": (
        "abc",
        [{"method": "della", "density": 0.5, "rescale": "l1"}, {"method": "ties", "density": 1.0}],
    ),
    "breadcrumbs_ties": (
        "abc",
        [{"method": "breadcrumbs", "density": 0.7}, {"method": "ties", "density": 1.0}],
    ),
    "trim_dare_sce": (
        "abc",
        [
            {"method": "trim", "density": 0.5, "scope": "global"},
            {"method": "dare", "density": 0.5, "rescale": "l2"},
            {"method": "sce", "density": 0.5},
        ],
    ),
}
"""Chains by name: the sources and the steps."""


def chains() -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """The chains above, and every method of the catalogue at its defaults and with every setting moved."""
    found = dict(CHAINS)
    for method in METHODS:
        for kind, values in (("defaults", {}), ("moved", moved(method))):
            steps = [{"method": name, **settings} for name, settings in steps_of(method, dict(values))]
            found[f"{method.name}.{kind}"] = ("abc"[: count_of(method)], steps)
    return found


RANKS: Mapping[str, int] = {"one": 4, "two": 2, "three": 3}


def on_factors() -> dict[str, dict[str, Any]]:
    """Steps on the factors of adapters, by name: every such method as ``chains`` has the others."""
    kinds = {"defaults": lambda _: {}, "moved": moved}
    return {
        f"{method.name}.{kind}": {"method": method.name, **values(method)}
        for method in ON_FACTORS
        for kind, values in kinds.items()
    }


def with_adapters(root: Path) -> Path:
    """A folder with a base and adapters over it."""
    exact.write(root / "base", "base", dtype=torch.float32, shards=2)
    for name, rank in RANKS.items():
        exact.adapter(root / name, name, rank)
    return root


def merged_factors(root: Path, step: Mapping[str, Any], out: Path, **more: Any) -> Path:
    """Merges the adapters with weights 1, 1/2 and 2; ``threads`` and ``should_stop`` are for the run, what
    else is given is for the recipe.
    """
    sources = [{"id": n, "adapter": n, "weight": w} for n, w in zip(RANKS, (1.0, 0.5, 2.0), strict=True)]
    options = {name: more.pop(name) for name in ("threads", "should_stop") if name in more}
    document = {"base": "base", "sources": sources, "steps": [dict(step)], "shard_bytes": 150_000} | more
    adapters.made(root, document, str(out), **options)
    return out


def planned(folders: Mapping[str, Path], used: str, steps: list[dict[str, Any]], **more: Any) -> Plan:
    """A plan with weights 1, 1/2 and 2."""
    document: dict[str, Any] = {
        "base": "base",
        "sources": [
            {"id": name, "model": name, "weight": weight}
            for name, weight in zip(used, (1.0, 0.5, 2.0), strict=False)
        ],
        "steps": steps,
        "shard_bytes": 150_000,
        "seed": 7,
    }
    return make_plan(
        recipe_from(document | more), exact.indices(folders), budget=BUDGET, measured=informed.of_all(folders)
    )


def tensors_digest(folder: Path) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of all tensors, whatever files they lie in."""
    digest = hashlib.sha256()
    tensors = {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def every_processor() -> Iterator[Executor]:
    """Does work in a process of its own, in which linear algebra rounds alike on every processor."""
    before = os.environ.get(ROUNDING)
    os.environ[ROUNDING] = "COMPATIBLE"
    try:
        elsewhere = ProcessPoolExecutor(1, get_context("spawn"))
        elsewhere.submit(int).result()  # it has begun, with this in its environment
    finally:
        if before is None:
            del os.environ[ROUNDING]
        else:
            os.environ[ROUNDING] = before
    with elsewhere:
        yield elsewhere


def digest_of(
    chain: str, folders: Mapping[str, Path], out: Path, threads: int = 1, budget: int = BUDGET, **more: Any
) -> str:
    """Of what a chain makes in the folder ``out``."""
    plan = planned(folders, *chains()[chain], **more)
    known = informed.folders_for(plan, folders["base"].parent)
    run(plan, folders, out, budget_bytes=budget, threads=threads, statistics=known)
    return tensors_digest(out)


def factors_digest(step: str, root: Path, out: Path, **more: Any) -> str:
    """Of what a step on factors makes there."""
    return tensors_digest(merged_factors(root, on_factors()[step], out, **more))


def main() -> None:
    """Runs every chain once and writes the digests."""
    found = {}
    with tempfile.TemporaryDirectory() as name, every_processor() as elsewhere:
        root = Path(name)
        folders = exact.family(root / "family", shards=2)
        for chain in chains():
            found[chain] = elsewhere.submit(digest_of, chain, folders, root / chain).result()
        models = with_adapters(root / "adapters")
        for step in on_factors():
            found[step] = elsewhere.submit(factors_digest, step, models, root / step).result()
    DIGESTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
