"""`mergery search`: the settings of a recipe with which its result scores best, over models in folders here.

No service is needed; the file is what a service takes as the order of a search.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cli.errors import CliError
from jobs.request import SearchRequest
from merge.recipe.document import dump_document, load_document
from merge.recipe.recipe import Recipe

FOUND = "search.json"


def read(file: Path) -> SearchRequest:
    """The order in a YAML or JSON file. Raises ``CliError`` with every field that is wrong."""
    document = load_document(file.read_bytes(), "yaml")
    try:
        order = SearchRequest.model_validate({"kind": "search", **document})
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc'])) or 'the order'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise CliError(f"{file} cannot be searched: {'; '.join(wrong)}") from None
    for each in order.evaluation_sets:
        if each.data is not None and each.data.path is None:
            raise CliError(f"the set {each.name!r} needs data.path: without a service, sets are files")
    return order


def run(options: argparse.Namespace, hub_endpoint: str) -> int:
    """Searches, keeps every trial, and prints the best recipe as YAML, to be merged or ordered. The Hub is
    only asked for the data of built-in tasks of lm_eval.
    """
    order, root = read(options.file), options.file.parent
    from cli.searching import searched  # torch, which a wrong order does not wait for

    out: Path = options.out or options.file.with_suffix(".search")
    found = searched(order, root, out, options, hub_endpoint)
    (out / FOUND).write_text(json.dumps(found, indent=1), encoding="utf-8")
    best = found["best"]
    said = ", ".join(f"{value:.6g}" for value in best["values"])
    sent = ", ".join(f"{value:.6g}" for value in found["as_sent"]["values"] or ()) or "no score"
    print(
        f"best: trial {best['number']} with {said} (as it was sent: {sent}); everything is in {out}",
        file=sys.stderr,
    )
    if said := found["notes"].get("surrogate"):
        print(said, file=sys.stderr)
    if found["front"] or found["predicted"]:
        volume = f", hypervolume {found['hypervolume']['value']:.6g}" if found["hypervolume"] else ""
        told = f"front: {len(found['front'])} measured points, {len(found['predicted'])} predicted{volume}"
        print(f"{told}; `mergery front {out}` lists them and gives any of their recipes", file=sys.stderr)
    print(printed(best["recipe"]), end="")
    return 0


def printed(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML, without what is so by default."""
    plain = Recipe.model_validate(recipe).model_dump(mode="json", exclude_defaults=True)
    return dump_document(plain, flow=False, width=80)
