"""Statistics of a model on data, collected in one pass, block by block; see ``merge.learn.walk``.

The result is a folder that appears whole or not at all. While it grows it is ``<out>.partial``, with one
file a finished block, from which a later call with the same model, data and kinds goes on.

What is promised: the same bytes for the same folder, data, kinds and settings on one machine with one
number of threads, whether a run was interrupted or not and whatever memory it was given. Between machines
or numbers of threads sums may differ in their last bits, as matrix products do.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from merge.checkpoint.adapter import WEIGHT_FILE
from merge.checkpoint.index import ModelIndex, safe_path
from merge.checkpoint.reader import TensorReader
from merge.errors import BudgetTooSmall, ModelNotRun, OutputExists, StatisticsInvalid, Stopped
from merge.learn.batches import Batch, Batches, batches_of
from merge.learn.forecast import bytes_whole, largest_stage
from merge.learn.gradients import Gradients, Squares, keep_every_output
from merge.learn.observe import Findings, Observers, SharingBroken
from merge.learn.partial import Partial
from merge.learn.samples import Samples
from merge.learn.skeleton import Skeleton, Stored
from merge.learn.statistics import (
    GRADIENT_KINDS,
    Manifest,
    Statistics,
    check_kinds,
    read_manifest,
    read_statistics,
    statistics_digest,
)
from merge.learn.walk import REST, NotByBlocks, Stage, Walk

__all__ = ["Manifest", "Progress", "Statistics", "collect", "files_sha256", "read_statistics"]

_PIECE = 1 << 20
GROUP_BYTES = 256 << 20
"""Gradients go through the model in groups of sequences; what one block gives to a group is at most this
large.
"""
GROUPS = 8
"""At least so many groups where there are as many sequences: a measurement goes on from the last finished
one.
"""


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: ``block`` is done, ``done`` of ``total`` blocks (the rest of the model is
    one).

    ``tokens_per_second`` are tokens through the whole model, so far.
    """

    block: str
    done: int
    total: int
    tokens: int
    tokens_per_second: float


