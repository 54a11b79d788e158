"""Statistics of a model on data, collected in one pass, block by block; see ``merge.learn.walk``.

The result is a folder that appears whole or not at all. While it grows it is ``<out>.partial``, with one
file a finished block, from which a later call with the same model, data and kinds goes on.

What is promised: the same bytes for the same folder, data, kinds and settings on one machine with one
number of threads, whether a run was interrupted or not and whatever memory it was given. Between machines
or numbers of threads sums may differ in their last bits, as matrix products do.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.adapter_names import WEIGHT_FILE
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.places import safe_path
from merge.checkpoint.reader import TensorReader
from merge.errors import BudgetTooSmall, ModelNotRun, Stopped
from merge.learn.backward import Backward
from merge.learn.batches import Batch, Batches, batches_of
from merge.learn.calling import NotByBlocks
from merge.learn.findings import Findings, finite
from merge.learn.forecast import bytes_whole, largest_stage
from merge.learn.gradients import Squares
from merge.learn.labels import EXACT, labels_told, why_not
from merge.learn.losses import logits_of, rows_of
from merge.learn.observed import observed
from merge.learn.partial import Partial
from merge.learn.samples import Samples
from merge.learn.skeleton import Skeleton, Stored
from merge.learn.statistics import GRADIENT_KINDS, Manifest, check_kinds, kept, statistics_digest
from merge.learn.turns import only_one
from merge.learn.walk import REST, Walk

_PIECE = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: ``block`` is done, ``done`` of ``total`` blocks (the rest of the model is
    one) of a pass, the ``turn``-th of ``turns``: kinds with gradients have a pass each.

    ``tokens_per_second`` are tokens through the whole model in this pass, so far.
    """

    block: str
    done: int
    total: int
    tokens: int
    tokens_per_second: float
    turn: int = 0
    turns: int = 1

    @property
    def share(self) -> float:
        """How much of all passes is done, 0 to 1."""
        return (self.turn + self.done / self.total) / self.turns


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
    _check_memory(index, wanted, samples, memory_bytes)
    if EXACT in wanted:
        _check_labels(index, labels_told(index.config, samples.tokens))
    skeleton = Skeleton(index)
    batches = batches_of(skeleton, folder, samples)
    manifest = _named(
        index, samples, wanted, batches, model_sha256 or files_sha256(folder, index, adapter_folder)
    )
    if (found := kept(out, manifest.digest)) is not None:
        return found
    with only_one(out, lambda: _check(should_stop)):
        if (found := kept(out, manifest.digest)) is not None:
            return found  # another process has made it meanwhile
        partial = Partial(out, manifest)
        with TensorReader(folder, index, adapter_folder) as reader:
            work = _Work(skeleton, Stored(reader), batches, partial, torch.device(device), wanted, manifest)
            work.report, work.should_stop = on_progress, should_stop
            _by_blocks_or_whole(work, memory_bytes)
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
    tokenizer = index.tokenizer.rules if index.tokenizer is not None else None
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


