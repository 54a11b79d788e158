"""How fast the engine merges, beside ``cat`` of the inputs plus ``cp`` of one output, and beside mergekit.

``python -m bench.engine`` makes a Llama-shaped base and experts (1.1 billion parameters each unless told
otherwise), then takes turns: floor, our merge, mergekit's, so that all meet the same weather; every merge in
a fresh process, memory filled (``bench.memory``) and the inputs read into the page cache right before. It
prints the median of the runs and of the paired ratios. Start-up (interpreter, imports) is measured apart and
counted on neither side. Our time includes sha256 of every output file and the final fsync (``fsync`` tells
how long that took alone); neither the floor nor mergekit does either.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench import durable
from bench.family import EXPERTS, LAYERS, SHARD_BYTES, make_family
from bench.memory import Filler
from bench.recipes import RECIPES, Timed

OURS = "engine"
EVERY = {
    "all": tuple(RECIPES),
    "quick": tuple(name for name, timed in RECIPES.items() if not timed.slow),
    "slow": tuple(name for name, timed in RECIPES.items() if timed.slow),
}
"""Words that stand for several methods."""
SLOW_BUDGET = 8 << 30
"""Bytes for methods on whole matrices, of which one at 1.1 billion parameters takes 2 GB and more."""


@dataclass(frozen=True)
class Row:
    """Medians. ``ratio`` is to the floor, ``faster`` how many times mergekit's time is ours (0: not run).

    ``cpu_seconds`` are of all threads, ``sync_seconds`` the part of ``seconds`` that was the final fsync.
    ``written_per_second`` are GB of output, durable at the end.
    """

    method: str
    layers: int
    threads: int
    seconds: float
    cpu_seconds: float
    sync_seconds: float
    floor_seconds: float
    ratio: float
    gigabytes_per_second: float
    peak_mebibytes: float
    faster: float
    bar: float
    written_per_second: float


@dataclass(frozen=True)
class Merge:
    """One run of ours."""

    seconds: float
    cpu: float
    sync: float
    peak: float


def main() -> None:
    """Parses arguments, makes the family, runs every method and prints the table."""
    options = _parser().parse_args()
    if options.child:
        _child(options)
        return
    with tempfile.TemporaryDirectory(prefix="mergery-bench-", dir=options.dir) as name:
        folder = options.family or Path(name)
        folder.mkdir(exist_ok=True)
        memory = Filler(folder)
        cache = "cold" if options.cold else "warm"
        print(f"budget {options.budget >> 20} MiB, {options.repeat} runs, {cache} cache")
        start = startup_seconds(options.mergekit) if options.mergekit else 0.0
        print(_spread(("method", *_TITLES)))
        rows = []
        for method in chosen(options.methods):
            layers = options.layers or RECIPES[method].layers
            family = family_of(folder, layers, int(options.params))
            for threads in map(int, options.threads.split(",")):
                rows.append(measured(family, method, layers, threads, start, options, memory))
                print(_line(rows[-1]), flush=True)
        written = durable.measured(folder, _bytes(family / "base"), memory, options.repeat)
        print(*written.lines({row.method: row.written_per_second for row in rows}), sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


_TITLES = (
    "layers",
    "threads",
    "seconds",
    "cpu s",
    "fsync s",
    "floor s",
    "ratio",
    "bar",
    "GB/s",
    "peak MiB",
    "x mergekit",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=float, default=1.1e9, help="parameters of each model")
    parser.add_argument(
        "--methods", default="quick", help=f"comma separated; {', '.join((*EVERY, *RECIPES))}"
    )
    about = f"layers of the family (default: {LAYERS}; of slow methods fewer, as bench/recipes.py has it)"
    parser.add_argument("--layers", type=int, help=about)
    parser.add_argument("--threads", default=str(os.cpu_count() or 1), help="one number or several: 1,2,4")
    parser.add_argument(
        "--budget", type=int, default=1 << 30, help="bytes of memory (slow methods: at least 8 GiB)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (slow methods: one)")
    parser.add_argument(
        "--mergekit", type=Path, help="path of mergekit-yaml (make bench-mergekit installs it)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="drop the inputs from the page cache before each merge"
    )
    parser.add_argument("--report", default="sampled", choices=("sampled", "full", "none"))
    parser.add_argument("--digests", default="on", choices=("on", "off"), help="sha256 of every output file")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--family", type=Path, help="a folder for the models, kept for the next time")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def chosen(methods: str) -> list[str]:
    """The methods that a list names, each once."""
    return list(dict.fromkeys(name for word in methods.split(",") for name in EVERY.get(word, (word,))))


def family_of(folder: Path, layers: int, parameters: int) -> Path:
    """Where the models with so many layers lie; they are made if they are not there."""
    family = folder if layers == LAYERS else folder / f"layers-{layers}"
    if not (family / "base").exists():
        family.mkdir(exist_ok=True)
        counted = make_family(family, parameters, layers)
        print(f"{counted:,} parameters a model of {layers} layers", flush=True)
    return family


def measured(
    folder: Path,
    method: str,
    layers: int,
    threads: int,
    start: float,
    options: argparse.Namespace,
    memory: Filler,
) -> Row:
    """The medians of some rounds of floor, ours and theirs."""
    timed = RECIPES[method]
    inputs = [folder / name for name in (*(("base",) if timed.based else ()), *EXPERTS[: timed.experts])]
    floors, merges, theirs = [], [], []
    for _ in range(1 if timed.slow else options.repeat):
        _settle(inputs, memory, cold=options.cold)
        floors.append(floor_seconds(inputs, folder / "copy"))
        memory.fill()
        merges.append(merge_seconds(folder, inputs, method, threads, options, memory))
        if options.mergekit and timed.theirs:
            _settle(inputs, memory, cold=options.cold)
            theirs.append(mergekit_seconds(folder, timed, inputs, options.mergekit) - start)
            memory.fill()
    seconds = median(merge.seconds for merge in merges)
    ratio = median(merge.seconds / floor for merge, floor in zip(merges, floors, strict=True))
    return Row(
        method,
        layers,
        threads,
        seconds,
        median(merge.cpu for merge in merges),
        median(merge.sync for merge in merges),
        median(floors),
        ratio,
        sum(_bytes(path) for path in (*inputs, inputs[0])) / seconds / 1e9,
        max(merge.peak for merge in merges) / (1 << 20),
        median(theirs) / seconds if theirs else 0.0,
        timed.floor,
        _bytes(inputs[0]) / seconds / 1e9,
    )


def _line(row: Row) -> str:
    numbers = (
        f"{row.seconds:.2f}", f"{row.cpu_seconds:.2f}", f"{row.sync_seconds:.2f}", f"{row.floor_seconds:.2f}",
        f"{row.ratio:.2f}", f"{row.bar:.1f}", f"{row.gigabytes_per_second:.2f}", f"{row.peak_mebibytes:.0f}",
        f"{row.faster:.1f}",
    )  # fmt: skip
    return _spread((row.method, str(row.layers), str(row.threads), *numbers))


def _spread(texts: Sequence[str]) -> str:
    return "  ".join([f"{texts[0]:19}", *(f"{text:>9}" for text in texts[1:])])


def floor_seconds(inputs: Sequence[Path], copy: Path) -> float:
    """Seconds for ``cat`` of every input's weights to /dev/null and ``cp`` of one."""
    files = [str(file) for path in inputs for file in sorted(path.glob("*.safetensors"))]
    seconds = _timed(lambda: subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True))
    seconds += _timed(lambda: subprocess.run(["cp", "-r", str(inputs[0]), str(copy)], check=True))
    shutil.rmtree(copy)
    os.sync()
    return seconds