def collect(
    folder: Path,
    index: ModelIndex,
    samples: Samples,
    kinds: Sequence[str],
    out: Path,
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    adapter_folder: Path | None = None,
    model_sha256: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Measures ``kinds`` of statistics of the model in ``folder`` on ``samples`` into the new folder ``out``.

    Where ``out`` holds just these statistics already, they are kept. ``memory_bytes`` is beyond the
    interpreter's own; ``None`` does not check it. ``model_sha256`` names the weights where the caller knows
    them (a commit, say); otherwise the files are read for it.

    Raises ``StatisticUnknown``, subclasses of ``CalibrationInvalid``, ``ModelNotRun``, ``BudgetTooSmall``,
    ``NotFinite``, ``OutputExists``, ``Stopped``.
    """
    wanted = check_kinds(kinds)
    _check_memory(index, wanted, memory_bytes)
    skeleton = Skeleton(index)
    batches = batches_of(skeleton, folder, samples)
    manifest = _named(
        index, samples, wanted, batches, model_sha256 or files_sha256(folder, index, adapter_folder)
    )
    if out.exists():
        return _kept(out, manifest)
    partial = Partial(out, manifest)
    with TensorReader(folder, index, adapter_folder) as reader:
        work = _Work(skeleton, Stored(reader), batches, partial, torch.device(device), wanted, manifest)
        work.report, work.should_stop = on_progress, should_stop
        try:
            work.run(whole=False)
        except NotByBlocks as reason:
            _check_whole(index, str(reason), memory_bytes)
            partial.clear()
            work.run(whole=True)
    return partial.finish(out, index.tensors)


def files_sha256(folder: Path, index: ModelIndex, adapter_folder: Path | None = None) -> str:
    """sha256 (hex) over a model's structure and the bytes of its weight files, those of its adapter too."""
    digest = hashlib.sha256(index.digest.encode())
    paths = [safe_path(folder, name) for name in index.shards]
    if adapter_folder is not None:
        paths.append(safe_path(adapter_folder, WEIGHT_FILE))
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _named(
    index: ModelIndex,
    samples: Samples,
    kinds: tuple[str, ...],
    batches: Batches,
    model_sha256: str,
) -> Manifest:
    tokenizer = index.tokenizer.digest if index.tokenizer is not None else None
    settings = samples.settings
    digest = statistics_digest(model_sha256, tokenizer, samples.sha256, kinds, settings)
    return Manifest(
        digest=digest,
        kinds=kinds,
        model_sha256=model_sha256,
        tokenizer_sha256=tokenizer,
        data_sha256=samples.sha256,
        settings=settings,
        tokens=batches.tokens,
        documents=batches.documents,
        notes=batches.notes,
    )


def _kept(out: Path, manifest: Manifest) -> Manifest:
    try:
        found = read_manifest(out)
    except StatisticsInvalid:
        found = None
    if found is None or found.digest != manifest.digest:
        raise OutputExists(f"{out} is already there, and holds something else; give another folder.")
    return found


def _check_memory(index: ModelIndex, kinds: Sequence[str], memory: int | None) -> None:
    needed = largest_stage(index, kinds)
    if memory is not None and needed > memory:
        raise BudgetTooSmall(
            f"Measuring {', '.join(kinds)} of {index.label} takes about {needed >> 20} MiB for its "
            f"largest block, but "
            f"{memory >> 20} MiB are allowed; allow more, or ask for smaller statistics."
        )


def _check_whole(index: ModelIndex, reason: str, memory: int | None) -> None:
    needed = bytes_whole(index)
    if memory is not None and needed > memory:
        raise ModelNotRun(
            f"{index.label} cannot be run block by block ({reason}), and its {needed >> 20} MiB do not "
            f"fit into the "
            f"{memory >> 20} MiB that are allowed."
        )


@dataclass
class _Work:
    """One measurement while it runs."""

    skeleton: Skeleton
    weights: Stored
    batches: Batches
    partial: Partial
    device: torch.device
    kinds: tuple[str, ...]
    manifest: Manifest
    report: Callable[[Progress], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False

    def run(self, *, whole: bool) -> None:
        """Every stage that is not done yet: first what hooks see, then what gradients tell."""
        observed = frozenset(self.kinds) - GRADIENT_KINDS.keys()
        if observed:
            self._observe(observed, whole)
        for kind in sorted(frozenset(self.kinds) & GRADIENT_KINDS.keys()):
            self._differentiate(kind, whole)

    def _walk(self, batches: Sequence[Batch], scratch: Path, whole: bool, gradients: bool = False) -> Walk:
        return Walk(
            self.skeleton,
            self.weights,
            batches,
            scratch,
            device=self.device,
            whole=whole,
            gradients=gradients,
            check=self._check,
        )

    def _observe(self, kinds: frozenset[str], whole: bool) -> None:
        scratch = self.partial.folder / "states"
        past = list(self.partial.facts.get("done", []))
        if REST in past:
            return
        with self._walk(self.batches.every, scratch, whole) as walk:
            done = past if past and walk.resume(past, self.partial.facts["states"]) else []
            began = time.monotonic()
            for count, stage in enumerate(walk.stages(), 1):
                found = self._stage(stage, kinds)
                self.partial.save(f"input-{len(done):04}", found)
                done.append(stage.path)
                self.partial.note(done=done, states=walk.snapshot())
                self._tell(stage.path, len(done), walk.count, count, began)
        shutil.rmtree(scratch, ignore_errors=True)

    def _stage(self, stage: Stage, kinds: frozenset[str]) -> Findings:
        stage.fill()
        try:
            return self._observed(stage, kinds, share=True)
        except SharingBroken:
            return self._observed(stage, kinds, share=False)

    def _observed(self, stage: Stage, kinds: frozenset[str], *, share: bool) -> Findings:
        seen = Observers(self.skeleton, stage.modules, kinds, device=self.device, share=share)
        with seen:
            stage.run(after=lambda _, output: seen.after_batch(output))
        return seen.findings(stage.tensors, stage.path)

    def _differentiate(self, kind: str, whole: bool) -> None:
        singles = [batch.one(at) for batch in self.batches.every for at in range(batch.sequences)]
        size = self._group_size(len(singles))
        groups = range(0, len(singles), size)
        began, already = time.monotonic(), int(self.partial.facts.get(kind, 0))
        for number, first in enumerate(groups):
            if number >= already:
                self._group(kind, singles[first : first + size], first, number, len(singles), whole)
                self.partial.note(**{kind: number + 1})
                self._tell(kind, number + 1, len(groups), number + 1 - already, began)
                self._drop(kind, number - 1)

    def _group(
        self, kind: str, batches: Sequence[Batch], first: int, number: int, total: int, whole: bool
    ) -> None:
        """Adds the squares of a group of sequences to those of the groups before."""
        scratch = self.partial.folder / "gradients"
        shutil.rmtree(scratch, ignore_errors=True)
        squares = Squares(kind)
        with self._walk(batches, scratch, whole, gradients=True) as walk:
            order = keep_every_output(walk, scratch)
            last = first + len(batches) == total

            def after(path: str) -> None:
                values = squares.take()
                place = order.index(path) if path != REST else len(order)
                self._sum(kind, number, place, values, total if last else None)

            Gradients(walk, kind, self.manifest.settings["seed"], first, squares.add).run(order, after)
        shutil.rmtree(scratch, ignore_errors=True)

    def _sum(self, kind: str, number: int, place: int, values: dict[str, Tensor], total: int | None) -> None:
        """Adds to the sums of the group before; after the last group they become means under their own
        names.
        """
        before = self.partial.folder / f"{kind}-{place:04}.{number - 1}.sum"
        if before.is_file():
            with safe_open(before, framework="pt") as held:
                for name in held.keys():  # noqa: SIM118 - not a mapping
                    past = held.get_tensor(name)
                    values[name] = past + values[name].cpu() if name in values else past
        values = {name: value.cpu().contiguous() for name, value in values.items()}
        if total is None:
            save_file(values, self.partial.folder / f"{kind}-{place:04}.{number}.sum")
            return
        found = Findings()
        for name, value in self.skeleton.unconverted(values).items():
            found.tensors[f"{kind}/{name}"] = value.contiguous() / total
        self.partial.save(f"{kind}-{place:04}", found)

    def _drop(self, kind: str, number: int) -> None:
        for path in self.partial.folder.glob(f"{kind}-*.{number}.sum"):
            path.unlink()

    def _group_size(self, sequences: int) -> int:
        width = int(getattr(self.skeleton.config.get_text_config(), "hidden_size", 0) or 1024)
        length = max(self.batches.tokens // max(sequences, 1), 256)
        return max(1, min(math.ceil(sequences / GROUPS), GROUP_BYTES // (length * width * 4)))

    def _check(self) -> None:
        if self.should_stop():
            raise Stopped("The measurement was stopped; a later one goes on from the last finished block.")

    def _tell(self, path: str, done: int, total: int, run: int, began: float) -> None:
        tokens = self.batches.tokens * run / total
        speed = tokens / max(time.monotonic() - began, 1e-9)
        self.report(Progress(path, done, total, self.batches.tokens, speed))