def _check(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Stopped("The measurement was stopped; a later one goes on from the last finished block.")


def _check_memory(index: ModelIndex, kinds: Sequence[str], samples: Samples, memory: int | None) -> None:
    needed = largest_stage(index, kinds, samples.documents, samples.tokens)
    if memory is not None and needed > memory:
        raise BudgetTooSmall(
            f"Measuring {', '.join(kinds)} of {index.label} takes about {needed >> 20} MiB for its "
            f"largest block, but "
            f"{memory >> 20} MiB are allowed; allow more, or ask for smaller statistics."
        )


def _check_labels(index: ModelIndex, labels: int) -> None:
    reason = why_not(index.label, labels)
    if reason is not None:
        raise ModelNotRun(reason)


def _check_whole(index: ModelIndex, kinds: Sequence[str], reason: str, memory: int | None) -> None:
    needed = bytes_whole(index, kinds)
    if memory is not None and needed > memory:
        raise ModelNotRun(
            f"{index.label} cannot be run block by block ({reason}), and its {needed >> 20} MiB do not "
            f"fit into the "
            f"{memory >> 20} MiB that are allowed."
        )


def _by_blocks_or_whole(work: "_Work", memory: int | None) -> None:
    """Why a model cannot be run by blocks is noted, so that a later run goes on with it as a whole."""
    reason = work.partial.facts.get("whole")
    if reason is None:
        try:
            work.run(whole=False)
            return
        except NotByBlocks as error:
            reason = str(error)
            work.partial.clear()
    _check_whole(work.skeleton.index, work.kinds, reason, memory)
    work.partial.note(whole=reason)
    work.run(whole=True)


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
    turn: int = 0
    turns: int = 1

    def run(self, *, whole: bool) -> None:
        """Every stage that is not done yet: first what hooks see, then what gradients tell."""
        observed = frozenset(self.kinds) - GRADIENT_KINDS.keys()
        backward = sorted(frozenset(self.kinds) & GRADIENT_KINDS.keys())
        self.turn, self.turns = 0, bool(observed) + len(backward)
        if observed:
            self._observe(observed, whole)
        for kind in backward:
            self.turn = bool(observed) + backward.index(kind)
            self._differentiate(kind, whole)

    def _observe(self, kinds: frozenset[str], whole: bool) -> None:
        scratch = self.partial.folder / "states"
        past = list(self.partial.facts.get("done", []))
        if REST in past:
            return
        batches, device = self.batches.every, self.device
        with Walk(
            self.skeleton, self.weights, batches, scratch, device=device, whole=whole, check=self._check
        ) as walk:
            done = past if past and walk.resume(past, self.partial.facts["states"]) else []
            began = time.monotonic()
            for count, stage in enumerate(walk.stages(), 1):
                stage.fill()
                found = observed(self.skeleton, stage, kinds, self.device)
                self.partial.save(f"input-{len(done):04}", found)
                done.append(stage.path)
                self.partial.note(done=done, states=walk.snapshot())
                self._tell(stage.path, len(done), walk.count, count, began)
        shutil.rmtree(scratch, ignore_errors=True)

    def _differentiate(self, kind: str, whole: bool) -> None:
        began = time.monotonic()

        def means(place: int, values: dict[str, Tensor], total: int) -> None:
            """Sums over all sequences become means under the checkpoint's names."""
            found = Findings()
            for name, value in self.skeleton.unconverted(values).items():
                found.tensors[f"{kind}/{name}"] = finite(value.contiguous() / total, kind, name)
            self.partial.save(f"{kind}-{place:04}", found)

        def on_group(done: int, total: int, run: int) -> None:
            self.partial.note(**{kind: done})
            self._tell(kind, done, total, run, began)

        Backward(
            name=kind,
            loss=kind,
            skeleton=self.skeleton,
            weights=self.weights,
            batches=self.batches,
            folder=self.partial.folder,
            seed=int(self.manifest.settings["seed"]),
            device=self.device,
            whole=whole,
            check=self._check,
            terms=self._labels(whole) if kind == EXACT else 1,
        ).run(Squares(kind), int(self.partial.facts.get(kind, 0)), on_group, means)

    def _labels(self, whole: bool) -> int:
        """The labels that a text could have, over all its positions, seen by running the first one."""
        found: list[int] = []

        def count(_: Batch, output: Any) -> None:
            logits = logits_of(output, self.skeleton.index.label)
            found.append(rows_of(logits, self.skeleton).numel())

        first, scratch = [self.batches.every[0].one(0)], self.partial.folder / "labels"
        with Walk(
            self.skeleton, self.weights, first, scratch, device=self.device, whole=whole, check=self._check
        ) as walk:
            for stage in walk.stages():
                stage.fill()
                stage.run(after=count if stage.path == REST else lambda *_: None)
        shutil.rmtree(scratch, ignore_errors=True)
        _check_labels(self.skeleton.index, found[-1])
        return found[-1]

    def _check(self) -> None:
        _check(self.should_stop)

    def _tell(self, path: str, done: int, total: int, run: int, began: float) -> None:
        tokens = self.batches.tokens * run / total
        speed = tokens / max(time.monotonic() - began, 1e-9)
        self.report(Progress(path, done, total, self.batches.tokens, speed, self.turn, self.turns))
