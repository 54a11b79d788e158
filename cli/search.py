"""`mergery search`: the settings of a recipe with which its result scores best, over models in folders here.

No service is needed; the file is what a service takes as the order of a search.
"""

import argparse
import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cli.errors import CliError
from jobs.candidates import way_of
from jobs.kinds import begun
from jobs.request import SearchRequest
from jobs.sets import EvalSet
from merge.plan import make_plan
from merge.recipe.document import dump_document, load_document
from merge.recipe.recipe import Recipe
from search.drive import Candidate, Trial, drive
from search.result import result_of
from search.trial import Told

TRIALS, FOUND, CANDIDATE = "trials.jsonl", "search.json", "candidate"


class File:
    """The journal of a search in a file: the first line says of which search and when its models were last
    ``written`` to, each further one is a trial.
    """

    def __init__(self, path: Path, search: str, written: Mapping[str, int]) -> None:
        self._path, self._known, self.spent_seconds = path, dict[tuple[str, float], Told](), 0.0
        if not path.is_file() or not _whole_lines(path):  # a kill may have cut the first line short
            path.write_text(json.dumps({"search": search, "written": written}) + "\n", encoding="utf-8")
        first, *rest = _whole_lines(path)
        if first.get("search") != search:
            raise CliError(f"{path} has the trials of another search; name another folder with --out")
        if first.get("written", written) != written:
            raise CliError(
                f"{path} has trials of models that were written to since; name another folder with --out"
            )
        for each in rest:
            self._known[each["key"], each["share"]] = Told.of(each["told"])
            self.spent_seconds = max(self.spent_seconds, each["elapsed"])
        self._begun = time.monotonic() - self.spent_seconds

    def find(self, key: str, share: float) -> Told | None:
        """What an earlier run scored."""
        return self._known.get((key, share))

    def record(self, trial: Trial, elapsed: float) -> None:
        """Nothing more: ``note`` has written it."""

    def note(self, candidate: Candidate, told: Told) -> None:
        """Keeps a trial as soon as it is scored, and says so."""
        said = told.error or ", ".join(f"{value:.6g}" for value in told.values or ())
        point = json.dumps(candidate.ask.point) if candidate.ask.point else "as it was sent"
        print(f"{point}: {said}", file=sys.stderr)
        elapsed = time.monotonic() - self._begun
        row = {"key": candidate.key, "share": candidate.share, "told": told.as_dict(), "elapsed": elapsed}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def opened(path: Path, search: str, written: Mapping[str, int]) -> Iterator[File]:
    """A journal, held against other searches until this process ends at the latest. Raises ``CliError`` where
    another one is at work with it: each would overwrite what the other is about to score.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(
                f"another search is at work in {path.parent}; wait for its end, or name another folder with "
                "--out"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield File(path, search, written)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; one that a kill cut short is cut away. Raises ``CliError`` where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise CliError(
            f"{path} is no list of trials, or is damaged; remove it, or name another folder with --out"
        ) from None


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
    out: Path = options.out or options.file.with_suffix(".search")
    found = _search(order, root, out, options, hub_endpoint)
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


def _search(
    order: SearchRequest, root: Path, out: Path, options: argparse.Namespace, hub_endpoint: str
) -> dict[str, Any]:
    from merge.gather import gather
    from merge.kernels.device import check_device
    from merge.local import index_models, model_folders
    from merge.results.finish import (
        inputs_manifest,  # torch and transformers, which a wrong file does not wait for
    )
    from merge.running.stamps import input_stamps, last_written
    from worker.candidates import Bench, Nothing
    from worker.device import free_memory
    from worker.makers import Ground, Sets
    from worker.measures import Heads
    from worker.scorer import Subject

    recipe = begun(order)
    models, folders = index_models(recipe, root), model_folders(recipe, root)
    memory, device = options.memory, options.device
    check_device(device)
    plan = make_plan(recipe, models, budget=memory)
    way = way_of(plan, order.evaluation_sets).within(free_memory(device))
    bodies = {each.name: _body(each, root) for each in order.evaluation_sets}
    tasks = [_task(each, bodies[each.name]) for each in order.evaluation_sets]
    document = order.recipe.model_dump(mode="json")
    statistics = (
        gather(plan, folders, root, out, device=device, memory_bytes=memory)
        if plan.statistics.folders
        else {}
    )
    stamps = input_stamps(plan, folders)
    search = _digest(order, bodies, inputs_manifest(plan, folders, {}), statistics)
    heads = Heads(Subject(folders["base"], {}) if "base" in folders else None, device)
    ground = Ground(
        folders,
        statistics,
        heads,
        out / CANDIDATE,
        device,
        memory,
        options.threads,
        hub_endpoint=hub_endpoint,
    )
    if way.why is not None:
        print(f"candidates are written, one at a time: {way.why}", file=sys.stderr)
    with (
        opened(out / TRIALS, search, last_written(stamps, ())) as journal,
        ground.maker(plan, tasks, written=way.why is not None) as maker,
    ):
        objectives = order.search.objectives
        bench = Bench(maker, Sets(tasks), models, statistics, objectives, memory, Nothing())
        ended = drive(
            order.search,
            document,
            lambda wanted: [_one(bench, journal, stamps, each) for each in wanted],
            journal,
            clock=time.monotonic,
        )
    return result_of(order.search, document, ended) | {"candidates": {"made": way.made, "why": way.why}}


def _one(bench: Any, journal: File, stamps: Sequence[Any], candidate: Candidate) -> Told:
    """A candidate's scores, kept where the models are still those that the search began with."""
    told: Told = bench.told(candidate)
    for stamp in stamps:
        stamp.check()
    journal.note(candidate, told)
    return told


def _body(asked: EvalSet, root: Path) -> bytes:
    """The items of a set; a built-in task of lm_eval has none here."""
    path = asked.data.path if asked.data is not None else None
    return b"" if path is None else (root / path).read_bytes()


def _task(asked: EvalSet, body: bytes) -> Any:
    from scoring.tasks import parse_task

    path = asked.data.path if asked.data is not None else None
    file = asked.name if path is None else Path(path).name
    return parse_task(asked.name, asked.kind, body, file=file, limit=asked.limit, settings=asked.asked)


def _digest(
    order: SearchRequest,
    bodies: Mapping[str, bytes],
    inputs: Mapping[str, Any],
    statistics: Mapping[str, Path],
) -> str:
    """What the scores of a recipe depend on besides the recipe: sets, objectives, the models' files, and what
    was measured of these, which lies in folders called by its digest.
    """
    facts: Sequence[Any] = (
        order.evaluate.model_dump(mode="json"),
        [each.model_dump() for each in order.search.objectives],
        inputs,
        {key: folder.name for key, folder in statistics.items()},
        {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()},
    )
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
