"""The story of one merge job, in order: plan, download, measure, merge, check and score, push or keep.

Every step can be done again: a later attempt finds the downloads and shards that are there and goes on.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from db.models.job import Job
from hub.card import CardInput, render_card
from hub.delivery import Delivery
from hub.errors import Tainted
from hub.snapshot import Hub, Snapshot
from hub.upload import MANIFEST, CommitResult, Push
from jobs import lifecycle
from jobs.fetching import parts_of, streams
from jobs.places import files_inside, prefix_of
from jobs.planning import PinnedInput, Planned, Planner
from jobs.request import JobRequest
from jobs.submit import check_publishing
from merge.finish import SURVEY_FILE
from merge.plan import Plan
from merge.recipe import Recipe
from merge.report import Progress, Report, ShardDone
from merge.run import run as run_merge
from worker import device as devices
from worker.artifacts import artifact_folder, keep
from worker.context import JobContext
from worker.errors import CheckImpossible, DiskFull, OutputUnsafe
from worker.evaluation import Evaluator, Subject, Verdict, unchecked
from worker.inputs import Arrivals, Wanted, bring, wanted_names, weights_of
from worker.measuring import Measurer
from worker.scratch import WorkFolder, ensure_room
from worker.uploads import Uploads
from worker.workshop import Workshop

log = structlog.get_logger("worker.merge_job")

CARD = "README.md"


@dataclass
class MergeJob:
    """One attempt. ``request`` is the caller's order, ``recipe`` its recipe, pinned as far as is known."""

    workshop: Workshop
    job: Job
    request: JobRequest
    recipe: Recipe
    context: JobContext
    work: WorkFolder
    planner: Planner
    measurer: Measurer
    hub: Hub
    token: str | None
    push: Push | None = field(default=None, init=False)
    is_lean: bool = field(default=False, init=False)

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        planned = self._plan()
        done = self._open_push()
        if done is not None:
            return self._published(done, None)
        kept = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        if kept.exists():
            return self._kept(kept, None)
        evaluator = Evaluator.prepare(self.workshop, self.context, self.job, self.request.evaluate, self.hub)
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
            self.context.write(lifecycle.record_report, survey_of(report.out))
            verdict = self._evaluate(evaluator, planned, folders, report)
            write_card(report, planned, verdict, self.request.output.repo or self.job.id)
            if self.push is None or uploads is None:
                return self._keep(report, kept, verdict)
            return self._publish(self.push, report, uploads, verdict)

    def _plan(self) -> Planned:
        """Pins and looks at the models again: headers only, and by now the recipe names commits."""
        self.context.checkpoint()
        whole = self.request.evaluate.scores_parents
        planned = self.planner.plan(self.recipe, self.token, self.job.tenant_id, whole=whole)
        check_publishing(self.request, planned.inputs)
        if self.job.plan is None:
            self.context.write(lifecycle.record_inputs, [each.row() for each in planned.inputs])
            self.context.write(lifecycle.record_plan, planned.summary, planned.queue)
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

    def _check_possible(self, evaluator: Evaluator, plan: Plan) -> None:
        """Refuses, before anything is moved, a result that could never be published as it was ordered."""
        if self.push is None or self.request.output.publish != "checked" or not plan.shards:
            return
        short = evaluator.shortage(plan.estimate.output_bytes)
        if short is not None:
            raise CheckImpossible(
                f"the result could not be published: {short}; order it with output.publish = always, or "
                "without a repository, or give the worker more memory"
            )

    def _make_room(self, planned: Planned) -> None:
        """Refuses a job that the disk cannot hold, or lets its shards go one by one where that is enough."""
        plan = planned.plan
        download = planned.summary["estimate"]["download_bytes"] + plan.statistics.disk_bytes
        download += plan.staged.disk_bytes
        try:
            ensure_room(self.work, download + plan.estimate.output_bytes, free=self.workshop.free_bytes)
        except DiskFull:
            scored = self.request.evaluate.sets or self.request.output.publish != "always"
            if self.push is None or scored:
                raise
            largest = max((shard.size for shard in plan.shards), default=plan.estimate.output_bytes)
            ensure_room(self.work, download + largest, free=self.workshop.free_bytes)
            self.is_lean = True
            self.context.write(
                lifecycle.record_warning,
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

        def on_progress(progress: Progress) -> None:
            self.context.advance(
                progress.bytes_done,
                progress.bytes_total,
                tensors_done=progress.tensors_done,
                tensors_total=progress.tensors_total,
            )

        def on_shard(done: ShardDone) -> None:
            if not done.reused:
                self.context.write(
                    lifecycle.record_artifact, "shard", done.file, sha256=done.sha256, size=done.size
                )
            if self.is_lean and self.push is not None:
                self.push.add_file(done.file, done.path)
                done.path.unlink()
            elif uploads is not None:
                uploads.add(done.file, self.work.borrow(done.path))

        try:
            report = run_merge(
                planned.plan,
                arrivals.folders,
                self.work.output,
                budget_bytes=settings.memory_budget_bytes,
                threads=devices.count_threads(settings.threads),
                device=self.workshop.device,
                on_progress=on_progress,
                should_stop=self.context.should_stop,
                on_shard=on_shard,
                wait_for=arrivals.wait_for if arrivals.delivery is not None else None,
                pinned=arrivals.pinned,
                statistics=statistics,
            )
            arrivals.finish()
        except Tainted:
            self.work.discard_output()
            raise
        return report

    def _evaluate(
        self, evaluator: Evaluator, planned: Planned, folders: Mapping[str, Path], report: Report
    ) -> Verdict:
        if self.is_lean:
            return unchecked()
        self.context.enter("evaluating")
        result = Subject(report.out, {file.file: file.sha256 for file in report.files})
        verdict = evaluator.judge(result, parents_of(planned, folders))
        unchecked_kept = verdict.sound is None and self.push is None
        if verdict.problem is not None and self.request.output.publish == "checked" and not unchecked_kept:
            kind = CheckImpossible if verdict.sound is None else OutputUnsafe
            raise kind(
                f"the result was not published: {verdict.problem}; "
                "the job can be ordered again with output.publish = always"
            )
        return verdict

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
        self.context.enter("finalising")
        small = {name: (report.out / name).read_bytes() for name in (MANIFEST, CARD)}
        return self._published(push.commit(f"Merge by Mergery ({self.job.id})", small), verdict)

    def _published(self, commit: CommitResult, verdict: Verdict | None) -> dict[str, Any]:
        output = self.request.output
        self.context.write(lifecycle.record_artifact, "repo", commit.url, commit_sha=commit.sha)
        return {
            "repo": output.repo,
            "revision": output.revision,
            "commit": commit.sha,
            "url": commit.url,
            "private": output.private,
            "checked": None if verdict is None else verdict.sound,
        }

    def _keep(self, report: Report, target: Path, verdict: Verdict) -> dict[str, Any]:
        self.context.enter("finalising")
        keep(report.out, target)
        return self._kept(target, verdict)

    def _kept(self, folder: Path, verdict: Verdict | None) -> dict[str, Any]:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.context.write(lifecycle.record_artifact, "folder", str(folder), size=size)
        return {"folder": str(folder), "bytes": size, "checked": None if verdict is None else verdict.sound}


def recipe_of(job: Job, commits: Mapping[str, str]) -> Recipe:
    """The job's recipe; where it names branches still, ``commits`` by role of an earlier attempt do."""
    return Recipe.model_validate(job.recipe).renamed(commits)


def relabelled(plan: Plan, inputs: tuple[PinnedInput, ...]) -> Plan:
    """The plan with every model under its pinned name, so that equal inputs give equal manifests."""
    names = {each.role: each.pinned_name for each in inputs}
    models = {}
    for key, index in plan.models.items():
        adapter = index.adapter
        if adapter is not None:
            adapter = replace(adapter, label=names.get(f"{key}+adapter", adapter.label))
        models[key] = replace(index, label=names.get(key, index.label), adapter=adapter)
    return replace(plan, models=models)


def wanted_files(
    role: str, snapshot: Snapshot, plan: Plan, inside: str = "", *, whole: bool = False
) -> Wanted:
    """What to download of the Hub model of one role, which may lie ``inside`` its repository."""
    weights = weights_of(plan, role)
    prefix = prefix_of(inside)
    names = wanted_names(files_inside({file.path: file.size for file in snapshot.files}, inside), weights)
    return Wanted(
        role,
        snapshot,
        tuple(prefix + name for name in names),
        prefix,
        frozenset(prefix + name for name in weights),
        {} if whole else {prefix + file: spans for file, spans in parts_of(plan, role).items()},
    )


def survey_of(out: Path) -> dict[str, Any]:
    """What the merge did to the weights. The numbers of single tensors may be many: they stay in the file."""
    survey: dict[str, Any] = json.loads((out / SURVEY_FILE).read_bytes())
    groups = [{name: told for name, told in group.items() if name != "tensors"} for group in survey["groups"]]
    return {**survey, "groups": groups}


def parents_of(planned: Planned, folders: Mapping[str, Path]) -> dict[str, Subject]:
    """The models that the result is compared with: every input that is a whole model by itself and is here
    with all of its files.
    """
    found = {}
    for each in planned.inputs:
        index = planned.plan.models.get(each.role)
        if index is None or planned.plan.weight_files(each.role) != index.shards:
            continue
        if index.adapter is None and each.role in folders and each.role != "donor":
            files = each.snapshot.files if each.snapshot is not None else ()
            known = {file.path: file.sha256 for file in files if file.sha256 is not None}
            found[each.role] = Subject(folders[each.role], known)
    return found


def write_card(report: Report, planned: Planned, verdict: Verdict, title: str) -> None:
    """Puts the model card beside the weights."""
    reference = next((each.snapshot for each in planned.inputs if each.role == planned.plan.origin), None)
    inputs = [
        CardInput(
            each.role,
            each.name,
            each.snapshot.repo if each.snapshot else None,
            each.snapshot.sha if each.snapshot else None,
            each.snapshot.license if each.snapshot else None,
        )
        for each in planned.inputs
    ]
    card = render_card(
        report.manifest,
        verdict.card_scores,
        title=title,
        inputs=inputs,
        library_name=library_of(planned.plan),
        is_adapter=planned.plan.adapter is not None,
        pipeline_tag=reference.pipeline_tag if reference else None,
    )
    (report.out / CARD).write_text(card, encoding="utf-8")


def library_of(plan: Plan) -> str | None:
    """What loads the result; nothing where there is no config."""
    if plan.adapter is not None:
        return "peft"
    config = plan.models[plan.reference].config
    return "diffusers" if "_class_name" in config else "transformers" if config else None