def merge_seconds(
    folder: Path,
    inputs: Sequence[Path],
    method: str,
    threads: int,
    options: argparse.Namespace,
    memory: Filler,
) -> Merge:
    """One merge in a fresh process, memory watched from outside."""
    command = [sys.executable, "-m", "bench.engine", "--child", method, "--dir", str(folder)]
    budget = max(options.budget, SLOW_BUDGET) if RECIPES[method].slow else options.budget
    command += ["--threads", str(threads), "--budget", str(budget), "--report", options.report]
    command += ["--digests", options.digests]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        idle = rss_anon(child.pid)
        peaks = [idle]
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(child.pid, peaks, done))
        watch.start()
        _settle(inputs, memory, cold=options.cold)
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
        done.set()
        watch.join()
    shutil.rmtree(folder / OURS)
    memory.fill()
    os.sync()
    told = json.loads(line)
    return Merge(told["seconds"], told["cpu"], told["sync"], float(max(peaks) - idle))


def rss_anon(pid: int) -> int:
    """Anonymous memory of a process, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def mergekit_seconds(folder: Path, timed: Timed, inputs: Sequence[Path], program: Path) -> float:
    """One merge of mergekit's, whole process."""
    models = [{"model": str(path), "parameters": timed.each} for path in inputs if path.name != "base"]
    recipe: dict[str, Any] = {"merge_method": timed.theirs, "dtype": "bfloat16", "models": models}
    if timed.based or timed.theirs == "slerp":
        recipe["base_model"] = str(inputs[0])
    if timed.overall:
        recipe["parameters"] = timed.overall
    config, out = folder / "theirs.yml", folder / "theirs"
    config.write_text(yaml.safe_dump(recipe))
    command = [str(program), str(config), str(out), "--lazy-unpickle", "--no-copy-tokenizer"]
    seconds = _timed(lambda: subprocess.run(command, check=True, capture_output=True))
    shutil.rmtree(out)
    os.sync()
    return seconds


