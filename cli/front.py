"""`mergery front`: the front that a search found, which of its points suits a preference, and its recipe."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.errors import CliError
from cli.search import FOUND, printed
from search.choice import FrontPoint, choose, names_of, points_of
from search.errors import SearchInvalid


def run(options: argparse.Namespace) -> int:
    """Lists the points of a front, or prints the recipe of one as YAML, to be merged or ordered."""
    found, points = read(options.folder)
    if options.preference is not None:
        print(recipe_of(found, _chosen(found, points, options)), end="")
    elif options.place is not None:
        if not 0 <= options.place < len(points):
            raise CliError(f"--place {options.place}: this front has the places 0 to {len(points) - 1}")
        print(recipe_of(found, points[options.place]), end="")
    else:
        for line in listed(found, points):
            print(line)
    return 0


def read(folder: Path) -> tuple[dict[str, Any], list[FrontPoint]]:
    """What a search found, and its points. Raises ``CliError`` where it is no front."""
    path = folder / FOUND if folder.is_dir() else folder
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        front = {"measured": found["front"] or [found["best"]], "predicted": found["predicted"]}
        points = points_of(front)
    except (ValueError, KeyError, TypeError):
        raise CliError(f"{path} is not what a search has found: name the folder of its --out") from None
    if not found["front"] and not found["predicted"]:
        raise CliError(
            f"{path} has one best point and no front: give two objectives or more to grid, tpe, nsga or map"
        )
    return found, points


def listed(found: Mapping[str, Any], points: Sequence[FrontPoint]) -> list[str]:
    """A line for each point: place, whether it was measured, what it scored, where it is."""
    volume = found["hypervolume"]
    head = [f"hypervolume {volume['value']:.6g} over {volume['reference']}"] if volume else []
    names = ", ".join(names_of(found["objectives"]))
    return [*head, f"place  {names} (higher is better)", *map(_line, points)]


def recipe_of(found: Mapping[str, Any], at: FrontPoint) -> str:
    """The recipe of a point as YAML."""
    every = [*(found["front"] or [found["best"]]), *found["predicted"]]
    return printed(every[at.place]["recipe"])


def _line(at: FrontPoint) -> str:
    values = ", ".join(f"{value:.6g}" for value in at.values)
    name = "predicted" if at.number is None else f"trial {at.number}"
    return f"{at.place:<5}  {values}  {name}  {json.dumps(at.point) if at.point else 'as it was sent'}"


def _chosen(
    found: Mapping[str, Any], points: Sequence[FrontPoint], options: argparse.Namespace
) -> FrontPoint:
    try:
        preference = [float(each) for each in options.preference.split(",")]
    except ValueError:
        raise CliError(
            f"--preference {options.preference}: write one number an objective, such as 2,1"
        ) from None
    try:
        chosen = choose(points, preference, names_of(found["objectives"]), options.among)
    except SearchInvalid as error:
        raise CliError(str(error)) from None
    print(f"place {chosen.at.place}: {chosen.why}", file=sys.stderr)
    return chosen.at
