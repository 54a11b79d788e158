"""Carries a search out over models in folders here: plans, measures, then makes and scores candidates. Loads
torch and transformers, which an order that is wrong does not wait for.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.trials import File, opened
from jobs.candidates import way_of
from jobs.kinds import begun
from jobs.request import SearchRequest
from jobs.sets import EvalSet
from merge.gather import gather
from merge.kernels.device import check_device
from merge.local import index_models, model_folders
from merge.plan import Plan, make_plan
from merge.results.finish import inputs_manifest
from merge.running.stamps import Stamp, input_stamps, last_written
from scoring.tasks import Task, parse_task
from search.drive import Candidate, drive
from search.result import result_of
from search.trial import Told
from worker.candidates import Bench, Nothing
from worker.device import free_memory
from worker.makers import Ground, Sets
from worker.measures import Heads
from worker.scorer import Subject

TRIALS, CANDIDATE = "trials.jsonl", "candidate"


def searched(
    order: SearchRequest, root: Path, out: Path, options: argparse.Namespace, hub_endpoint: str
) -> dict[str, Any]:
    """What a search finds; every trial is kept in ``out``. Paths of the order begin at ``root``."""
    recipe, memory, device = begun(order), options.memory, options.device
    models, folders = index_models(recipe, root), model_folders(recipe, root)
    check_device(device)
    plan = make_plan(recipe, models, budget=memory)
    way = way_of(plan, order.evaluation_sets).within(free_memory(device))
    bodies = {each.name: _body(each, root) for each in order.evaluation_sets}
    tasks = [_task(each, bodies[each.name]) for each in order.evaluation_sets]
    statistics = _measured(plan, folders, root, out, options)
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
    document = order.recipe.model_dump(mode="json")
    with (
        opened(out / TRIALS, search, last_written(stamps, ())) as journal,
        ground.maker(plan, tasks, written=way.why is not None) as maker,
    ):
        bench = Bench(maker, Sets(tasks), models, statistics, order.search.objectives, memory, Nothing())
        ended = drive(
            order.search,
            document,
            lambda wanted: [_one(bench, journal, stamps, each) for each in wanted],
            journal,
            clock=time.monotonic,
        )
    return result_of(order.search, document, ended) | {"candidates": {"made": way.made, "why": way.why}}


def _measured(
    plan: Plan, folders: Mapping[str, Path], root: Path, out: Path, options: argparse.Namespace
) -> Mapping[str, Path]:
    if not plan.statistics.folders:
        return {}
    return gather(plan, folders, root, out, device=options.device, memory_bytes=options.memory)


def _one(bench: Bench, journal: File, stamps: Sequence[Stamp], candidate: Candidate) -> Told:
    """A candidate's scores, kept where the models are still those that the search began with."""
    told = bench.told(candidate)
    for stamp in stamps:
        stamp.check()
    journal.note(candidate, told)
    return told


def _body(asked: EvalSet, root: Path) -> bytes:
    """The items of a set; a built-in task of lm_eval has none here."""
    path = asked.data.path if asked.data is not None else None
    return b"" if path is None else (root / path).read_bytes()


def _task(asked: EvalSet, body: bytes) -> Task:
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
