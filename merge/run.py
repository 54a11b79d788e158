"""Carries out a plan: reads blocks, merges them, writes shards in place; stops, fails and goes on without
loss.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch

from merge.append import MANIFEST_FILE, STATE_FILE, state_of
from merge.bundle.making import WaitFor
from merge.bundle.story import Tools, bundle_shards, finish_bundle
from merge.checkpoint.reader import TensorReader
from merge.errors import BudgetTooSmall, InputChanged, OutputExists
from merge.journal import FILE, Journal, claimed, open_journal, partial_folder, sha256_of
from merge.methods import load as load_methods
from merge.plan import Plan
from merge.planning.sizing import Sizes, sizes
from merge.planning.stages import Stage
from merge.recipe.stages import ADAPTER, key_in, of_stage
from merge.report import OutputFile, Progress, Report, ShardDone, Together
from merge.results.adapter import make_adapter
from merge.results.finish import (
    check_bases,
    inputs_manifest,
    read_manifest,
    survey_extent,
    sync_folder,
    write_json,
    write_manifest,
    write_small_files,
    write_survey,
)
from merge.results.moe import make_routers
from merge.running.blocks import kept_memory, one_torch_thread, settled_objects
from merge.running.crew import Crew
from merge.running.meter import Meter, Silent
from merge.running.stamps import Stamp, input_stamps, last_written
from merge.running.statistics import Informed, StatisticsFolder, open_statistics, with_statistics
from merge.running.survey.measure import Extent, Surveyor
from merge.running.tables import open_tables
from merge.shards import hand_over, write_shards
from merge.stage_reader import FOLDER as STAGES
from merge.stage_reader import Alone, Lent, Stages
from merge.tokenizer.making import RowMaker
from merge.work import Work

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
    within: bool = False,
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
    earlier run. A run ``within`` another leaves it to that one to see whether inputs were written to since.
    Raises ``Stopped``, ``NotFinite``, ``TensorsDiffer``,
    ``InputChanged``, ``OutputExists``, ``OutputBusy``, ``DiskFull`` and others of ``MergeError``.
    """
    load_methods()
    stamps = input_stamps(plan, folders)
    measured = open_statistics(plan.statistics.folders, statistics or {})
    inputs = with_statistics(inputs_manifest(plan, folders, pinned), measured)
    check_bases(plan, inputs)
    written = {} if within else last_written(stamps, pinned)
    if out.exists():
        return _already_there(plan, inputs, max(written.values(), default=0), out, survey, digests)
    with claimed(partial_folder(out)):
        journal = open_journal(partial_folder(out), plan.digest, inputs, written, survey)
        this = _Run(
            plan, journal, budget_bytes, max(1, threads), device, on_progress, should_stop, on_shard,
            wait_for, pinned,
        )  # fmt: skip
        made = this.merged(folders, inputs, lent, measured, survey, digests)
        if survey != "none":
            made.small += write_survey(plan, survey, journal, journal.folder, statistics or {})
        if wait_for is None:
            _check_unchanged(stamps, journal.folder)
        return this.published(out, inputs, made)


