"""Whole checkpoints of what is no model by itself, written only to be looked at: an adapter over its base, a
member of a bundle.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from merge.bundle.recipe import member_of_folder
from merge.local import index_models, model_folders
from merge.plan import Plan, make_plan
from merge.planning.stages import alone
from merge.recipe.recipe import Recipe, recipe_from
from merge.recipe.stages import parted, stage_of
from merge.report import Report
from merge.run import run
from scoring.digest import model_digest
from worker import device as devices
from worker.workshop import Workshop

NAME, BASE = "given-back", "base"
"""Folders of a checkpoint, and of the base that a stage gives it."""

Member = str | None
"""A member of a bundle; ``None`` for what is a model by itself, or an adapter."""
Make = Callable[[Path], Report]
"""Writes a checkpoint into a folder."""


@dataclass(frozen=True)
class Means:
    """What a merge is made with: bytes of memory, threads, a device, and what tells it to stop."""

    budget_bytes: int
    threads: int
    device: str
    should_stop: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, workshop: Workshop, should_stop: Callable[[], bool]) -> "Means":
        """What a worker has."""
        settings = workshop.settings
        threads = devices.count_threads(settings.threads)
        return cls(settings.memory_budget_bytes, threads, workshop.device, should_stop)

    def run(self, plan: Plan, folders: Mapping[str, Path], folder: Path) -> Report:
        """Carries a plan out, without a report on the weights. Raises what a merge raises."""
        return run(
            plan,
            folders,
            folder,
            budget_bytes=self.budget_bytes,
            threads=self.threads,
            device=self.device,
            should_stop=self.should_stop,
            survey="none",
        )


def is_whole(plan: Plan) -> bool:
    """Whether what a plan makes is a checkpoint by itself."""
    return plan.adapter is None and plan.bundle is None


def give_back(
    plan: Plan, made: Path, member: Member, folders: Mapping[str, Path], means: Means, room: Path
) -> Report:
    """Writes the checkpoint of the adapter that a plan has ``made``, or of a ``member`` of its bundle, into a
    folder of ``room``. ``folders`` are those of the plan's models; of a base that is a stage, its merge comes
    into ``room`` first. Raises what a merge raises.
    """
    if plan.adapter is not None:
        stage = stage_of(plan.recipe.base or "")
        base = folders[BASE] if stage is None else _merged(plan, stage, folders, room / BASE, means)
        return with_adapter(base, made, None, means, room)
    assert plan.bundle is not None and member is not None  # of a bundle a member is wanted
    inside = bool(plan.members) or plan.bundle.keeps_base
    recipe = member_of_folder(made, member, None if inside else folders[BASE], None)
    return _run(recipe, room / NAME, means)


def with_adapter(base: Path, adapter: Path, member: Member, means: Means, room: Path) -> Report:
    """Writes a model with an adapter merged into it into a folder of ``room``; ``member`` is one of a folder
    that is a bundle. Raises what a merge raises.
    """
    source = {"id": "result", "model": str(base), "adapter": str(adapter), "member": member}
    told = {"base": str(base), "sources": [source], "steps": ["passthrough"], "reference": "result"}
    return _run(recipe_from(told), room / NAME, means)


def _merged(plan: Plan, stage: str, folders: Mapping[str, Path], folder: Path, means: Means) -> Path:
    """What a stage of a plan gives."""
    recipe = alone(plan.recipe, stage)
    models = {key: each for key, each in plan.staged.leaves().items() if parted(key)[0] in recipe.stages}
    return means.run(make_plan(recipe, models, budget=means.budget_bytes), folders, folder).out


def _run(recipe: Recipe, folder: Path, means: Means) -> Report:
    plan = make_plan(recipe, index_models(recipe, Path()), budget=means.budget_bytes)
    return means.run(plan, model_folders(recipe, Path()), folder)


@dataclass
class Desk:
    """Room for one checkpoint at a time, in a folder of its own that is there only as long as it is used."""

    folder: Path
    means: Means
    _lies: tuple["GivenBack", Report] | None = field(default=None, init=False)

    def lay(self, model: "GivenBack") -> Report:
        """The checkpoint of a model, written unless it lies here already. Raises what a merge raises."""
        if self._lies is None or self._lies[0] is not model:
            self.clear()
            self.folder.mkdir(parents=True)
            self._lies = model, model.make(self.folder)
        return self._lies[1]

    def clear(self) -> None:
        """Removes what lies here, also if an earlier attempt has left it."""
        self._lies = None
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class GivenBack:
    """A model that is written when it is asked for, and stays until another one of its desk is. ``size`` is
    about what it takes on the disk, in bytes.
    """

    desk: Desk
    make: Make
    size: int

    @property
    def folder(self) -> Path:
        """Where it lies; written now if need be."""
        return self.desk.lay(self).out

    @property
    def is_known(self) -> bool:
        """Its digest takes its weights."""
        return False

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything in it that a score depends on."""
        report = self.desk.lay(self)
        return model_digest(report.out, {file.file: file.sha256 for file in report.files})