def startup_seconds(program: Path) -> float:
    """What mergekit takes to do nothing."""
    return median(
        _timed(lambda: subprocess.run([str(program), "--help"], check=True, capture_output=True))
        for _ in range(3)
    )


def _watch(pid: int, peaks: list[int], done: threading.Event) -> None:
    while not done.wait(0.01):
        peaks.append(rss_anon(pid))


def _child(options: argparse.Namespace) -> None:
    """One merge in this process: says when it is ready, waits for a word, and tells the seconds."""
    from merge.local import index_models, model_folders
    from merge.methods import load
    from merge.plan import make_plan
    from merge.recipe.recipe import recipe_from
    from merge.run import run

    load()
    timed = RECIPES[options.child]
    document: dict[str, Any] = {
        "sources": [{"id": n, "model": n} for n in EXPERTS[: timed.experts]],
        "steps": timed.steps,
        "shard_bytes": SHARD_BYTES,
    }
    recipe = recipe_from(document | ({"base": "base"} if timed.based else {}))
    folder: Path = options.dir
    waited = [0.0]
    sync = os.fsync

    def fsync(fd: int) -> None:
        begin = time.perf_counter()
        sync(fd)
        waited[0] += time.perf_counter() - begin

    os.fsync = fsync  # type: ignore[assignment]
    print("ready", flush=True)
    sys.stdin.readline()
    begin, busy = time.perf_counter(), time.process_time()
    plan = make_plan(recipe, index_models(recipe, folder), budget=options.budget)
    run(
        plan,
        model_folders(recipe, folder),
        folder / OURS,
        budget_bytes=options.budget,
        threads=int(options.threads),
        survey=options.report,
        digests=options.digests == "on",
    )
    told = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - busy, "sync": waited[0]}
    print(json.dumps(told), flush=True)


def _settle(inputs: Sequence[Path], memory: Filler, *, cold: bool) -> None:
    """What comes before every measurement: memory in use, and the inputs in the page cache, or not."""
    if cold:
        _drop(inputs)
    memory.fill()
    if not cold:
        _warm(inputs)
        memory.fill()


def _warm(inputs: Sequence[Path]) -> None:
    """Reads these files."""
    block = bytearray(1 << 20)
    for path in inputs:
        for file in path.glob("*.safetensors"):
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(block):
                    pass


def _drop(inputs: Sequence[Path]) -> None:
    """Lets go of the page cache of these files."""
    for path in inputs:
        for file in path.glob("*.safetensors"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


if __name__ == "__main__":
    main()
