"""Writes the weight files of a result, or takes over those that an earlier run has finished."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from merge.bundle.making import BundleWork
from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.writer import ShardWriter
from merge.journal import Finished, Journal
from merge.report import OutputFile, ShardDone
from merge.work import Work


def write_shards(
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

    def take_in(left: int) -> None:
        while len(pending) > left:
            done = pending.pop(0).result()
            journal.add_shard(done)
            found.append(hand_over(done, journal, on_shard))

    with ThreadPoolExecutor(1, "durable") as closer:
        for group in _groups(layouts, journal, most):
            done = journal.shards.get(group[0].file)
            if done is not None:
                work.skip(group[0])
                take_in(0)
                found.append(hand_over(done, journal, on_shard, reused=True))
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
            take_in(len(group))
        take_in(0)
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


def hand_over(
    done: Finished, journal: Journal, on_shard: Callable[[ShardDone], None], *, reused: bool = False
) -> OutputFile:
    """Tells the caller of a finished file, which it may take away."""
    path = journal.folder / done.file
    if not done.released:
        on_shard(ShardDone(done.file, path, done.sha256, done.size, reused))
        if not path.exists():
            done = replace(done, released=True)
            journal.add_shard(done)
    return OutputFile(done.file, done.sha256, done.size, reused, done.released)
