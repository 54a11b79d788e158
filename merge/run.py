"""Carries out a plan: reads blocks, merges them, writes shards in place; stops, fails and goes on without
loss.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch

from merge.append import STATE_FILE, state_of
from merge.blocks import Crew, kept_memory, settled_objects, torch_threads
from merge.bundle.making import BundleWork
from merge.bundle.story import Tools, bundle_shards, finish_bundle
from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.writer import ShardWriter
from merge.errors import BudgetTooSmall, InputChanged, OutputExists
from merge.estimate import compute_bytes, models_held, whole_entries, workspace_bytes
from merge.finish import (
    MANIFEST_FILE,
    check_bases,
    inputs_manifest,
    read_manifest,
    sync_folder,
    write_json,
    write_manifest,
    write_small_files,
    write_survey,
)
from merge.forms.factored import factor_bytes
from merge.journal import FILE, Finished, Journal, open_journal, partial_folder, sha256_of
from merge.meter import Meter, Silent
from merge.methods import load as load_methods
from merge.plan import Plan
from merge.recipe_stages import key_in, of_stage
from merge.report import OutputFile, Progress, Report, ShardDone, Together
from merge.results.adapter import make_adapter
from merge.results.moe import make_routers
from merge.sizing import Sizes, sizes
from merge.stage_reader import FOLDER as STAGES
from merge.stage_reader import Alone, Lent, Stages
from merge.stages import Stage
from merge.stamps import Stamp, input_stamps
from merge.statistics import Informed, open_statistics, with_statistics
from merge.survey.measure import Extent, Surveyor
from merge.tables import open_tables
from merge.tokenizer.making import RowMaker
from merge.work import Work

WaitFor = Callable[[str, str, int, int], None]
NOTHING_PINNED: Mapping[str, Mapping[str, str]] = {}


def run(
    plan: Plan,
    folders: Mapping[str, Path],
    out: Path,
    *,
    budget_bytes: int,
    threads: int,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_shard: Callable[[ShardDone], None] = lambda _: None,
    wait_for: WaitFor | None = None,
    pinned: Mapping[str, Mapping[str, str]] = NOTHING_PINNED,
    survey: Extent = "sampled",
    statistics: Mapping[str, Path] | None = None,
    lent: Lent | None = None,
    digests: bool = True,
) -> Report:
    """Merges into the folder ``out``, which appears when everything in it is complete.

    ``folders`` holds the model of every key of ``plan.models`` that is read, and ``<key>+adapter`` for
    adapters. Until the end the work is in ``<out>.partial``; shards finished there by an earlier run of the
    same plan on the same inputs are verified and kept. ``survey`` says how much of the weights the merge
    report is measured on, if there is to be one. ``statistics`` are the folders of what ``plan.statistics``
    names, by model key. Where files are still on their way into ``folders`` (each has its full size from the
    start), ``wait_for(folder key, file, begin, end)`` returns when these bytes are there; files of folders
    that are ``pinned``, by file, to what identifies them are not sampled. ``on_progress`` and
    ``should_stop`` are called from worker threads, one at a time. ``lent`` is what the stages of a recipe
    give to a stage that is written. Without ``digests`` shards get no sha256, and none is taken over from an
    earlier run. Raises ``Stopped``, ``NotFinite``, ``TensorsDiffer``,
    ``InputChanged``, ``OutputExists``, ``DiskFull`` and others of ``MergeError``.
    """
    load_methods()
    stamps = input_stamps(plan, folders)
    measured = open_statistics(plan.statistics.folders, statistics or {})
    inputs = with_statistics(inputs_manifest(plan, folders, pinned), measured)
    check_bases(plan, inputs)
    if out.exists():
        return _already_there(plan, inputs, out)
    partial = partial_folder(out)
    journal = open_journal(partial, plan.digest, inputs)
    held = lent.held_bytes if lent is not None else plan.staged.held_bytes(plan.recipe)
    fitted = fitted_sizes(plan, budget_bytes, max(1, threads), held)
    members = {name: member.outputs for name, member in plan.members.items()}
    together = Together({**members, **plan.staged.written(), "": plan.outputs}, on_progress)
    meter = Meter(plan, together.of(""), should_stop)
    again = bound(
        run,
        budget_bytes=budget_bytes,
        threads=threads,
        device=device,
        should_stop=should_stop,
        survey="none",
    )
    with ExitStack() as stack:
        stack.enter_context(kept_memory())
        stack.enter_context(settled_objects())
        stack.enter_context(torch_threads(1))
        readers = {
            key: stack.enter_context(_reader(plan, key, folders, wait_for))
            for key in plan.models
            if key in folders
        }
        if lent is None:
            stages = Stages(plan, readers, folders, partial / STAGES, stack)
            write = bound(_write_stage, again, plan, together, wait_for, pinned)
            stages.open(write, bound(_computing, meter, torch.device(device)))
            lent = stages.lent(plan)
        readers, folders = {**readers, **lent.readers}, {**folders, **lent.folders}
        informed = Informed(
            {key: stack.enter_context(held) for key, held in measured.items()},
            {key: index.config for key, index in plan.models.items()},
        )
        workers = stack.enter_context(Crew(fitted.threads))
        surveyor = Surveyor(survey, len(plan.outputs))
        tables = stack.enter_context(
            open_tables(plan, readers, partial, max(1, threads), budget_bytes, meter.check)
        )
        work = Work(
            plan, readers, workers, fitted, meter, torch.device(device), surveyor, tables, informed, digests
        )
        work.measure_global(journal)
        most = work.side_by_side if wait_for is None else 1
        weights, small, told = _made(plan, folders, work, journal, budget_bytes, on_shard, most)
    if plan.bundle is not None:
        run_member = bound(_run_member, again, plan, together, wait_for, pinned)
        take = bound(_hand_over, journal=journal, reused=False, on_shard=on_shard)
        tools = Tools(take, run_member, wait_for, meter.check)
        more, small, told = finish_bundle(plan, inputs, folders, journal, tools)
        weights += more
    if plan.vocabulary is not None and tables is not None:
        told = {**told, "vocabulary": {**plan.vocabulary.summary(), "made": list(tables.told)}}
    if survey != "none":
        small += write_survey(plan, survey, journal, partial, statistics or {})
    if wait_for is None:
        _check_unchanged(stamps, partial)
    manifest, files = write_manifest(plan, inputs, weights, small, partial, torch.device(device).type, told)
    RowMaker.clean(partial)
    shutil.rmtree(partial / STAGES, ignore_errors=True)
    sync_folder(partial)
    partial.rename(out)
    sync_folder(out.parent)
    (out / FILE).unlink()
    return Report(out, tuple(files), manifest, len(plan.outputs), meter.bytes_done)


def _made(
    plan: Plan,
    folders: Mapping[str, Path],
    work: Work,
    journal: Journal,
    budget: int,
    on_shard: Callable[[ShardDone], None],
    most: int,
) -> tuple[list[OutputFile], list[str], dict[str, Any]]:
    """The weight files, the names of the small ones, and facts to be told, in the form that is asked for. At
    most so many files of a checkpoint are written side by side.
    """
    if plan.adapter is not None:
        made, small, told = make_adapter(plan, work, journal, budget)
        return [_hand_over(made, journal, False, on_shard)], small, told
    if plan.bundle is not None:
        layouts, doing = bundle_shards(plan, work, journal.folder)
        return list(_shards(layouts, doing, journal, on_shard)), [], {}
    if plan.moe is not None:
        work.take(make_routers(plan, work.readers, folders, work.meter.check))
    weights = list(_shards(plan.shards, work, journal, on_shard, most))
    small = write_small_files(plan, folders, journal.folder)
    state = state_of(plan.recipe, work.state())
    if state is not None:
        write_json(journal.folder / STATE_FILE, state.as_dict())
        small.append(STATE_FILE)
    return weights, small, {}


def _write_stage(
    again: Callable[..., Report],
    plan: Plan,
    together: Together,
    wait_for: WaitFor | None,
    pinned: Mapping[str, Mapping[str, str]],
    name: str,
    folders: Mapping[str, Path],
    at: Path,
    lent: Lent,
) -> None:
    """Merges a stage into the folder ``at``; ``again`` is ``run`` with what holds for the whole recipe."""
    again(
        plan.staged.stages[name].plan,
        folders,
        at,
        on_progress=together.of(name),
        wait_for=None if wait_for is None else bound(_wait_in, wait_for, name),
        pinned=of_stage(pinned, name),
        lent=lent,
    )


def _run_member(
    again: Callable[..., Report],
    plan: Plan,
    together: Together,
    wait_for: WaitFor | None,
    pinned: Mapping[str, Mapping[str, str]],
    member: str,
    folders: Mapping[str, Path],
    at: Path,
) -> Report:
    """Makes the adapter of a twin's member in the folder ``at``."""
    own = {key: pinned[key] for key in (member, f"{member}+adapter") if key in pinned}
    return again(
        plan.members[member], folders, at, on_progress=together.of(member), wait_for=wait_for, pinned=own
    )


