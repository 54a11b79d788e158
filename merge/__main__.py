"""The engine alone: ``python -m merge run RECIPE OUT`` and friends. Exit code 0, or 2 with one line that says
why.
"""

import argparse
import gc
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from merge import holdings
from merge.append import Joining, append_to_folder
from merge.bundle.command import add_routing
from merge.bundle.recipe import member_of_folder
from merge.catalog import FOLDER
from merge.contract.informed import JOINT
from merge.errors import FindingsError, MergeError, OutputExists
from merge.learn.command import add_measure
from merge.local import index_models, model_folders
from merge.mergekit.translate import read_file
from merge.plan import Plan, make_plan
from merge.recipe.parts import OUTPUT_DTYPES
from merge.recipe.presets import entry, listing
from merge.show import measuring_bar, plan_tables, progress_bar, terminal

GIB = 1 << 30
MOST_BYTES = 1 << 63
EXTENTS = ("sampled", "full", "none")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_left()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except FindingsError as error:
        for finding in error.findings:
            where = f" ({finding.pointer})" if finding.pointer else ""
            print(f"{finding.severity}: {finding.message}{where}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except MergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def reader_left() -> int:
    """The exit status where ``head`` or its like has all it wants; what is left to be said would fail once
    more at the exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m merge", description="Merge models that lie in folders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, about, takes in (
        ("run", _run, "merge a recipe into a new folder", ("recipe", "out")),
        ("plan", _plan, "show what a run would do, from headers alone", ("recipe",)),
        ("translate", _translate, "show a mergekit config as a recipe", ("recipe",)),
        ("materialise", _materialise, "give a bundle's member as a checkpoint", ("bundle", "member", "out")),
        ("append", _append, "let one more model join an earlier result", ("result", "model", "out")),
        ("inspect", _inspect, "show what a model, an adapter or a bundle holds", ("model",)),
        ("convert", _convert, "make safetensors of pickles (.bin), behind a guard", ("model", "out")),
    ):
        sub = commands.add_parser(name, help=about)
        for argument in takes:
            sub.add_argument(argument, type=str if argument == "member" else Path)
        sub.set_defaults(command=command)
        if name in ("run", "plan", "materialise", "append"):
            about = "memory beyond the interpreter's own, such as 512MiB (default 1GiB)"
            sub.add_argument("--memory", type=bytes_of, default=GIB, help=about)
        if name in ("plan", "inspect", "translate"):
            sub.add_argument("--json", action="store_true", help="as JSON, with everything")
        if name == "inspect":
            sub.add_argument("--tensors", action="store_true", help="list every tensor")
        if name == "materialise":
            sub.add_argument("--base", type=Path, help="the base's folder, where it is not where it was")
            sub.add_argument("--dtype", choices=OUTPUT_DTYPES, help="what is written (default: the base's)")
        if name == "append":
            sub.add_argument("--base", type=Path, help="the base's folder, where it is not where it was")
            sub.add_argument("--adapter", action="store_true", help="MODEL is a LoRA adapter over the base")
            sub.add_argument("--id", default="joined", help="what the model is called")
            sub.add_argument("--weight", type=float, default=1.0, help="factor on its task vector")
        if name in ("run", "materialise", "append"):
            about = "threads that compute (default: one a core)"
            sub.add_argument("--threads", type=count_of, default=os.cpu_count() or 1, help=about)
            sub.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
            sub.add_argument("--report", choices=EXTENTS, default="sampled", help="what the report measures")
            about = "sha256 of the weights; off is quicker, but a merge that was broken off then starts over"
            sub.add_argument("--digests", choices=("on", "off"), default="on", help=about)
    add_measure(commands, bytes_of)
    add_routing(commands)
    methods = commands.add_parser("methods", help="list methods, or describe one")
    methods.add_argument("name", nargs="?")
    methods.set_defaults(command=_methods)
    commands.add_parser("catalog", help="write the catalogue from the methods' code").set_defaults(
        command=_catalog
    )
    return parser


def bytes_of(text: str) -> int:
    """A number of bytes from ``1073741824``, ``512MiB``, ``2GB``; raises ``ArgumentTypeError``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    power = " KMGT".index(found[2].upper() or " ") if found is not None else 0
    size = float(found[1]) * (1024 if found[3] else 1000) ** power if found is not None else math.inf
    if not size < MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size; write 512MiB, 2GB or a number of bytes")
    return int(size)


def count_of(text: str) -> int:
    """A whole number above 0; raises ``ArgumentTypeError``."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; write 1 to 1024")
    return int(text)


def _planned(options: argparse.Namespace) -> tuple[Plan, Path]:
    read, root = read_file(options.recipe), options.recipe.parent
    models = index_models(read.recipe, root)
    return make_plan(read.recipe, models, budget=options.memory, notes=read.notes), root


def _run(options: argparse.Namespace) -> None:
    _carry_out(*_planned(options), options)


def _materialise(options: argparse.Namespace) -> None:
    recipe = member_of_folder(options.bundle, options.member, options.base, options.dtype)
    plan = make_plan(recipe, index_models(recipe, Path()), budget=options.memory)
    _carry_out(plan, Path(), options)


def _append(options: argparse.Namespace) -> None:
    model, weight = str(options.model), options.weight
    named = {"adapter": model} if options.adapter else {"model": model}
    joining = Joining(**named, id=options.id, weight=weight)
    recipe = append_to_folder(options.result, options.base, joining)
    plan = make_plan(recipe, index_models(recipe, Path()), budget=options.memory)
    _carry_out(plan, Path(), options)


def _carry_out(plan: Plan, root: Path, options: argparse.Namespace) -> None:
    for finding in plan.findings:
        print(f"{finding.severity}: {finding.message}", file=sys.stderr)
    from merge.kernels.device import check_device  # loads torch, which the other commands do without
    from merge.run import run

    check_device(options.device)
    folders = model_folders(plan.recipe, root)
    statistics = _statistics(plan, folders, root, options)
    with progress_bar(Console(stderr=True)) as tell:
        report = run(
            plan,
            folders,
            options.out,
            budget_bytes=options.memory,
            threads=options.threads,
            device=options.device,
            on_progress=tell,
            survey=options.report,
            statistics=statistics,
            digests=options.digests == "on",
        )
    if lost := [file.file for file in report.files if file.released]:
        raise OutputExists(f"{options.out} is this merge, but lacks {', '.join(lost)}; remove it first.")
    for file in report.files:
        print(f"{file.sha256 or '-'}  {file.file}")


def _statistics(
    plan: Plan, folders: Mapping[str, Path], root: Path, options: argparse.Namespace
) -> dict[str, Path]:
    """Where what is measured on data lies, measured now where it is not there yet."""
    needed = plan.statistics.folders
    if not needed:
        return {}
    from merge.gather import gather  # loads transformers, which merges without data do without

    def tell(key: str, is_new: bool) -> None:
        verb = "measuring" if is_new else "using"
        print(f"{verb} {', '.join(needed[key])} of {key.removesuffix(JOINT)}", file=sys.stderr)

    with measuring_bar(Console(stderr=True)) as advance:
        return gather(
            plan,
            folders,
            root,
            options.out.absolute().parent,
            device=options.device,
            memory_bytes=options.memory,
            on_model=tell,
            on_progress=advance,
        )


def _plan(options: argparse.Namespace) -> None:
    plan, _ = _planned(options)
    if options.json:
        _print(plan.summary())
    else:
        terminal().print(plan_tables(plan))


def _translate(options: argparse.Namespace) -> None:
    read = read_file(options.recipe)
    if options.json:
        _print(read.as_json())
    else:
        print(read.as_yaml(), end="")


def _inspect(options: argparse.Namespace) -> None:
    index = holdings.index_any(options.model)
    if options.json:
        _print(holdings.facts(index))
    else:
        terminal().print(holdings.tables(index, every_tensor=options.tensors))


def _convert(options: argparse.Namespace) -> None:
    from merge.convert import convert  # needs what only this command needs

    print(convert(options.model, options.out))


def _methods(options: argparse.Namespace) -> None:
    if options.name is not None:
        _print(entry(options.name).as_dict())
        return
    for name, known in listing().items():
        print(f"{name:20} {known.kind:8} {known.title}")


def _catalog(options: argparse.Namespace) -> None:  # noqa: ARG001
    from merge.contract.method import registered  # loads torch, which the other commands do without
    from merge.methods import load

    load()
    wanted = {f"{name}.json": catalogue_text(made.describe()) for name, made in registered().items()}
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def catalogue_text(description: dict[str, Any]) -> str:
    """The content of a catalogue file."""
    return json.dumps(description, indent=2, ensure_ascii=False) + "\n"


def _print(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    ended = main()
    gc.freeze()  # or the interpreter looks through torch's half a million objects once more as it ends
    sys.exit(ended)
