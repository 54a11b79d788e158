"""Carries out the plan of a bundle: its tensors (or, for a twin, those of its merge), then what comes
with them: a twin's adapters, small files, the base where it is kept inside, and the manifest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.bundle.making import BundleWork, WaitFor, copy_base, write_bundle
from merge.checkpoint.bundle import ADAPTERS, SHARED
from merge.checkpoint.layout import ShardLayout
from merge.journal import Finished, Journal
from merge.plan import Plan
from merge.recipe.stages import ADAPTER
from merge.report import OutputFile, Report
from merge.results.finish import sync_folder, write_small_files
from merge.work import Work


@dataclass(frozen=True)
class Tools:
    """What the run does for a bundle: hands finished files over, makes a member's adapter in a folder, waits
    for bytes that are on their way, and stops where the caller wants that.
    """

    hand_over: Callable[[Finished], OutputFile]
    run_member: Callable[[str, Mapping[str, Path], Path], Report]
    wait_for: WaitFor | None
    check: Callable[[], None]


def bundle_shards(plan: Plan, work: Work, out: Path) -> tuple[Sequence[ShardLayout], Work | BundleWork]:
    """The weight files that are computed block by block, and the arithmetic of them."""
    assert plan.bundle is not None
    if not plan.members:
        return plan.shards, BundleWork(plan.bundle, work)
    (out / SHARED).mkdir(exist_ok=True)
    return [replace(each, file=f"{SHARED}/{each.file}") for each in plan.shards], work


def finish_bundle(
    plan: Plan, inputs: Mapping[str, Any], folders: Mapping[str, Path], journal: Journal, tools: Tools
) -> tuple[list[OutputFile], list[str], dict[str, Any]]:
    """More weight files, the names of the small ones, and facts to be told."""
    bundle = plan.bundle
    assert bundle is not None
    weights: list[OutputFile] = []
    small: list[str] = []
    if plan.members:
        shared = journal.folder / SHARED
        small += [f"{SHARED}/{name}" for name in write_small_files(plan, folders, shared)]
        for member in plan.members:
            weights += _adapter(member, shared, folders, journal, tools)
    if bundle.keeps_base:
        copied = copy_base(plan, folders["base"], journal, tools.wait_for, tools.check)
        weights += [tools.hand_over(done) for done in copied]
    names, told = write_bundle(plan, inputs, folders, journal)
    for folder in sorted({(journal.folder / name).parent for name in (*small, *names)}):
        sync_folder(folder)
    return weights, [*small, *names], told


def _adapter(
    member: str, shared: Path, folders: Mapping[str, Path], journal: Journal, tools: Tools
) -> list[OutputFile]:
    """What a twin keeps of one member, in a folder of its own."""
    own = {key: folders[key] for key in (member, member + ADAPTER) if key in folders}
    at = f"{ADAPTERS}/{member}"
    (journal.folder / ADAPTERS).mkdir(exist_ok=True)
    report = tools.run_member(member, {"base": shared, **own}, journal.folder / at)
    done = [Finished(f"{at}/{file.file}", file.size, file.sha256, file.released) for file in report.files]
    return [tools.hand_over(each) for each in done]
