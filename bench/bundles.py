"""How large bundles are and how fast a member is given back, beside copying a checkpoint of the same size.

``python -m bench.bundles`` makes a base, three experts, three LoRA adapters of rank 16, and a bundle of each
kind; then materialises one member and copies the base (read, written, made durable), in turn, and prints
bytes beside those of the models (of an rmm bundle: of the adapters), seconds, seconds of CPU, and the median
ratio of the pairs.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.family import EXPERTS, make_adapters, make_family
from merge.bundle.recipe import member_of_folder
from merge.local import index_models, model_folders
from merge.methods import load
from merge.plan import make_plan
from merge.recipe.recipe import Recipe, recipe_from
from merge.run import run

STEPS: dict[str, dict[str, Any]] = {
    "tall": {"method": "task_arithmetic"},
    "emr": {"method": "emr"},
    "twin": {"method": "task_arithmetic", "scale": 0.3},
    "rmm": {"method": "task_arithmetic"},
}
COPIED = 8 << 20
RANK = 16


def main() -> None:
    """Parses arguments and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=1.1e9)
    parser.add_argument("--kinds", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dir", type=Path, help="where models and bundles are, or will be, and are left")
    options = parser.parse_args()
    load()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.dir or Path(scratch)
        if not (folder / "base").exists():
            folder.mkdir(exist_ok=True)
            make_family(folder, int(options.parameters))
        for kind in options.kinds.split(","):
            _one(folder, kind, options.pairs, options.threads)


def _one(folder: Path, kind: str, pairs: int, threads: int) -> None:
    bundle, out, copy = (folder / name for name in (f"bundle-{kind}", "materialised", "copied"))
    for each in (out, copy):
        shutil.rmtree(each, ignore_errors=True)
    names: tuple[str, ...] = EXPERTS
    result: dict[str, Any] = {"form": "bundle", "kind": kind}
    sources = [{"id": name, "model": name} for name in EXPERTS]
    if kind == "rmm":
        names, result = make_adapters(folder, RANK), result | {"components": 1}
        sources = [{"id": own, "adapter": name} for own, name in zip(EXPERTS, names, strict=True)]
    recipe = recipe_from({"base": "base", "sources": sources, "steps": [STEPS[kind]], "result": result})
    models = sum(size_of(folder / name) for name in names)
    said = "kept"
    if not bundle.exists():
        made = timed(lambda: carry_out(recipe, folder, bundle, threads))
        said = f"made in {made[0]:.1f} s ({made[1]:.1f} s of CPU)"
    size, base = size_of(bundle), size_of(folder / "base")
    shares = f"{size / base:.3f} of the base, {size / models:.3f} of what the members were"
    print(f"{kind:5} {said}; {size:,} bytes, {shares}")
    member = member_of_folder(bundle, EXPERTS[0], None, None)
    found = []
    for _ in range(pairs):
        ours = timed(lambda: carry_out(member, Path(), out, threads))
        theirs = timed(lambda: copy_folder(folder / "base", copy))
        found.append((ours, theirs))
        shutil.rmtree(out)
        shutil.rmtree(copy)
    ratio = median(theirs[0] / ours[0] for ours, theirs in found)
    print(f"      {'':12} seconds  least  CPU s")
    for name, rows in (("materialised", [ours for ours, _ in found]), ("copied", [t for _, t in found])):
        seconds, busy = zip(*rows, strict=True)
        print(f"      {name:12} {median(seconds):7.2f} {min(seconds):6.2f} {median(busy):6.2f}")
    print(f"      {ratio:.2f} of a copy's speed (median of pairs)", flush=True)


def carry_out(recipe: Recipe, root: Path, out: Path, threads: int) -> None:
    """Plans and runs a recipe whose models lie under ``root``, without a report."""
    plan = make_plan(recipe, index_models(recipe, root), budget=1 << 30)
    folders = model_folders(recipe, root)
    run(plan, folders, out, budget_bytes=1 << 30, threads=threads, survey="none")


def copy_folder(source: Path, target: Path) -> None:
    """Copies the weights durably, a block after another."""
    target.mkdir()
    for path in source.glob("*.safetensors"):
        with path.open("rb") as read, (target / path.name).open("wb") as write:
            while block := read.read(COPIED):
                write.write(block)
            write.flush()
            os.fsync(write.fileno())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder and under it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of CPU of this process."""
    begin, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - busy


if __name__ == "__main__":
    main()