def _wait_in(wait_for: WaitFor, stage: str, key: str, file: str, begin: int, end: int) -> None:
    wait_for(key_in(stage, key), file, begin, end)


def _computing(meter: Meter, device: torch.device, stage: Stage, readers: Mapping[str, TensorReader]) -> Work:
    """The arithmetic of a stage that is computed while something else is merged."""
    small = Sizes(stage.block, 1, 1, stage.held_bytes)
    plan, alone = stage.plan, Alone()
    unseen = Surveyor("none", len(plan.outputs))
    return Work(plan, readers, alone, small, Silent(plan, meter), device, unseen, None, Informed({}, {}))


def fitted_sizes(plan: Plan, budget: int, threads: int, lent_bytes: int) -> Sizes:
    """Blocks and threads that stay under ``budget`` bytes. Whole tensors too are merged side by side, each on
    one thread: products and decompositions on several give other bytes.
    """
    models, entry = models_held(plan.outputs, plan.steps), compute_bytes(plan.recipe)
    whole, _ = whole_entries(plan.granularity, plan.outputs)
    workspace = workspace_bytes(plan.steps, plan.outputs)
    fit = sizes if plan.adapter is None else plan.adapter.sizes
    beside = lent_bytes + plan.statistics.held_bytes + factor_bytes(plan.recipe, plan.models, plan.outputs)
    fitted = fit(models, entry, whole, threads, budget, workspace, beside)
    if fitted is None:
        raise BudgetTooSmall(
            f"{budget} bytes of memory are too few for {plan.granularity} blocks; give more."
        )
    return fitted


