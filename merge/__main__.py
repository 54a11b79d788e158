"""The engine alone: ``python -m merge run RECIPE OUT`` and friends. Exit code 0, or 2 with one line that says
why.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merge.catalog import FOLDER, catalogue, entry
from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.document import load_document
from merge.errors import FindingsError, MergeError
from merge.mergekit import is_mergekit, translate
from merge.plan import Plan, make_plan
from merge.recipe import Recipe, recipe_from

GIB = 1 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except FindingsError as error:
        for finding in error.findings:
            where = f" ({finding.pointer})" if finding.pointer else ""
            print(f"{finding.severity}: {finding.message}{where}", file=sys.stderr)
        return 2
    except (MergeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m merge", description="Merge models that lie in folders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, about, takes in (
        ("run", _run, "merge a recipe into a new folder", ("recipe", "out")),
        ("plan", _plan, "show what a run would do, from headers alone", ("recipe",)),
        ("translate", _translate, "show a mergekit config as a recipe", ("recipe",)),
        ("inspect", _inspect, "show what a model folder holds", ("model",)),
    ):
        sub = commands.add_parser(name, help=about)
        for argument in takes:
            sub.add_argument(argument, type=Path)
        sub.set_defaults(command=command)
        if name in ("run", "plan"):
            sub.add_argument("--budget", type=int, default=GIB, help="bytes of memory (default 1 GiB)")
        if name == "run":
            sub.add_argument("--threads", type=int, default=os.cpu_count() or 1)
            sub.add_argument("--device", default="cpu")
    methods = commands.add_parser("methods", help="list methods, or describe one")
    methods.add_argument("name", nargs="?")
    methods.set_defaults(command=_methods)
    commands.add_parser("catalog", help="write the catalogue from the methods' code").set_defaults(
        command=_catalog
    )
    return parser


def read_recipe(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe file of either form, with the notes of its translation."""
    document = load_document(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")
    if is_mergekit(document):
        translation = translate(document)
        return translation.recipe, tuple(translation.notes)
    return recipe_from(document), ()


def model_folders(recipe: Recipe, root: Path) -> dict[str, Path]:
    """Where each model of a recipe lies; names are relative to ``root``, the recipe's own folder."""
    folders = {source.id: root / source.model for source in recipe.sources}
    folders |= {f"{s.id}+adapter": root / s.adapter for s in recipe.sources if s.adapter is not None}
    return ({"base": root / recipe.base} if recipe.base is not None else {}) | folders


def index_models(recipe: Recipe, root: Path) -> dict[str, ModelIndex]:
    """Every model of a recipe as its headers describe it, adapters attached."""
    found: dict[str, ModelIndex] = {}
    if recipe.base is not None:
        found["base"] = index_folder(root / recipe.base, recipe.base)
    for source in recipe.sources:
        index = index_folder(root / source.model, source.model)
        if source.adapter is not None:
            index = attach(index, index_adapter_folder(root / source.adapter, source.adapter))
        found[source.id] = index
    return found


def _planned(options: argparse.Namespace) -> tuple[Plan, Path]:
    recipe, notes = read_recipe(options.recipe)
    root = options.recipe.parent
    return make_plan(recipe, index_models(recipe, root), budget=options.budget, notes=notes), root


def _run(options: argparse.Namespace) -> None:
    plan, root = _planned(options)
    for finding in plan.findings:
        print(f"{finding.severity}: {finding.message}", file=sys.stderr)
    from merge.run import run  # loads torch, which the other commands do without

    report = run(
        plan,
        model_folders(plan.recipe, root),
        options.out,
        budget_bytes=options.budget,
        threads=options.threads,
        device=options.device,
    )
    for file in report.files:
        print(f"{file.sha256}  {file.file}")


def _plan(options: argparse.Namespace) -> None:
    _print(_planned(options)[0].summary())


def _translate(options: argparse.Namespace) -> None:
    recipe, notes = read_recipe(options.recipe)
    _print({"recipe": recipe.model_dump(mode="json"), "notes": list(notes)})


def _inspect(options: argparse.Namespace) -> None:
    index = index_folder(options.model)
    tensors = {name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in index.tensors.items()}
    _print(
        {
            "parameters": index.parameters,
            "bytes": index.bytes,
            "files": list(index.shards),
            "digest": index.digest,
            "tensors": tensors,
        }
    )


def _methods(options: argparse.Namespace) -> None:
    if options.name is not None:
        _print(entry(options.name).as_dict())
        return
    for name, known in catalogue().items():
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
    sys.exit(main())