@dataclass
class _Made:
    """The weight files, the names of the small ones, and facts to be told."""

    weights: list[OutputFile]
    small: list[str]
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """A run that goes on: what was asked of ``run``, as its parts and the runs within it need it."""

    plan: Plan
    journal: Journal
    budget: int
    threads: int
    device: str
    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    on_shard: Callable[[ShardDone], None]
    wait_for: WaitFor | None
    pinned: Mapping[str, Mapping[str, str]]

    @cached_property
    def together(self) -> Together:
        """Tells of this run and those within it as one."""
        members = {name: member.outputs for name, member in self.plan.members.items()}
        parts = {**members, **self.plan.staged.written(), "": self.plan.outputs}
        return Together(parts, self.on_progress)

    @cached_property
    def meter(self) -> Meter:
        return Meter(self.plan, self.together.of(""), self.should_stop)

    def merged(
        self,
        folders: Mapping[str, Path],
        inputs: Mapping[str, Any],
        lent: Lent | None,
        measured: Mapping[str, StatisticsFolder],
        survey: Extent,
        digests: bool,
    ) -> _Made:
        """Everything but the merge report and the manifest, in the journal's folder."""
        plan, device = self.plan, torch.device(self.device)
        held = lent.held_bytes if lent is not None else plan.staged.held_bytes(plan.recipe)
        fitted = fitted_sizes(plan, self.budget, self.threads, held)
        surveyor = Surveyor(survey, len(plan.outputs))
        with ExitStack() as stack:
            for quiet in (kept_memory(fitted.block), settled_objects(), one_torch_thread()):
                stack.enter_context(quiet)
            readers, folders = self._opened(folders, lent, stack)
            informed = Informed(
                {key: stack.enter_context(held) for key, held in measured.items()},
                {key: index.config for key, index in plan.models.items()},
            )
            workers = stack.enter_context(Crew(fitted.threads))
            rows = open_tables(
                plan, readers, self.journal.folder, self.threads, self.budget, self.meter.check
            )
            tables = stack.enter_context(rows)
            work = Work(
                plan, readers, workers, fitted, self.meter, device, surveyor, tables, informed, digests
            )
            work.measure_global(self.journal)
            made = self._made(work, folders)
        if plan.bundle is not None:
            made = self._with_bundle(made, inputs, folders)
        if plan.vocabulary is not None and tables is not None:
            made.told["vocabulary"] = {**plan.vocabulary.summary(), "made": list(tables.told)}
        return made

    def _opened(
        self, folders: Mapping[str, Path], lent: Lent | None, stack: ExitStack
    ) -> tuple[dict[str, TensorReader], dict[str, Path]]:
        """Readers and folders of all models, those that stages give among them."""
        readers = {
            key: stack.enter_context(_reader(self.plan, key, folders, self.wait_for))
            for key in self.plan.models
            if key in folders
        }
        if lent is None:
            stages = Stages(self.plan, readers, folders, self.journal.folder / STAGES, stack)
            stages.open(self._write_stage, self._computing)
            lent = stages.lent(self.plan)
        return {**readers, **lent.readers}, {**folders, **lent.folders}

    def _made(self, work: Work, folders: Mapping[str, Path]) -> _Made:
        """The files in the form that is asked for; several of a checkpoint are written side by side where
        nothing has to be waited for.
        """
        plan, journal, on_shard = self.plan, self.journal, self.on_shard
        if plan.adapter is not None:
            adapter, small, told = make_adapter(plan, work, journal, self.budget)
            return _Made([hand_over(adapter, journal, on_shard)], small, told)
        if plan.bundle is not None:
            layouts, making = bundle_shards(plan, work, journal.folder)
            return _Made(write_shards(layouts, making, journal, on_shard), [])
        if plan.moe is not None:
            work.take(make_routers(plan, work.readers, folders, self.meter.check))
        most = work.side_by_side if self.wait_for is None else 1
        weights = write_shards(plan.shards, work, journal, on_shard, most)
        small = write_small_files(plan, folders, journal.folder)
        state = state_of(plan.recipe, work.state())
        if state is not None:
            write_json(journal.folder / STATE_FILE, state.as_dict())
            small.append(STATE_FILE)
        return _Made(weights, small)

    def _with_bundle(self, made: _Made, inputs: Mapping[str, Any], folders: Mapping[str, Path]) -> _Made:
        """The tensors of a bundle with all that comes with them."""
        take = bound(hand_over, journal=self.journal, on_shard=self.on_shard)
        tools = Tools(take, self._run_member, self.wait_for, self.meter.check)
        more, small, told = finish_bundle(self.plan, inputs, folders, self.journal, tools)
        return _Made(made.weights + more, small, told)

    def published(self, out: Path, inputs: Mapping[str, Any], made: _Made) -> Report:
        """Writes the manifest and gives the folder its name: the result is there, whole."""
        plan, folder, kind = self.plan, self.journal.folder, torch.device(self.device).type
        manifest, files = write_manifest(plan, inputs, made.weights, made.small, folder, kind, made.told)
        RowMaker.clean(folder)
        shutil.rmtree(folder / STAGES, ignore_errors=True)
        sync_folder(folder)
        folder.rename(out)
        sync_folder(out.parent)
        (out / FILE).unlink()
        return Report(out, tuple(files), manifest, len(plan.outputs), self.meter.bytes_done)

    def _again(self, plan: Plan, folders: Mapping[str, Path], at: Path, name: str, **how: Any) -> Report:
        """A run within this one, told of under its name."""
        return run(
            plan,
            folders,
            at,
            budget_bytes=self.budget,
            threads=self.threads,
            device=self.device,
            on_progress=self.together.of(name),
            should_stop=self.should_stop,
            survey="none",
            within=True,
            **how,
        )

    def _write_stage(self, name: str, folders: Mapping[str, Path], at: Path, lent: Lent) -> None:
        """Merges a stage into the folder ``at``."""
        waits = None if self.wait_for is None else bound(_wait_in, self.wait_for, name)
        plan, pinned = self.plan.staged.stages[name].plan, of_stage(self.pinned, name)
        self._again(plan, folders, at, name, wait_for=waits, pinned=pinned, lent=lent)

    def _run_member(self, member: str, folders: Mapping[str, Path], at: Path) -> Report:
        """Makes the adapter of a twin's member in the folder ``at``."""
        own = {key: self.pinned[key] for key in (member, member + ADAPTER) if key in self.pinned}
        plan = self.plan.members[member]
        return self._again(plan, folders, at, member, wait_for=self.wait_for, pinned=own)

    def _computing(self, stage: Stage, readers: Mapping[str, TensorReader]) -> Work:
        """The arithmetic of a stage that is computed while something else is merged."""
        small = Sizes(stage.plan.demand.block, 1, 1, stage.held_bytes)
        plan, meter = stage.plan, Silent(stage.plan, self.meter)
        device, unseen = torch.device(self.device), Surveyor("none", len(plan.outputs))
        return Work(plan, readers, Alone(), small, meter, device, unseen, None, Informed({}, {}))


