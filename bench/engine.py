"""How fast the engine merges, beside ``cat`` of the same inputs plus ``cp`` of one output on the same disk.

``python -m bench.engine`` makes a Llama-shaped base and experts in a temporary folder (streamed, about 1.1
billion parameters each unless told otherwise), merges them with each method in a fresh process, and prints a
table. Start-up is not counted; memory is the peak of RssAnon beyond what the process held before the merge.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merge.__main__ import index_models, model_folders
from merge.checkpoint.layout import INDEX_FILE, index_json, plan_shards
from merge.checkpoint.writer import ShardWriter
from merge.plan import make_plan
from merge.recipe import recipe_from
from merge.run import run

EXPERTS = ("a", "b", "c")
NOISE = (1 << 22) + 17
RECIPES: dict[str, tuple[bool, int, list[dict[str, Any]]]] = {
    "passthrough": (False, 1, [{"method": "passthrough"}]),
    "linear": (False, 3, [{"method": "linear"}]),
    "slerp": (False, 2, [{"method": "slerp", "t": 0.4}]),
    "task_arithmetic": (True, 3, [{"method": "task_arithmetic", "scale": 0.4}]),
    "ties": (True, 3, [{"method": "ties", "density": 0.3}]),
    "ties_global": (True, 3, [{"method": "ties", "density": 0.3, "scope": "global"}]),
    "dare": (True, 3, [{"method": "dare", "density": 0.5}, {"method": "task_arithmetic", "scale": 0.4}]),
    "dare_ties": (True, 3, [{"method": "dare", "density": 0.5}, {"method": "ties", "density": 1.0}]),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. ``cpu_seconds`` are of all threads, ``floor_seconds`` of ``cat`` and ``cp``."""

    method: str
    seconds: float
    cpu_seconds: float
    floor_seconds: float
    gigabytes_per_second: float
    ratio: float
    peak_mebibytes: float


