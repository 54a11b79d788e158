"""Carries out a plan: reads blocks, merges them, writes shards in place; stops, fails and goes on without
loss.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from merge import passes
from merge.blocks import Buffers, Crew, Inputs, cast_out, kept_memory, torch_threads
from merge.chain import Block, Bound, Chain
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.index import safe_path
from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.writer import ShardWriter
from merge.contract.groups import Site
from merge.contract.method import Kind, get
from merge.errors import BudgetTooSmall, FileMissing, InputChanged, OutputExists, Stopped
from merge.finish import (
    MANIFEST_FILE,
    inputs_manifest,
    read_manifest,
    sync_folder,
    write_manifest,
    write_small_files,
)
from merge.journal import FILE, Finished, Journal, open_journal, partial_folder, sha256_of
from merge.methods import load as load_methods
from merge.outputs import OutputTensor, inputs_of
from merge.plan import Plan, compute_bytes, whole_entries
from merge.report import OutputFile, Progress, Report, ShardDone
from merge.sizing import Sizes, sizes

BATCH_ENTRIES = 1 << 24
REPORTS = 200


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
) -> Report:
    """Merges into the folder ``out``, which appears when everything in it is complete.

    ``folders`` holds the model of every key of ``plan.models`` that is read, and ``<key>+adapter`` for
    adapters. Until the end the work is in ``<out>.partial``; shards finished there by an earlier run of the
    same plan on the same inputs are verified and kept. ``on_progress`` and ``should_stop`` are called from
    worker threads, one at a time. Raises ``Stopped``, ``NotFinite``, ``TensorsDiffer``, ``InputChanged``,
    ``OutputExists``, ``DiskFull`` and others of ``MergeError``.
    """
    load_methods()
    _check_inputs(plan, folders)
    inputs = inputs_manifest(plan, folders)
    if out.exists():
        return _already_there(plan, inputs, out)
    partial = partial_folder(out)
    journal = open_journal(partial, plan.digest, inputs)
    whole, _ = whole_entries(plan.granularity, plan.outputs)
    crew = 1 if plan.granularity == "tensor" else max(1, threads)
    fitted = sizes(len(plan.recipe.sources) + 1, compute_bytes(plan.recipe), whole, crew, budget_bytes)
    if fitted is None:
        raise BudgetTooSmall(
            f"{budget_bytes} bytes of memory are too few for {plan.granularity} blocks; give more."
        )
    within = max(1, threads) if plan.granularity == "tensor" else 1
    meter = _Meter(plan, on_progress, should_stop)
    with ExitStack() as stack:
        stack.enter_context(kept_memory())
        stack.enter_context(torch_threads(within))
        readers = {
            key: stack.enter_context(_reader(plan, key, folders)) for key in plan.models if key in folders
        }
        workers = stack.enter_context(Crew(fitted.threads, within))
        work = _Work(plan, readers, workers, fitted, meter, torch.device(device))
        work.measure_global(journal)
        weights = [_shard(layout, work, journal, on_shard) for layout in plan.shards]
    small = write_small_files(plan, folders, partial)
    manifest, files = write_manifest(plan, inputs, weights, small, partial, torch.device(device).type)
    sync_folder(partial)
    partial.rename(out)
    sync_folder(out.parent)
    (out / FILE).unlink()
    return Report(out, tuple(files), manifest, len(plan.outputs), meter.bytes_done)


def _check_inputs(plan: Plan, folders: Mapping[str, Path]) -> None:
    """Every folder that is read is there, with files of the sizes the plan was made from."""
    needed = dict.fromkeys(
        (plan.reference, *(k for o in plan.outputs for k in inputs_of(o.policy, plan.recipe)))
    )
    for key in needed:
        index = plan.models[key]
        wanted = [(key, file, index.files[file]) for file in index.shards]
        if index.adapter is not None:
            weights = [name for name in index.adapter.files if name.endswith(".safetensors")]
            wanted += [(f"{key}+adapter", file, index.adapter.files[file]) for file in weights]
        for folder, file, size in wanted:
            if folder not in folders:
                raise FileMissing(f"The folder of {folder} was not given.")
            path = safe_path(folders[folder], file)
            if not path.is_file() or path.stat().st_size != size:
                raise InputChanged(
                    f"{file} of {index.label} is not the file that was planned with; plan again."
                )


def _already_there(plan: Plan, inputs: Mapping[str, Any], out: Path) -> Report:
    """A finished output of the same plan and inputs is the result; anything else is in the way."""
    found = read_manifest(out)
    if found is None or found.get("plan_sha256") != plan.digest or found.get("inputs") != inputs:
        raise OutputExists(
            f"{out} is already there and is not this merge; choose another folder or remove it."
        )
    (out / FILE).unlink(missing_ok=True)
    files = [OutputFile(name, f["sha256"], f["size"], reused=True) for name, f in found["files"].items()]
    own = out / MANIFEST_FILE
    files.append(OutputFile(MANIFEST_FILE, sha256_of(own), own.stat().st_size, reused=True))
    return Report(out, tuple(files), found, len(plan.outputs), 0)


def _reader(plan: Plan, key: str, folders: Mapping[str, Path]) -> TensorReader:
    return TensorReader(folders[key], plan.models[key], folders.get(f"{key}+adapter"))


def _shard(
    layout: ShardLayout, work: "_Work", journal: Journal, on_shard: Callable[[ShardDone], None]
) -> OutputFile:
    """Writes one shard, or takes over the one an earlier run has finished."""
    path = journal.folder / layout.file
    done = journal.shards.get(layout.file)
    reused = done is not None
    if done is None:
        written = work.write(layout, path)
        done = Finished(written.file, written.size, written.sha256)
        journal.add_shard(done)
    else:
        work.skip(layout)
    if not done.released:
        on_shard(ShardDone(done.file, path, done.sha256, done.size, reused))
        if not path.exists():
            done = Finished(done.file, done.size, done.sha256, released=True)
            journal.add_shard(done)
    return OutputFile(done.file, done.sha256, done.size, reused, done.released)


class _Meter:
    """Counts what is done, tells it now and then, and asks whether to stop; one thread at a time."""

    def __init__(self, plan: Plan, tell: Callable[[Progress], None], should_stop: Callable[[], bool]) -> None:
        self._tell = tell
        self._should_stop = should_stop
        self._lock = threading.Lock()
        self._tensors = 0
        self._tensors_total = len(plan.outputs)
        self._told = 0
        self.bytes_done = 0
        self.bytes_total = 0

    def check(self) -> None:
        """Raises ``Stopped`` when the caller wants that."""
        with self._lock:
            if self._should_stop():
                raise Stopped(
                    "The merge was stopped; finished files are kept, and the same run would go on from them."
                )

    def add(self, read: int, tensors: int = 0) -> None:
        """Counts bytes read and tensors written."""
        with self._lock:
            self.bytes_done += read
            self._tensors += tensors
            due = self.bytes_done - self._told >= self.bytes_total / REPORTS
            if due or self._tensors == self._tensors_total:
                self._told = self.bytes_done
                self._tell(Progress(self._tensors, self._tensors_total, self.bytes_done, self.bytes_total))


@dataclass(frozen=True)
class _Item:
    output: OutputTensor
    chain: Chain | None
    first: int
    count: int
    last: bool


class _Work:
    """The arithmetic of one run: which models a tensor is read from, and the passes over its blocks."""

    def __init__(
        self,
        plan: Plan,
        readers: Mapping[str, TensorReader],
        crew: Crew,
        fitted: Sizes,
        meter: _Meter,
        device: torch.device,
    ) -> None:
        self._plan = plan
        self._crew = crew
        self._sizes = fitted
        self._meter = meter
        self._device = device
        self._buffers = Buffers()
        dtype = torch.float64 if plan.recipe.dtype.compute == "float64" else torch.float32
        self._inputs = Inputs(readers, self._buffers, dtype)
        self._outputs = {output.name: output for output in plan.outputs}
        self._params: dict[Any, tuple[Bound, ...]] = {}
        self._chains = {
            output.name: self._chain(output) for output in plan.outputs if output.policy != "equal"
        }
        meter.bytes_total = sum(self._entry_bytes(o) * prod(o.shape) * self._passes(o) for o in plan.outputs)

    def measure_global(self, journal: Journal) -> None:
        """The passes over all tensors that global statistics need; skipped where the journal has their
        values.
        """
        chains = list(self._chains.values())
        shared = passes.share_global(chains)
        if not shared:
            return
        if journal.shared is not None:
            for held, value in zip(shared.values(), journal.shared, strict=True):
                held.so_far = tuple(value)
            for chain in chains:
                for task in chain.tasks:
                    if task.shared is not None:
                        task.shared.rounds_done = task.stat.rounds
            return
        for level in range(1, passes.global_levels(chains) + 1):
            for batch in passes.batches(chains, self._sizes.batch, BATCH_ENTRIES):
                passes.measure(batch, level, self._load, self._crew, self._sizes.block)
            passes.close_shared(chains, level)
        journal.add_shared([held.so_far for held in shared.values()])

    def write(self, layout: ShardLayout, path: Path) -> Any:
        """Computes and writes the tensors of one shard; gives its size and sha256."""
        with ShardWriter(path, layout) as writer:
            for batch in self._batches([self._outputs[name] for name in layout.entries]):
                chains = [self._chains[o.name] for o in batch if o.name in self._chains]
                for level in range(1, max((chain.levels for chain in chains), default=0) + 1):
                    passes.measure(chains, level, self._load, self._crew, self._sizes.block)
                self._crew.each(self._items(batch), lambda item: self._write_item(writer, item))
            return writer.finish()

    def skip(self, layout: ShardLayout) -> None:
        """Counts a shard that need not be made."""
        outputs = [self._outputs[name] for name in layout.entries]
        read = sum(self._entry_bytes(o) * prod(o.shape) * self._passes(o) for o in outputs)
        self._meter.add(read, len(outputs))

    def _batches(self, outputs: Sequence[OutputTensor]) -> Any:
        """Tensors without stats go through in one stream; with stats, some at a time, so that pages stay
        cached.
        """
        if all(self._passes(output) == 1 for output in outputs):
            return [outputs]
        found: list[list[OutputTensor]] = [[]]
        for output in outputs:
            entries = sum(prod(o.shape) for o in found[-1])
            if len(found[-1]) >= self._sizes.batch or entries >= BATCH_ENTRIES:
                found.append([])
            found[-1].append(output)
        return found

    def _items(self, outputs: Sequence[OutputTensor]) -> Any:
        for output in outputs:
            chain = self._chains.get(output.name)
            total = prod(output.shape)
            spans = chain.spans(self._sizes.block) if chain else _even_spans(total, self._sizes.block)
            for first, count in spans:
                yield _Item(output, chain, first, count, first + count == total)
            if total == 0:
                self._meter.add(0, 1)

    def _write_item(self, writer: ShardWriter, item: _Item) -> None:
        self._meter.check()
        output = item.output
        dtype = torch_dtype(output.dtype, output.name)
        if item.chain is None:
            keys = inputs_of(output.policy, self._plan.recipe)
            merged = self._inputs.equal(output, keys, item.first, item.count)
        else:
            merged = item.chain.compute(self._block(item.chain, item.first, item.count))
        writer.write_at(output.name, item.first, cast_out(output.name, merged, dtype, self._buffers))
        self._meter.add(self._entry_bytes(output) * item.count, int(item.last))

    def _load(self, chain: Chain, first: int, count: int) -> Block:
        self._meter.check()
        block = self._block(chain, first, count)
        self._meter.add(self._entry_bytes(self._outputs[chain.site.name]) * count)
        return block

    def _block(self, chain: Chain, first: int, count: int) -> Block:
        output = self._outputs[chain.site.name]
        keys = inputs_of(output.policy, self._plan.recipe)
        shape = chain.block_shape(count)
        read = self._inputs.load(output.name, keys, first, count)
        tensors = [tensor.view(shape).to(self._device) for tensor in read]
        if keys[0] == "base" and output.policy == "method":
            return Block(first, shape, tensors[0], tensors[1:])
        return Block(first, shape, None, tensors)

    def _chain(self, output: OutputTensor) -> Chain:
        ids = self._plan.recipe.source_ids()
        if output.policy == "method":
            site = Site(output.name, output.role, output.shape, ids)
            return Chain(site, self._bound(output), output.weights, self._plan.recipe.seed)
        models = inputs_of(output.policy, self._plan.recipe)
        site = Site(output.name, output.role, output.shape, models)
        method = get("linear")
        bound = Bound(method, (method.settings({}, len(models)),), "policy")
        return Chain(site, (bound,), (1.0,) * len(models), self._plan.recipe.seed)

    def _bound(self, output: OutputTensor) -> tuple[Bound, ...]:
        key = tuple(map(id, output.settings))
        if key not in self._params:
            self._params[key] = tuple(
                self._bind(place, settings) for place, settings in enumerate(output.settings)
            )
        return self._params[key]

    def _bind(self, place: int, settings: Mapping[str, Any]) -> Bound:
        names = [step.method for step in self._plan.recipe.steps]
        method, count = get(names[place]), len(self._plan.recipe.sources)
        label = f"{method.name}#{names[:place].count(method.name)}"
        if method.kind is Kind.PREPARE:
            each = tuple(method.settings(settings, count, position) for position in range(count))
            return Bound(method, each, label)
        return Bound(method, (method.settings(settings, count),), label)

    def _entry_bytes(self, output: OutputTensor) -> int:
        models = self._plan.models
        infos = [models[key].tensors[output.name] for key in inputs_of(output.policy, self._plan.recipe)]
        return sum(info.nbytes // max(info.numel, 1) for info in infos)

    def _passes(self, output: OutputTensor) -> int:
        chain = self._chains.get(output.name)
        levels = (
            {task.first_level + at for task in chain.tasks for at in range(task.stat.rounds)}
            if chain
            else set()
        )
        return 1 + len(levels)


def _even_spans(total: int, size: int) -> Any:
    for first in range(0, total, size):
        yield first, min(size, total - first)
