"""The story of one merge job, in order: plan, download, merge, check and score, push or keep.

Every step can be done again: a later attempt finds the downloads and shards that are there and goes on.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from db.models.job import Job
from hub.card import CardInput, render_card
from hub.snapshot import Hub, Snapshot
from hub.upload import MANIFEST, CommitResult, Push
from jobs import lifecycle
from jobs.planning import PinnedInput, Planned, Planner
from jobs.request import JobRequest
from jobs.submit import check_publishing
from merge.plan import Plan
from merge.recipe import Recipe
from merge.report import Progress, Report, ShardDone
from merge.run import run as run_merge
from worker import device as devices
from worker.artifacts import artifact_folder, keep
from worker.context import JobContext
from worker.errors import DiskFull, OutputUnsafe
from worker.evaluation import Evaluator, Subject, Verdict, unchecked
from worker.inputs import Wanted, fetch, wanted_names, weights_of
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
        self._make_room(planned)
        folders = self._download(planned)
        with ExitStack() as stack:
            uploads = self._open_uploads(stack)
            report = self._merge(planned, folders, uploads)
            verdict = self._evaluate(evaluator, planned, folders, report)
            write_card(report, planned, verdict, self.request.output.repo or self.job.id)
            if self.push is None or uploads is None:
                return self._keep(report, kept, verdict)
            return self._publish(self.push, report, uploads, verdict)

    def _plan(self) -> Planned:
        """Pins and looks at the models again: headers only, and by now the recipe names commits."""
        self.context.checkpoint()
        planned = self.planner.plan(self.recipe, self.token, self.job.tenant_id)
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

    def _make_room(self, planned: Planned) -> None:
        """Refuses a job that the disk cannot hold, or lets its shards go one by one where that is enough."""
        download = planned.summary["estimate"]["download_bytes"]
        plan = planned.plan
        try:
            ensure_room(self.work, download + plan.estimate.output_bytes, free=self.workshop.free_bytes)
        except DiskFull:
            scored = self.request.evaluate.sets or self.request.output.publish != "always"
            if self.push is None or scored:
                raise
            largest = max(shard.size for shard in plan.shards)
            ensure_room(self.work, download + largest, free=self.workshop.free_bytes)
            self.is_lean = True
            self.context.write(
                lifecycle.record_warning,
                "disk_short",
                "the disk cannot hold the whole result: files are uploaded and deleted, nothing is checked",
            )

    def _download(self, planned: Planned) -> dict[str, Path]:
        self.context.enter("downloading")
        folders = {each.role: each.folder for each in planned.inputs if each.folder is not None}
        wanted = [
            wanted_files(each.role, each.snapshot, planned.plan)
            for each in planned.inputs
            if each.snapshot is not None
        ]
        fetched = fetch(
            self.hub,
            wanted,
            self.work.inputs,
            on_bytes=lambda done, total: self.context.advance(done, total),
            should_stop=self.context.should_stop,
        )
        return {**folders, **fetched}

    def _open_uploads(self, stack: ExitStack) -> Uploads | None:
        if self.push is None:
            return None
        return stack.enter_context(Uploads(self.push.add_file, self.context.checkpoint))

    def _merge(self, planned: Planned, folders: Mapping[str, Path], uploads: Uploads | None) -> Report:
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

        return run_merge(
            planned.plan,
            folders,
            self.work.output,
            budget_bytes=settings.memory_budget_bytes,
            threads=devices.count_threads(settings.threads),
            device=self.workshop.device,
            on_progress=on_progress,
            should_stop=self.context.should_stop,
            on_shard=on_shard,
        )

    def _evaluate(
        self, evaluator: Evaluator, planned: Planned, folders: Mapping[str, Path], report: Report
    ) -> Verdict:
        if self.is_lean:
            return unchecked()
        self.context.enter("evaluating")
        result = Subject(report.out, {file.file: file.sha256 for file in report.files})
        verdict = evaluator.judge(result, parents_of(planned, folders))
        if verdict.problem is not None and self.request.output.publish == "checked":
            raise OutputUnsafe(
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
    recipe = Recipe.model_validate(job.recipe)
    sources = tuple(
        source.model_copy(
            update={
                "model": commits.get(source.id, source.model),
                "adapter": commits.get(f"{source.id}+adapter", source.adapter),
            }
        )
        for source in recipe.sources
    )
    return recipe.model_copy(update={"base": commits.get("base", recipe.base), "sources": sources})


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


def wanted_files(role: str, snapshot: Snapshot, plan: Plan) -> Wanted:
    """What to download of the Hub model of one role."""
    weights = weights_of(plan.models[role.removesuffix("+adapter")], role)
    return Wanted(role, snapshot, wanted_names((file.path for file in snapshot.files), weights))


def parents_of(planned: Planned, folders: Mapping[str, Path]) -> dict[str, Subject]:
    """The models that the result is compared with: every input that is a whole model by itself."""
    found = {}
    for each in planned.inputs:
        index = planned.plan.models.get(each.role)
        if index is not None and index.adapter is None and each.role in folders:
            files = each.snapshot.files if each.snapshot is not None else ()
            known = {file.path: file.sha256 for file in files if file.sha256 is not None}
            found[each.role] = Subject(folders[each.role], known)
    return found


def write_card(report: Report, planned: Planned, verdict: Verdict, title: str) -> None:
    """Puts the model card beside the weights."""
    reference = next((each.snapshot for each in planned.inputs if each.role == planned.plan.reference), None)
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
        pipeline_tag=reference.pipeline_tag if reference else None,
    )
    (report.out / CARD).write_text(card, encoding="utf-8")