def main() -> None:
    """Parses arguments, makes the family, runs every method and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=float, default=1.1e9, help="parameters of each model")
    parser.add_argument(
        "--methods", default="linear,slerp,task_arithmetic,dare,ties", help=", ".join(RECIPES)
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=int, default=1 << 30, help="bytes of memory")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each; the best is shown")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options)
        return
    with tempfile.TemporaryDirectory(prefix="mergery-bench-", dir=options.dir) as name:
        folder = Path(name)
        made = make_family(folder, int(options.params))
        print(f"{made:,} parameters a model, {options.threads} threads, budget {options.budget >> 20} MiB")
        rows = []
        print(
            f"{'method':16} {'seconds':>8} {'cpu s':>7} {'floor':>7} {'GB/s':>6} {'ratio':>6} {'peak MiB':>9}"
        )
        for method in options.methods.split(","):
            row = best_of(folder, method, options)
            rows.append(row)
            print(
                f"{row.method:16} {row.seconds:8.2f} {row.cpu_seconds:7.2f} {row.floor_seconds:7.2f} "
                f"{row.gigabytes_per_second:6.2f} {row.ratio:6.2f} {row.peak_mebibytes:9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([row.__dict__ for row in rows], indent=2))


def make_family(folder: Path, parameters: int) -> int:
    """Writes ``base`` and the experts (base plus noise of 1e-3); gives the parameters of each."""
    shapes = llama_shapes(parameters)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    for number, name in enumerate(("base", *EXPERTS)):
        write_model(folder / name, shapes, number, noise)
    return sum(rows * columns for rows, columns in shapes.values())


def llama_shapes(parameters: int) -> dict[str, tuple[int, int]]:
    """Matrices of a Llama of about so many parameters: 22 layers, vocabulary 32000 where that fits."""
    layers, vocabulary = 22, 32000 if parameters > 3e8 else 8000
    width = 64
    while _count(width + 64, layers, vocabulary) <= parameters:
        width += 64
    inner, keys = width * 11 // 4, width // 8
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (1, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}post_attention_layernorm.weight": (1, width),
            f"{prefix}self_attn.k_proj.weight": (keys, width),
            f"{prefix}self_attn.o_proj.weight": (width, width),
            f"{prefix}self_attn.q_proj.weight": (width, width),
            f"{prefix}self_attn.v_proj.weight": (keys, width),
        }
    return shapes | {"model.norm.weight": (1, width), "lm_head.weight": (vocabulary, width)}


def _count(width: int, layers: int, vocabulary: int) -> int:
    each = 3 * width * (width * 11 // 4) + 2 * width * width + 2 * width * (width // 8) + 2 * width
    return layers * each + 2 * vocabulary * width + width


def write_model(folder: Path, shapes: dict[str, tuple[int, int]], number: int, noise: torch.Tensor) -> None:
    """One bf16 model in shards of 500 MB, block by block from repeated noise."""
    folder.mkdir()
    shards = plan_shards([(n, "BF16", s[1:] if s[0] == 1 else s) for n, s in shapes.items()], 500_000_000)
    place = 0
    for shard in shards:
        with ShardWriter(folder / shard.file, shard) as writer:
            for name, info in shard.entries.items():
                for first, block in _blocks(info.numel, place, number, noise):
                    writer.write_at(name, first, block)
                place += info.numel
            writer.finish()
    if len(shards) > 1:
        (folder / INDEX_FILE).write_bytes(index_json(shards))
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')


def _blocks(total: int, place: int, number: int, noise: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    size = 1 << 20
    for first in range(0, total, size):
        count = min(size, total - first)
        values = noise[(at := (place + first) % (NOISE - size)) : at + count] * 0.02
        if number:
            shift = (at * 7 + number * 1_234_567) % (NOISE - size)
            values = values + noise[shift : shift + count] * 1e-3
        yield first, values.to(torch.bfloat16)


def best_of(folder: Path, method: str, options: argparse.Namespace) -> Row:
    """The best merge and the best floor of some runs, taken in turns so that both meet the same weather."""
    uses_base, experts, _ = RECIPES[method]
    inputs = [folder / name for name in (*(("base",) if uses_base else ()), *EXPERTS[:experts])]
    floors, merges, peaks = [], [], []
    for _ in range(options.repeat):
        floors.append(floor_seconds(inputs, folder / "copy"))
        seconds, cpu, peak = merge_seconds(folder, method, options)
        merges.append((seconds, cpu))
        peaks.append(peak / (1 << 20))
    moved = sum(_bytes(path) for path in (*inputs, inputs[0]))
    (seconds, cpu), floor = min(merges), min(floors)
    return Row(method, seconds, cpu, floor, moved / seconds / 1e9, seconds / floor, max(peaks))


def floor_seconds(inputs: Sequence[Path], copy: Path) -> float:
    """Seconds for ``cat`` of every input's weights to /dev/null and ``cp`` of one."""
    files = [str(file) for path in inputs for file in sorted(path.glob("*.safetensors"))]
    seconds = _timed(lambda: subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True))
    seconds += _timed(lambda: subprocess.run(["cp", "-r", str(inputs[0]), str(copy)], check=True))
    shutil.rmtree(copy)
    os.sync()
    return seconds


def merge_seconds(folder: Path, method: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """One merge in a fresh process: seconds by the wall and of all threads, peak RssAnon beyond idle."""
    command = [sys.executable, "-m", "bench.engine", "--child", method, "--dir", str(folder)]
    command += ["--threads", str(options.threads), "--budget", str(options.budget)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        idle = rss_anon(child.pid)
        peaks = [idle]
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(child.pid, peaks, done))
        watch.start()
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
        done.set()
        watch.join()
    shutil.rmtree(folder / "out")
    os.sync()
    told = json.loads(line)
    return told["seconds"], told["cpu"], float(max(peaks) - idle)


def rss_anon(pid: int) -> int:
    """Anonymous memory of a process, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def _watch(pid: int, peaks: list[int], done: threading.Event) -> None:
    while not done.wait(0.02):
        peaks.append(rss_anon(pid))


def _child(options: argparse.Namespace) -> None:
    """One merge in this process: says when it is ready, waits for a word, and tells the seconds."""
    uses_base, experts, steps = RECIPES[options.child]
    document: dict[str, Any] = {"sources": [{"id": n, "model": n} for n in EXPERTS[:experts]], "steps": steps}
    recipe = recipe_from(document | ({"base": "base"} if uses_base else {}))
    folder: Path = options.dir
    print("ready", flush=True)
    sys.stdin.readline()
    begin, busy = time.perf_counter(), time.process_time()
    plan = make_plan(recipe, index_models(recipe, folder), budget=options.budget)
    run(
        plan,
        model_folders(recipe, folder),
        folder / "out",
        budget_bytes=options.budget,
        threads=options.threads,
    )
    told = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - busy}
    print(json.dumps(told), flush=True)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


if __name__ == "__main__":
    main()