def _check_unchanged(stamps: Sequence[Stamp], partial: Path) -> None:
    """Where an input was written to, nothing that was made of it can be gone on with."""
    try:
        for stamp in stamps:
            stamp.check()
    except InputChanged:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _already_there(plan: Plan, inputs: Mapping[str, Any], out: Path) -> Report:
    """A finished output of the same plan and inputs is the result; anything else is in the way."""
    found = read_manifest(out)
    if found is None or found.get("plan_sha256") != plan.digest or found.get("inputs") != inputs:
        raise OutputExists(
            f"{out} is already there and is not this merge; choose another folder or remove it."
        )
    (out / FILE).unlink(missing_ok=True)
    files = [
        OutputFile(name, f["sha256"] or "", f["size"], reused=True) for name, f in found["files"].items()
    ]
    own = out / MANIFEST_FILE
    files.append(OutputFile(MANIFEST_FILE, sha256_of(own), own.stat().st_size, reused=True))
    return Report(out, tuple(files), found, len(plan.outputs), 0)


def _reader(plan: Plan, key: str, folders: Mapping[str, Path], wait_for: WaitFor | None) -> TensorReader:
    adapter = f"{key}+adapter"
    waits = (None, None) if wait_for is None else (bound(wait_for, key), bound(wait_for, adapter))
    return TensorReader(folders[key], plan.models[key], folders.get(adapter), waits)


def _shards(
    layouts: Sequence[ShardLayout],
    work: Work | BundleWork,
    journal: Journal,
    on_shard: Callable[[ShardDone], None],
    most: int = 1,
) -> list[OutputFile]:
    """Writes the shards, at most ``most`` side by side, or takes over those that an earlier run has finished.
    While some are made durable, the next are computed.
    """
    found: list[OutputFile] = []
    pending: list[Future[Finished]] = []

    def hand_over(left: int) -> None:
        while len(pending) > left:
            done = pending.pop(0).result()
            journal.add_shard(done)
            found.append(_hand_over(done, journal, False, on_shard))

    with ThreadPoolExecutor(1, "durable") as closer:
        for group in _groups(layouts, journal, most):
            done = journal.shards.get(group[0].file)
            if done is not None:
                work.skip(group[0])
                hand_over(0)
                found.append(_hand_over(done, journal, True, on_shard))
                continue
            try:
                writers = work.write(group, journal.folder)
            except BaseException:
                for each in pending:
                    journal.add_shard(each.result())
                raise
            for layout, writer in zip(group, writers, strict=True):
                told = (work.measured(layout), work.facts(layout))
                pending.append(closer.submit(_durable, writer, *told))
            hand_over(len(group))
        hand_over(0)
    return found


def _groups(layouts: Sequence[ShardLayout], journal: Journal, most: int) -> Iterator[list[ShardLayout]]:
    """So many consecutive shards together, or one more than to leave the last one alone; those that an
    earlier run has finished alone.
    """
    group: list[ShardLayout] = []
    for at, layout in enumerate(layouts, 1):
        finished = layout.file in journal.shards
        most_here = most + (most > 1 and at == len(layouts))
        if group and (finished or len(group) == most_here):
            yield group
            group = []
        group.append(layout)
        if finished:
            yield group
            group = []
    if group:
        yield group


def _durable(
    writer: ShardWriter, measured: dict[str, list[float]], facts: dict[str, list[float]]
) -> Finished:
    """Makes a shard durable whose entries are all written."""
    with writer:
        written = writer.finish()
    return Finished(written.file, written.size, written.sha256, measured=measured, facts=facts)


def _hand_over(
    done: Finished, journal: Journal, reused: bool, on_shard: Callable[[ShardDone], None]
) -> OutputFile:
    """Tells the caller of a finished file, which it may take away."""
    path = journal.folder / done.file
    if not done.released:
        on_shard(ShardDone(done.file, path, done.sha256, done.size, reused))
        if not path.exists():
            done = replace(done, released=True)
            journal.add_shard(done)
    return OutputFile(done.file, done.sha256, done.size, reused, done.released)
