"""The story of one merge job, in order: plan, download, measure, merge, check and score, push or keep.

Every step can be done again: a later attempt finds the downloads and shards that are there and goes on.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from hub.delivery import Delivery
from hub.errors import Tainted
from hub.upload import MANIFEST, CommitResult, Push
from jobs import recording
from jobs.append import STATE
from jobs.evaluating import disk_bytes, left_out, over_base_bytes, reads_whole, result_bytes, told
from jobs.fetching import streams
from jobs.kinds import naming, pin_sets, require_fit, sets_of
from jobs.pinned import PinnedInput
from jobs.planning import Planned
from jobs.request import ModelOrder
from jobs.scratch import bytes_in
from jobs.sets import EvalSet
from jobs.submit import check_publishing
from merge.append import STATE_FILE
from merge.plan import Plan
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER
from merge.report import Progress, Report, ShardDone
from merge.run import run as run_merge
from scoring.harness.task import HarnessTask
from worker import device as devices
from worker.artifacts import artifact_folder, keep
from worker.attempt import Attempt
from worker.cards import CARD, bundle_of, survey_of, write_card
from worker.errors import CheckImpossible, DiskFull, OutputUnsafe
from worker.evaluation import Evaluator, Verdict
from worker.given_back import BASE, Desk, Means, is_whole
from worker.inputs import Arrivals, bring, wanted_files
from worker.known import KnownCandidates, are_listed, base_of
from worker.makers import WHOLE, Part
from worker.measures import Heads
from worker.scratch import ensure_room
from worker.subjects import obstacle, outcomes_of, parents_of
from worker.uploads import Uploads

log = structlog.get_logger("worker.merge_job")


@dataclass
class MergeJob(Attempt):
    """One attempt. ``request`` is the caller's order, ``recipe`` its recipe, pinned as far as is known."""

    request: ModelOrder
    recipe: Recipe
    push: Push | None = field(default=None, init=False)
    is_lean: bool = field(default=False, init=False)
    told: dict[str, Any] = field(default_factory=dict, init=False)
    sets: tuple[EvalSet, ...] = field(default=(), init=False)

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        planned = self._plan()
        self.told = bundle_of(planned.plan)
        done = self._open_push()
        if done is not None:
            self.told |= self._state_pushed(done)
            return self._published(done, None)
        kept = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        if kept.exists():
            self.told |= state_in(kept)
            return self._kept(kept, None)
        evaluator = Evaluator.prepare(
            self.workshop, self.context, self.job, self.request, self.sets, self.hub
        )
        self.measurer.prepare(planned, self.hub)
        self._check_possible(evaluator, planned.plan)
        self._make_room(planned)
        with ExitStack() as stack:
            arrivals = self._bring(planned, stack)
            folders = arrivals.folders
            known = self.planner.digests(planned, self.job.tenant_id)
            statistics = self.measurer.measure(planned, folders, known)
            uploads = self._open_uploads(stack)
            report = self._merge(planned, arrivals, statistics, uploads)
            self.told |= state_in(report.out)
            if (survey := survey_of(report.out)) is not None:
                self.context.write(recording.record_report, survey)
            verdict = self._evaluate(evaluator, planned, folders, report)
            self._remember(planned, folders, statistics, evaluator, verdict)
            title = self.request.output.repo or self.job.id
            write_card(report, planned, verdict, title, self.hub.session.public)
            if self.push is None or uploads is None:
                return self._keep(report, kept, verdict)
            return self._publish(self.push, report, uploads, verdict)

    def _plan(self) -> Planned:
        """Pins and looks at the models again: headers only, and by now the recipe names commits."""
        self.context.checkpoint()
        whole = reads_whole(self.request.evaluate, self.recipe)
        planned = self.planner.plan(self.recipe, self.token, self.job.tenant_id, whole=whole)
        check_publishing(self.request, planned.inputs)
        self.sets = sets_of(self.request, self.job.plan)
        require_fit(self.sets, planned)
        planned = told(planned, self.request.evaluate)
        if self.job.plan is None:
            self.sets = pin_sets(self.sets, self.asking)
            planned = naming(planned, self.sets)
            self.context.write(recording.record_inputs, [each.row() for each in planned.inputs])
            self.context.write(recording.record_plan, planned.summary, planned.queue)
        return replace(planned, plan=relabelled(planned.plan, planned.inputs))

    def _open_push(self) -> CommitResult | None:
        """Makes or checks the target before anything expensive; its commit, if an earlier attempt made it."""
        output = self.request.output
        if output.repo is None or output.publish == "never":
            return None
        self.push = Push(
            self.hub,
            output.repo,
            private=output.private,
            revision=output.revision,
            job_id=self.job.id,
            overwrite=output.overwrite,
        )
        return self.push.prepare()

    def _state_pushed(self, done: CommitResult) -> dict[str, Any]:
        """As ``state_in``, of what an earlier attempt has pushed."""
        snapshot = self.hub.pin(str(self.request.output.repo), done.sha)
        if not any(file.path == STATE_FILE for file in snapshot.files):
            return {}
        return {STATE: json.loads(self.hub.texts(snapshot, [STATE_FILE])[STATE_FILE])}

    def _check_possible(self, evaluator: Evaluator, plan: Plan) -> None:
        """Refuses, before anything is moved, a result that could never be published as it was ordered."""
        checkable = bool(self.request.evaluate.sets) or (plan.shards and is_whole(plan))
        if self.push is None or self.request.output.publish != "checked" or not checkable:
            return
        short = evaluator.shortage(result_bytes(plan))
        if short is not None:
            raise CheckImpossible(
                f"the result could not be published: {short}; order it with output.publish = always, or "
                "without a repository, or give the worker more memory"
            )

    def _make_room(self, planned: Planned) -> None:
        """Refuses a job that the disk cannot hold, or lets its shards go one by one where that is enough."""
        plan = planned.plan
        download = planned.summary["estimate"]["download_bytes"] + plan.statistics.disk_bytes
        download += plan.staged.disk_bytes + disk_bytes(planned, self.request.evaluate)
        try:
            ensure_room(self.work, download + plan.estimate.output_bytes, free=self.workshop.free_bytes)
        except DiskFull:
            scored = self.request.evaluate.sets or self.request.output.publish != "always"
            if self.push is None or scored or planned.plan.bundle is not None:
                raise
            largest = max((shard.size for shard in plan.shards), default=plan.estimate.output_bytes)
            ensure_room(self.work, download + largest, free=self.workshop.free_bytes)
            self.is_lean = True
            self.context.write(
                recording.record_warning,
                "disk_short",
                "the disk cannot hold the whole result: files are uploaded and deleted, nothing is checked",
            )

    def _bring(self, planned: Planned, stack: ExitStack) -> Arrivals:
        """The inputs, there or on their way; folders of this machine are there."""
        self.context.enter("downloading")
        arrivals = bring(
            self.hub,
            [
                wanted_files(each.role, each.snapshot, planned.plan, each.inside, whole=planned.whole)
                for each in planned.inputs
                if each.snapshot is not None
            ],
            self.work.inputs,
            planned.plan,
            streams=streams(planned.plan),
            on_bytes=self._count_arrived,
            should_stop=self.context.should_stop,
        )
        if arrivals.delivery is not None:
            stack.callback(self._count_down, arrivals.delivery)
            stack.enter_context(arrivals.delivery)
        folders = {each.role: each.folder for each in planned.inputs if each.folder is not None}
        arrivals.folders |= folders
        return arrivals

    def _count_arrived(self, done: int, total: int) -> None:
        """While the merge reads what arrives, its own progress is what is told."""
        if self.context.phase == "downloading":
            self.context.advance(done, total)

    def _count_down(self, delivery: Delivery) -> None:
        self.context.tell("hub_bytes_total", "down", value=delivery.fetched)

    def _open_uploads(self, stack: ExitStack) -> Uploads | None:
        if self.push is None:
            return None
        return stack.enter_context(Uploads(self._send, self.context.checkpoint))

    def _send(self, name: str, path: Path) -> None:
        """Uploads one file ahead of the commit."""
        assert self.push is not None  # uploads are open only where there is a push
        self.push.add_file(name, path)
        self.context.tell("hub_bytes_total", "up", value=path.stat().st_size)

    def _merge(
        self,
        planned: Planned,
        arrivals: Arrivals,
        statistics: Mapping[str, Path],
        uploads: Uploads | None,
    ) -> Report:
        """The result, made of inputs that have all been checked when this returns."""
        self.context.enter("merging")
        settings = self.workshop.settings

        try:
            report = run_merge(
                planned.plan,
                arrivals.folders,
                self.work.output,
                budget_bytes=settings.memory_budget_bytes,
                threads=devices.count_threads(settings.threads),
                device=self.workshop.device,
                on_progress=self._count_merged,
                should_stop=self.context.should_stop,
                on_shard=partial(self._pass_on, uploads),
                wait_for=arrivals.wait_for if arrivals.delivery is not None else None,
                pinned=arrivals.pinned,
                statistics=statistics,
            )
            arrivals.finish()
        except Tainted:
            self.work.discard_output()
            raise
        return report

    def _count_merged(self, progress: Progress) -> None:
        self.context.advance(
            progress.bytes_done,
            progress.bytes_total,
            tensors_done=progress.tensors_done,
            tensors_total=progress.tensors_total,
        )

    def _pass_on(self, uploads: Uploads | None, done: ShardDone) -> None:
        """Records a shard; sends it, where there is a push, and lets it go where the disk is short."""
        if not done.reused:
            facts = {"sha256": done.sha256, "size": done.size}
            self.context.write(recording.record_artifact, "shard", done.file, **facts)
        if self.is_lean and self.push is not None:
            self.push.add_file(done.file, done.path)
            done.path.unlink()
        elif uploads is not None:
            uploads.add(done.file, self.work.borrow(done.path))

    def _evaluate(
        self, evaluator: Evaluator, planned: Planned, folders: Mapping[str, Path], report: Report
    ) -> Verdict:
        if any(file.released for file in report.files):
            return Verdict(None)
        self.context.enter("evaluating")
        desk = Desk(self.work.candidate, Means.of(self.workshop, self.context.should_stop))
        desk.clear()
        try:
            verdict = self._judged(evaluator, planned, folders, report, desk)
        finally:
            desk.clear()
        unchecked_kept = verdict.sound is None and self.push is None
        if verdict.problem is not None and self.request.output.publish == "checked" and not unchecked_kept:
            kind = CheckImpossible if verdict.sound is None else OutputUnsafe
            raise kind(
                f"the result was not published: {verdict.problem}; "
                "the job can be ordered again with output.publish = always"
            )
        return verdict

    def _judged(
        self,
        evaluator: Evaluator,
        planned: Planned,
        folders: Mapping[str, Path],
        report: Report,
        desk: Desk,
    ) -> Verdict:
        asked = self.request.evaluate
        why = obstacle(planned) or (None if asked.sets else self._short(evaluator, planned.plan))
        if why is not None:
            return evaluator.unchecked(why)
        for role, lack in (left_out(planned) if asked.scores_parents else {}).items():
            evaluator.scorer.leave_out(role, lack)
        beside = parents_of(planned, folders, desk, adapters=asked.scores_parents)
        return evaluator.judge(outcomes_of(planned, report, folders, desk, beside), beside.get(BASE))

    def _short(self, evaluator: Evaluator, plan: Plan) -> str | None:
        """Why an adapter or a bundle whose scores nobody ordered is not checked: memory, or the disk."""
        if is_whole(plan):
            return None
        needed = bytes_in(self.work.path) + over_base_bytes(plan)
        try:
            ensure_room(self.work, needed, free=self.workshop.free_bytes)
        except DiskFull as error:
            return str(error)
        return evaluator.shortage(result_bytes(plan))

    def _remember(
        self,
        planned: Planned,
        folders: Mapping[str, Path],
        statistics: Mapping[str, Path],
        evaluator: Evaluator,
        verdict: Verdict,
    ) -> None:
        """Has searches find the scores of the result, where that takes no reading of models."""
        if not verdict.scores or not are_listed(planned):
            return
        heads = Heads(base_of(planned, folders), self.workshop.device)
        known = KnownCandidates.of(self.workshop, self.job.tenant_id, planned, folders, statistics, heads)
        tasks = [each for each in evaluator.scorer.tasks if not isinstance(each, HarnessTask)]
        wanted = {member: Part(WHOLE, tuple(tasks)) for member in verdict.scores}
        known.keep(planned.plan, wanted, False, {each: list(own) for each, own in verdict.scores.items()})

    def _publish(self, push: Push, report: Report, uploads: Uploads, verdict: Verdict) -> dict[str, Any]:
        self.context.enter("uploading")
        sent, total = 0, sum(file.size for file in report.files)
        for file in report.files:
            if file.released:
                push.add_uploaded(file.file, file.sha256, file.size)
            elif file.file != MANIFEST:
                uploads.add(file.file, report.out / file.file)
            sent += file.size
            self.context.advance(sent, total)
        uploads.finish()
        small = {name: (report.out / name).read_bytes() for name in (MANIFEST, CARD)}
        message = f"Merge by Mergery ({self.job.id})"
        confirm = partial(self.context.enter_confirmed, "finalising")
        return self._published(push.commit(message, small, confirm), verdict)

    def _published(self, commit: CommitResult, verdict: Verdict | None) -> dict[str, Any]:
        output = self.request.output
        self.context.write(recording.record_artifact, "repo", commit.url, commit_sha=commit.sha)
        return {
            "repo": output.repo,
            "revision": output.revision,
            "commit": commit.sha,
            "url": commit.url,
            "private": output.private,
            "checked": None if verdict is None else verdict.sound,
            **self.told,
        }

    def _keep(self, report: Report, target: Path, verdict: Verdict) -> dict[str, Any]:
        self.context.enter("finalising")
        keep(report.out, target)
        return self._kept(target, verdict)

    def _kept(self, folder: Path, verdict: Verdict | None) -> dict[str, Any]:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.context.write(recording.record_artifact, "folder", str(folder), size=size)
        checked = None if verdict is None else verdict.sound
        return {"folder": str(folder), "bytes": size, "checked": checked, **self.told}


def state_in(folder: Path) -> dict[str, Any]:
    """What a later job needs to let one more model join the result, if there is anything."""
    kept = folder / STATE_FILE
    return {STATE: json.loads(kept.read_bytes())} if kept.is_file() else {}


def relabelled(plan: Plan, inputs: tuple[PinnedInput, ...]) -> Plan:
    """The plan with every model under its pinned name, so that equal inputs give equal manifests."""
    names = {each.role: each.pinned_name for each in inputs}
    models = {}
    for key, index in plan.models.items():
        adapter = index.adapter
        if adapter is not None:
            adapter = replace(adapter, label=names.get(key + ADAPTER, adapter.label))
        models[key] = replace(index, label=names.get(key, index.label), adapter=adapter)
    return replace(plan, models=models)
