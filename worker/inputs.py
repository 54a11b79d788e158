"""Brings the Hub models of a job onto the work disk, into the job's own folder: small files at once and
verified, weights before the merge or while it reads them already.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from hub.delivery import Delivery
from hub.download import FILES_AT_ONCE, download
from hub.growing import Parcel
from hub.snapshot import Hub, Snapshot
from jobs.fetching import fetched_files, parts_of
from jobs.pinned import PinnedInput
from jobs.places import files_inside, prefix_of
from merge.checkpoint.places import NAMED_TEMPLATES
from merge.checkpoint.tokenizer import READER_FILES
from merge.plan import Plan
from merge.ranges import Spans, joined, length, needed_ranges, order_of
from merge.recipe.stages import ADAPTER
from worker.context import JobContext
from worker.scratch import WorkFolder

MOST_AT_ONCE = 8
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors.index.json",
    *READER_FILES,
    f"{NAMED_TEMPLATES}*.jinja",
    "*.tiktoken",
    "adapter_config.json",
    "bundle.json",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repository and the files of it which the job needs; the model lies in its folder ``prefix``.

    Of the files in ``parts`` only these ranges are needed, of the others all.
    """

    role: str
    snapshot: Snapshot
    names: tuple[str, ...]
    prefix: str = ""
    weights: frozenset[str] = frozenset()
    parts: Mapping[str, Spans] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that are wanted."""
        return sum(
            length(self.parts[name]) if name in self.parts else self.snapshot.file(name).size
            for name in self.names
        )

    @property
    def hashes(self) -> dict[str, str]:
        """What the commit pins each file of the model to, by its name in the model's folder."""
        files = {file.path: file.sha256 or file.git_oid for file in self.snapshot.files}
        return {
            name.removeprefix(self.prefix): each
            for name, each in files.items()
            if name.startswith(self.prefix)
        }


def fetch(
    hub: Hub, each: PinnedInput, weights: Iterable[str] | None, work: WorkFolder, context: JobContext
) -> None:
    """Brings these weight files of a pinned Hub model into the job's folder; its small files where
    ``weights`` is nothing.
    """
    assert each.snapshot is not None  # only what is on the Hub is fetched
    prefix = prefix_of(each.inside)
    sizes = files_inside({file.path: file.size for file in each.snapshot.files}, each.inside)
    names = wanted_names(sizes, ()) if weights is None else tuple(weights)
    total, done = sum(sizes[name] for name in names), 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        context.advance(done, total)
        context.tell("hub_bytes_total", "down", value=number)

    wanted = [prefix + name for name in names]
    stop = context.should_stop
    download(hub, each.snapshot, work.inputs / each.role, wanted, on_bytes=count, should_stop=stop)


def wanted_names(file_names: Iterable[str], weights: Iterable[str]) -> tuple[str, ...]:
    """The weight files and the small files beside them, such as the config; never code or pickles."""
    names = list(file_names)
    small = (name for name in names if any(fnmatchcase(name, pattern) for pattern in SMALL_FILES))
    return tuple(sorted({*small, *weights}))


def wanted_files(
    role: str, snapshot: Snapshot, plan: Plan, inside: str = "", *, whole: bool = False
) -> Wanted:
    """What to download of the Hub model of one role, which may lie ``inside`` its repository."""
    weights = fetched_files(plan, role, whole=whole)
    prefix = prefix_of(inside)
    files = files_inside({file.path: file.size for file in snapshot.files}, inside)
    names = wanted_names(files, (*weights, *small_of(plan, role)))
    return Wanted(
        role,
        snapshot,
        tuple(prefix + name for name in names),
        prefix,
        frozenset(prefix + name for name in weights),
        {} if whole else {prefix + file: spans for file, spans in parts_of(plan, role).items()},
    )


def small_of(plan: Plan, role: str) -> tuple[str, ...]:
    """The small files of this role that lie in folders of their own: those of a bundle's member."""
    index = plan.models.get(role.removesuffix(ADAPTER))
    return index.adapter.small if role.endswith(ADAPTER) and index and index.adapter else ()


@dataclass
class Arrivals:
    """The Hub models of a job on their way. ``folders`` are where they lie, by role.

    ``delivery`` brings the weights; without one everything is there. A repository that is wanted twice comes
    once.
    """

    wanted: Sequence[Wanted]
    folders: dict[str, Path]
    parcels: Sequence[Parcel]
    delivery: Delivery | None = None

    @property
    def pinned(self) -> dict[str, dict[str, str]]:
        """What identifies the files of every role."""
        return {each.role: each.hashes for each in self.wanted}

    def wait_for(self, role: str, file: str, begin: int, end: int) -> None:
        """Returns when these bytes of a weight file are there."""
        if self.delivery is not None and role in self.folders:
            self.delivery.wait_for(self.folders[role] / file, begin, end)

    def finish(self) -> None:
        """Returns when everything is there and checked."""
        if self.delivery is not None:
            self.delivery.finish()


def bring(
    hub: Hub,
    wanted: Sequence[Wanted],
    folder: Path,
    plan: Plan,
    *,
    streams: bool,
    on_bytes: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Arrivals:
    """Downloads into ``folder/<role>``: all of it, or with ``streams`` the small files only, so that the
    weights come with ``Arrivals.delivery``, which is to be entered, in the order in which the merge reads.

    ``on_bytes`` gets the bytes that are there and all bytes. Raises what :func:`hub.download.download` does.
    """
    total, there = sum(each.size for each in wanted), 0

    def count(number: int) -> None:  # one call at a time: weights stream once the small files are there
        nonlocal there
        there += number
        on_bytes(there, total)

    targets = _targets(wanted, folder)
    for each in wanted:
        names = [name for name in each.names if not streams or name not in each.weights]
        download(hub, each.snapshot, targets[each.role], names, on_bytes=count, should_stop=should_stop)
    folders = {each.role: targets[each.role] / each.prefix for each in wanted}
    arrivals = Arrivals(wanted, folders, _parcels(wanted, targets, plan) if streams else ())
    if streams:
        repositories = len({parcel.snapshot.label for parcel in arrivals.parcels})
        arrivals.delivery = Delivery(
            hub,
            arrivals.parcels,
            on_bytes=count,
            should_stop=should_stop,
            at_once=min(max(FILES_AT_ONCE, repositories), MOST_AT_ONCE),
        )
    return arrivals


def _targets(wanted: Sequence[Wanted], folder: Path) -> dict[str, Path]:
    """Where each role's repository goes; one that is wanted twice comes once."""
    first: dict[tuple[str, str], Path] = {}
    return {
        each.role: first.setdefault((each.snapshot.repo, each.snapshot.sha), folder / each.role)
        for each in wanted
    }


def _parcels(wanted: Sequence[Wanted], targets: Mapping[str, Path], plan: Plan) -> list[Parcel]:
    """Weight files in the order of their first use; two roles may want ranges of one."""
    by_role = {each.role: each for each in wanted}
    order = [pair for pair in order_of(needed_ranges(plan), plan) if pair[0] in by_role]
    order += [(each.role, name.removeprefix(each.prefix)) for each in wanted for name in sorted(each.weights)]
    found: dict[Path, Parcel] = {}
    for role, file in dict.fromkeys(order):
        each = by_role[role]
        name = each.prefix + file
        if name not in each.weights:
            continue
        path = targets[role] / name
        spans = each.parts.get(name)
        before = found.get(path)
        if before is not None:
            spans = None if spans is None or before.spans is None else joined((*before.spans, *spans))
        found[path] = Parcel(each.snapshot, targets[role], name, spans)
    return list(found.values())