def _wait_in(wait_for: WaitFor, stage: str, key: str, file: str, begin: int, end: int) -> None:
    wait_for(key_in(stage, key), file, begin, end)


def fitted_sizes(plan: Plan, budget: int, threads: int, lent_bytes: int) -> Sizes:
    """Blocks and threads that stay under ``budget`` bytes. Whole tensors too are merged side by side, each on
    one thread: products and decompositions on several give other bytes.
    """
    fit = sizes if plan.adapter is None else plan.adapter.sizes
    beside = lent_bytes + plan.statistics.held_bytes
    fitted = fit(plan.demand, threads, budget, beside)
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


def _already_there(
    plan: Plan, inputs: Mapping[str, Any], written: int, out: Path, survey: Extent, digests: bool
) -> Report:
    """A finished output of the same plan and inputs is the result, unless an input was ``written`` to after
    it, or it lacks what is asked for now; anything else is in the way.
    """
    found = read_manifest(out)
    if found is None or found.get("plan_sha256") != plan.digest or found.get("inputs") != inputs:
        raise OutputExists(
            f"{out} is already there and is not this merge; choose another folder or remove it."
        )
    if written > (out / MANIFEST_FILE).stat().st_mtime_ns:
        raise OutputExists(
            f"{out} is already there, but a model was written to after it was made; choose another folder or "
            "remove it."
        )
    is_digested = all(file["sha256"] for file in found["files"].values())
    if survey not in ("none", survey_extent(out)) or (digests and not is_digested):
        raise OutputExists(
            f"{out} is already there, made with another merge report or without digests; choose another "
            "folder or remove it."
        )
    (out / FILE).unlink(missing_ok=True)
    files = [
        OutputFile(name, f["sha256"] or "", f["size"], reused=True, released=not (out / name).exists())
        for name, f in found["files"].items()
    ]
    own = out / MANIFEST_FILE
    files.append(OutputFile(MANIFEST_FILE, sha256_of(own), own.stat().st_size, reused=True))
    return Report(out, tuple(files), found, len(plan.outputs), 0)


def _reader(plan: Plan, key: str, folders: Mapping[str, Path], wait_for: WaitFor | None) -> TensorReader:
    adapter = key + ADAPTER
    waits = (None, None) if wait_for is None else (bound(wait_for, key), bound(wait_for, adapter))
    return TensorReader(folders[key], plan.models[key], folders.get(adapter), waits)
