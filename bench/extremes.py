"""What must not grow: time with many small tensors, memory with many large models.

``python -m bench.extremes tensors`` plans and merges a base and three experts of 20,000 tensors of 2,048
entries. ``python -m bench.extremes memory`` merges eight models of the shapes of a Llama of 3.2 billion
parameters, whose files are sparse (all zeros: they take no disk), and tells the peak of anonymous memory
beyond the idle process.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from os import getpid
from pathlib import Path

import torch

from bench.engine import rss_anon
from bench.family import EXPERTS, SHARD_BYTES, write_config, write_model
from merge.checkpoint.layout import index_file, index_json, plan_shards
from merge.local import index_models, model_folders
from merge.methods import load
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run

TENSORS = 20_000
BUDGET = 1 << 30
MODELS = 8


def main() -> None:
    """Runs one of the two and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("tensors", "memory"))
    parser.add_argument("--methods", default="linear,ties")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    load()
    with tempfile.TemporaryDirectory(prefix="mergery-bench-", dir=options.dir) as name:
        folder = Path(name)
        if options.what == "tensors":
            _small(folder)
            sources: Sequence[str] = EXPERTS
        else:
            sources = [f"m{number}" for number in range(MODELS)]
            _sparse(folder, ["base", *sources])
        for method in options.methods.split(","):
            _measure(folder, sources, method, options.threads)


def _measure(folder: Path, sources: Sequence[str], method: str, threads: int) -> None:
    document = {
        "base": "base",
        "sources": [{"id": name, "model": name} for name in sources],
        "steps": [{"method": method}],
    }
    recipe = recipe_from(document)
    begin = time.perf_counter(), time.process_time()
    models = index_models(recipe, folder)
    read = time.perf_counter(), time.process_time()
    plan = make_plan(recipe, models, budget=BUDGET)
    planned = time.perf_counter(), time.process_time()
    idle = rss_anon(getpid())
    peaks, done = [idle], threading.Event()
    watch = threading.Thread(target=_watch, args=(peaks, done))
    watch.start()
    run(plan, model_folders(recipe, folder), folder / "out", budget_bytes=BUDGET, threads=threads)
    done.set()
    watch.join()
    merged = time.perf_counter(), time.process_time()
    shutil.rmtree(folder / "out")
    spans = ((begin, read), (read, planned), (planned, merged))
    told = (f"{b[0] - a[0]:.2f} s ({b[1] - a[1]:.2f} s of CPU)" for a, b in spans)
    titles = ("headers", "plan", "merge")
    print(method, *(f"{title} {text}" for title, text in zip(titles, told, strict=True)), sep="; ", end="; ")
    print(f"peak beyond idle {(max(peaks) - idle) >> 20} MiB", flush=True)


def _watch(peaks: list[int], done: threading.Event) -> None:
    while not done.wait(0.1):
        peaks.append(rss_anon(getpid()))


def _small(folder: Path) -> None:
    """Base and experts whose tensors are too small for anything but their number to count."""
    noise = torch.randn((1 << 22) + 17, generator=torch.Generator().manual_seed(0))
    shapes = {f"model.layers.{at // 100}.part{at % 100}.weight": (32, 64) for at in range(TENSORS)}
    for number, name in enumerate(("base", *EXPERTS)):
        write_model(folder / name, shapes, number, noise, config=False)


def _sparse(folder: Path, names: Sequence[str]) -> None:
    """Models of zeros: headers, and files that are as long as they say."""
    shapes = _three_billion()
    shards = plan_shards([(name, "BF16", shape) for name, shape in shapes.items()], 10 * SHARD_BYTES)
    for name in names:
        path = folder / name
        path.mkdir()
        for shard in shards:
            with (path / shard.file).open("wb") as file:
                file.write(shard.header_bytes)
                file.truncate(shard.size)
        (path / index_file(shards)).write_bytes(index_json(shards))
        write_config(path, shapes)


def _three_billion() -> Mapping[str, tuple[int, int]]:
    """Matrices of Llama-3.2-3B: width 3072, inner 8192, 28 layers, 8 of 24 heads for keys."""
    shapes = {"model.embed_tokens.weight": (128256, 3072)}
    for layer in range(28):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}mlp.down_proj.weight": (3072, 8192),
            f"{prefix}mlp.gate_proj.weight": (8192, 3072),
            f"{prefix}mlp.up_proj.weight": (8192, 3072),
            f"{prefix}self_attn.k_proj.weight": (1024, 3072),
            f"{prefix}self_attn.o_proj.weight": (3072, 3072),
            f"{prefix}self_attn.q_proj.weight": (3072, 3072),
            f"{prefix}self_attn.v_proj.weight": (1024, 3072),
        }
    return shapes


if __name__ == "__main__":
    main()
