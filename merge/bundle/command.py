"""``python -m merge router BUNDLE`` and ``route BUNDLE TEXTS``: which member of a bundle a text is for."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.bundle.gate import DIRECTIONS
from merge.bundle.recipe import base_folder, bundle_of_folder
from merge.checkpoint.bundle import ADAPTERS
from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.errors import GateUnsupported
from merge.file_errors import TextInvalid

if TYPE_CHECKING:
    from merge.bundle.router import Place


def add_routing(commands: Any) -> None:
    """Adds both commands to the engine's."""
    router = commands.add_parser("router", help="make a router for a bundle, or teach it by examples")
    router.add_argument("bundle", type=Path)
    about = 'JSON lines {"text": …, "member": …}; without them the router is made from weights alone'
    router.add_argument("--examples", type=Path, help=about)
    router.add_argument("--layer", type=int, help="where weights are looked at (default: the last)")
    about = f"kept of every member (default {DIRECTIONS})"
    router.add_argument("--directions", type=int, help=about)
    route = commands.add_parser("route", help="say which member of a bundle each text is for")
    route.add_argument("bundle", type=Path)
    route.add_argument("texts", type=Path, help='a text a line, or JSON lines {"text": …}')
    route.add_argument("--router", type=Path, help="the router's folder, where it is not the bundle's")
    for sub, command in ((router, _router), (route, _route)):
        sub.add_argument("--base", type=Path, help="the base's folder, where it is not where it was")
        sub.set_defaults(command=command)


def _router(options: argparse.Namespace) -> None:
    from merge.bundle.router import gate, save, train  # loads torch

    for name in ("layer", "directions"):
        if options.examples is not None and getattr(options, name) is not None:
            raise GateUnsupported(
                f"A router that is taught looks at no weights: leave --{name} or --examples out."
            )
    with _place(options) as place:
        if options.examples is None:
            wanted = DIRECTIONS if options.directions is None else options.directions
            made = gate(place, layer=options.layer, directions=wanted)
        else:
            examples = [(each["text"], str(each.get("member", ""))) for each in lines_of(options.examples)]
            made = train(place, examples)
    save(made, options.bundle)
    json.dump({"kind": made.kind, "layer": made.layer, **made.told}, sys.stdout)
    sys.stdout.write("\n")


def _route(options: argparse.Namespace) -> None:
    from merge.bundle.router import load, states_of  # loads torch

    texts = [each["text"] for each in lines_of(options.texts)]
    with _place(options) as place:
        router = load(options.router or options.bundle, place.base)
        for state in states_of(place.base, place.folder, texts, router.layer):
            sys.stdout.write(json.dumps(router.weights(state)) + "\n")


@contextmanager
def _place(options: argparse.Namespace) -> "Iterator[Place]":
    from merge.bundle.router import Place
    from merge.checkpoint.reader import TensorReader

    bundle: Path = options.bundle
    index = bundle_of_folder(bundle)
    folder = base_folder(index, bundle, options.base)
    base = index_folder(folder)
    with ExitStack() as stack:
        members = {}
        for member in index.members:
            at = bundle / ADAPTERS / member if index.kind == "twin" else bundle
            adapter = index_adapter_folder(at)
            fitted = attach(base, adapter, None if index.kind == "twin" else member)
            members[member] = stack.enter_context(TensorReader(folder, fitted, at))
        yield Place(base, folder, members)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The texts of a file; raises ``TextInvalid`` naming the line that holds none."""
    found: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TextInvalid(f"{path.name} is not UTF-8 text; save it as UTF-8.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        told: Any = {"text": line}
        if line.lstrip().startswith("{"):
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                told = None
        if not isinstance(told, dict) or not isinstance(told.get("text"), str) or not told["text"].strip():
            raise TextInvalid(f'Line {number} of {path.name} holds no text: write it as {{"text": "…"}}.')
        found.append(told)
    if not found:
        raise TextInvalid(f"{path.name} holds no text.")
    return found
