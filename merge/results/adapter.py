"""Makes a LoRA adapter in PEFT's form: factors of what the merge changes in every module.

Each module is made by itself, in float64, by one thread, and lands in a file of its own under ``parts``, so
that a run which was interrupted goes on module by module. At the end the parts become one file.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import hypot, isfinite, prod, sqrt
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.checkpoint.adapter_names import CONFIG_FILE, WEIGHT_FILE
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.layout import TensorSpec, lay_out
from merge.checkpoint.writer import ShardWriter
from merge.errors import NotFinite, NothingChanged
from merge.journal import Finished, Journal
from merge.kernels.keyed import key_of
from merge.kernels.spectral import LowRank, decompose, decompose_product, gathered
from merge.kernels.truncation import block_rows
from merge.plan import Plan
from merge.planning.forms.adapter import AdapterPlan, LoraModule, module_of
from merge.planning.outputs import Input, OutputTensor
from merge.results.called import Names, called, notes_of, pieces_of
from merge.results.finish import write_json
from merge.results.merging import Merging
from merge.results.peft import (
    Made,
    Saved,
    adapter_config,
    evened,
    factor_names,
    loadable,
    losses,
    saved_name,
    unchanged,
)
from merge.running.blocks import cast_out
from merge.running.chain import Block, Chain
from merge.running.survey.watch import Watch

PARTS = "parts"
_FACTS = "facts"


@dataclass(frozen=True)
class Parts:
    """What was made of an adapter plan: modules, whole tensors, and the norm of each change left out."""

    made: tuple[Made, ...]
    saved: tuple[Saved, ...]
    dropped: Mapping[str, float]


def make_adapter(
    plan: Plan, work: Merging, journal: Journal, budget: int
) -> tuple[Finished, list[str], dict[str, Any]]:
    """Makes the folder's files; gives the finished weights, the other files' names and facts to be told.

    Of the ``budget`` bytes, those that the plan does not need keep changes between passes over them.
    """
    assert plan.adapter is not None
    held = max(0, budget - work.sizes.peak_bytes) // work.sizes.threads
    maker = _Maker(plan, plan.adapter, work, journal, held)
    jobs = _jobs(plan.adapter, maker)
    (journal.folder / PARTS).mkdir(exist_ok=True)
    for batch in work.ready(plan.adapter.outputs):
        work.crew.each(batch, lambda output: jobs[output.name]())
        work.forget(batch)
    parts = maker.parts()
    if not parts.saved and not any(made.rank for made in parts.made):
        raise NothingChanged("No module of the result differs from the base: an adapter would be empty.")
    base = plan.models["base"]
    other = called(base)
    made = evened(loadable([*parts.made, *map(unchanged, plan.adapter.beside)]))
    names = {each.tensor for each in made} | {each.output.name for each in parts.saved}
    notes = notes_of(base, {name: other[name] for name in sorted(names & other.keys())})
    finished = _assemble(made, parts.saved, plan.adapter.dtype, journal, other, notes)
    write_json(journal.folder / CONFIG_FILE, adapter_config(base, made, parts.saved, other))
    shutil.rmtree(journal.folder / PARTS)
    roles = {output.name: output.role for output in plan.adapter.outputs}
    return finished, [CONFIG_FILE], {"adapter": losses(parts.made, parts.saved, parts.dropped, roles)}


def _jobs(adapter: AdapterPlan, maker: "_Maker") -> dict[str, Callable[[], None]]:
    modules = {module.output.name: module for module in adapter.modules}
    saved = {output.name for output in adapter.saved}
    jobs: dict[str, Callable[[], None]] = {}
    for place, output in enumerate(adapter.outputs):
        file = f"{PARTS}/{place:05d}.safetensors"
        if output.name in modules:
            jobs[output.name] = maker.job(maker.factor, file, modules[output.name])
        elif output.name in saved:
            jobs[output.name] = maker.job(maker.save, file, output)
        else:
            jobs[output.name] = maker.job(maker.measure, file, output)
    return jobs


def _assemble(
    made: Sequence[Made],
    whole: Sequence[Saved],
    dtype: str,
    journal: Journal,
    other: Names,
    notes: Mapping[str, str],
) -> Finished:
    """Puts the parts together to ``adapter_model.safetensors``, in the order of their names, by which the
    base's tensors are called ``other`` than in its files.
    """
    done = journal.shards.get(WEIGHT_FILE)
    if done is not None:
        return done
    named: dict[str, tuple[str, tuple[int, ...], str, int]] = {}
    order: dict[str, tuple[str, int]] = {}
    paths = {module_of(piece.name) for each in made for piece in pieces_of(other, each.tensor)}
    for each in made:
        rows, columns = each.shape
        for piece in pieces_of(other, each.tensor) if each.rank else ():
            a, b = factor_names(each.module.kind, module_of(piece.name))
            named[a] = (each.names[0], (each.rank, columns), each.file, 0)
            named[b] = (each.names[1], (piece.rows or rows, each.rank), each.file, piece.first)
    for saved in whole:
        pieces = pieces_of(other, saved.output.name)
        for piece in pieces:
            name = saved_name(piece.name, paths)
            shape = saved.shape if piece.rows is None else (piece.rows, *saved.shape[1:])
            named[name] = (saved.name, shape, saved.file, piece.first)
            order[name] = (saved_name(pieces[0].name, paths), piece.first)  # one behind the other
    ordered = sorted(named, key=lambda name: order.get(name, (name, 0)))
    specs: list[TensorSpec] = [(name, dtype, named[name][1]) for name in ordered]
    layout = lay_out(WEIGHT_FILE, specs, notes)
    with ShardWriter(journal.folder / WEIGHT_FILE, layout) as writer:
        for name, _, _ in specs:
            part, wanted, file, first = named[name]
            stored = load_file(journal.folder / file).get(part) if file else None
            if stored is not None and wanted:
                stored = stored[first : first + wanted[0]]
            writer.write_at(name, 0, _filled(stored, wanted, torch_dtype(dtype, name)).reshape(-1))
        written = writer.finish()
    finished = Finished(written.file, written.size, written.sha256)
    journal.add_shard(finished)
    return finished


def _filled(stored: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What was made, up to the shape with zeros: directions that change nothing."""
    if stored is not None and stored.shape == shape:
        return stored
    filled = torch.zeros(shape, dtype=dtype)
    if stored is not None:
        filled[: stored.shape[0], : stored.shape[1]] = stored
    return filled


class _Maker:
    """The arithmetic of one module, and the files it goes to."""

    def __init__(self, plan: Plan, adapter: AdapterPlan, work: Merging, journal: Journal, held: int) -> None:
        self._plan, self._adapter, self._work, self._journal = plan, adapter, work, journal
        self._held = held
        self._whole = plan.granularity == "tensor"
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}
        self._files: dict[str, tuple[str, Any]] = {}

    def job(self, make: Callable[[str, Any], None], file: str, what: Any) -> Callable[[], None]:
        """Makes one part, unless an earlier run has."""
        output = what.output if isinstance(what, LoraModule) else what

        def work() -> None:
            self._work.meter.check()
            if file not in self._journal.shards:
                make(file, what)
            with self._lock:
                self._files[output.name] = (file, what)
            self._work.finished(output)

        return work

    def factor(self, file: str, module: LoraModule) -> None:
        """A module's factors, with what is lost by cutting and by rounding them."""
        low = self._from_factors(module) if module.factored else self._from_change(module)
        if not isfinite(low.norm):
            raise NotFinite(f"{module.output.name}: the change is not finite; check the weights and scales.")
        left, right = (low.right.T, low.left.T) if module.turned else (low.left, low.right)
        a, b = (self._rounded(module.output.name, side) for side in (right, left))
        lost = hypot(low.error, _distance(left, right, b.double(), a.double()) / (low.norm or 1.0))
        names = factor_names(module.kind, module.path)
        found = self._look_at_factors(module.output, low) if module.factored else self._told(module.output)
        self._write(file, {names[0]: a, names[1]: b} if low.rank else {}, [low.norm, lost * low.norm], found)

    def save(self, file: str, output: OutputTensor) -> None:
        """A whole tensor."""
        name = saved_name(output.name, self._lora_paths())
        spec = (name, self._adapter.dtype, output.shape)
        layout = lay_out(file, [spec])
        dtype = torch_dtype(self._adapter.dtype, name)
        with ShardWriter(self._journal.folder / file, layout) as writer:
            for first, count in self._spans(output):
                merged = self._work.merged(output, first, count)
                writer.write_at(name, first, cast_out(name, merged, dtype, self._work.buffers))
                self._watch(output).saw(first, merged.clone())
            self._record(writer, self._told(output))

    def measure(self, file: str, output: OutputTensor) -> None:
        """How large the change is that the adapter leaves out."""
        total = sum(float(block.double().square().sum()) for block in self._change(output))
        self._write(file, {}, [total**0.5, total**0.5], self._told(output))

    def parts(self) -> Parts:
        """Everything that was made, in the order of the plan."""
        made, saved, dropped = [], [], {}
        for output in self._adapter.outputs:
            file, what = self._files[output.name]
            tensors = load_file(self._journal.folder / file)
            if isinstance(what, LoraModule):
                norm, lost = tensors[_FACTS].tolist()
                names = factor_names(what.kind, what.path)
                rank = tensors[names[0]].shape[0] if names[0] in tensors else 0
                shape = output.shape[::-1] if what.turned else output.shape
                made.append(Made(what, file, names, (shape[0], shape[1]), rank, norm, lost))
            elif _FACTS in tensors:
                dropped[output.name] = float(tensors[_FACTS][0])
            else:
                saved.append(Saved(output, file, next(iter(tensors)), output.shape))
        return Parts(tuple(made), tuple(saved), dropped)

    def _from_factors(self, module: LoraModule) -> LowRank:
        """The sum of c_i s_i B_i A_i over the sources, by their own factors alone."""
        output = module.output
        made = self._work.merged_factors(output)
        if made is not None:
            low = decompose_product([made.left], [made.right], self._adapter.wanted)
            whole = hypot(low.norm, made.lost)
            lost = hypot(low.error * low.norm, made.lost)
            return LowRank(low.left, low.right, whole, lost / whole if whole else 0.0)
        lefts, rights = [], []
        for source, factor in zip(output.sources, self._factors(output), strict=True):
            adapter = self._plan.models[source.model].adapter
            if adapter is not None and source.tensor in adapter.pairs and factor:
                left, right = self._work.readers[source.model].factors(source.tensor, torch.float64)
                lefts.append(left * factor)
                rights.append(right)
        if not lefts:
            rows, columns = output.shape
            return LowRank(torch.zeros(rows, 0).double(), torch.zeros(0, columns).double(), 0.0, 0.0)
        return decompose_product(lefts, rights, self._adapter.wanted)

    def _factors(self, output: OutputTensor) -> list[float]:
        """What the steps, which are linear, multiply each source with: they are shown unit vectors."""
        count = len(output.inputs)
        units = list(torch.eye(count, dtype=torch.float64))
        base, sources = (units[0], units[1:]) if output.base is not None else (None, units)
        merged = self._work.chain(output).compute(Block(0, (count,), base, sources)).tolist()
        return merged[1:] if output.base is not None else merged

    def _from_change(self, module: LoraModule) -> LowRank:
        output = module.output
        rows, columns = output.shape
        key = key_of(self._plan.recipe.seed, output.name, "lora")
        entry = self._work.merged(output, 0, columns).element_size() if not self._whole else 0
        wanted, high = self._adapter.wanted, block_rows(columns)
        if not self._whole and rows * columns * entry > self._held:
            return decompose(partial(self._change, output), (rows, columns), wanted, key)
        change = next(self._change(output)) if self._whole else gathered(self._change(output), rows)
        blocks = [change[row : row + high] for row in range(0, rows, high)]
        return decompose(lambda: iter(blocks), (rows, columns), wanted, key)

    def _change(self, output: OutputTensor) -> Iterator[Tensor]:
        """The merged tensor minus the base's, in blocks of whole rows that the shape alone decides."""
        columns = _columns(output)
        total = prod(output.shape)
        height = total // max(columns, 1) if self._whole else block_rows(columns)
        base = Input("base", output.name)
        for first in range(0, total, height * columns):
            count = min(height * columns, total - first)
            block: Tensor | None = None
            for at, size in self._spans(output, first, count):
                merged = self._work.merged(output, at, size)
                if block is None:
                    block = torch.empty(count, dtype=merged.dtype)
                place = block[at - first : at - first + size].copy_(merged)
                self._watch(output).saw(at, place)
                place.sub_(self._work.read(base, at, size))
            assert block is not None  # a block has at least one span
            yield block.view(-1, columns)

    def _spans(
        self, output: OutputTensor, first: int = 0, count: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Whole rows at a time, as many as fit."""
        end = prod(output.shape) if count is None else first + count
        columns = _columns(output)
        step = end - first if self._whole else max(1, self._work.sizes.block // columns) * columns
        for at in range(first, end, max(step, 1)):
            self._work.meter.check()
            yield at, min(step, end - at)

    def _rounded(self, name: str, side: Tensor) -> Tensor:
        dtype = torch_dtype(self._adapter.dtype, name)
        return cast_out(name, side, dtype, self._work.buffers).clone().view(side.shape)

    def _lora_paths(self) -> frozenset[str]:
        return frozenset(module.path for module in self._adapter.modules)

    def _write(
        self,
        file: str,
        tensors: Mapping[str, Tensor],
        facts: Sequence[float],
        found: Mapping[str, list[float]],
    ) -> None:
        specs = [(name, self._adapter.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
        layout = lay_out(file, [*specs, (_FACTS, "F64", (len(facts),))])
        with ShardWriter(self._journal.folder / file, layout) as writer:
            for name, tensor in tensors.items():
                writer.write_at(name, 0, tensor.contiguous().view(-1))
            writer.write_at(_FACTS, 0, torch.tensor(facts, dtype=torch.float64))
            self._record(writer, found)

    def _watch(self, output: OutputTensor) -> Watch:
        """What is shown a tensor's blocks when they are merged."""
        with self._lock:
            found = self._watches.get(output.name)
            if found is None:
                found = self._watches[output.name] = self._work.watch(output)
            return found

    def _told(self, output: OutputTensor) -> Mapping[str, list[float]]:
        """What the merge report says of a tensor all of which was merged."""
        watch = self._watch(output)
        with self._lock:
            del self._watches[output.name]
        return watch.told()

    def _look_at_factors(self, output: OutputTensor, low: LowRank) -> Mapping[str, list[float]]:
        """The same of a module made from factors, whose base is not read: its own changes, from zero on."""
        pairs = []
        for source in output.sources:
            adapter = self._plan.models[source.model].adapter
            has = adapter is not None and source.tensor in adapter.pairs
            pairs.append(
                self._work.readers[source.model].factors(source.tensor, torch.float64) if has else None
            )

        def load(chain: Chain, first: int, count: int) -> Block:
            shape, zero = chain.block_shape(count), torch.zeros(count)
            parts = [zero if pair is None else product_entries(*pair, first, count) for pair in pairs]
            return Block(first, shape, zero.view(shape), [part.view(shape) for part in parts])

        watch = self._work.watch(output, load)
        for first, count in watch.pieces:
            watch.saw(first, product_entries(low.left, low.right, first, count))
        return watch.told()

    def _record(self, writer: ShardWriter, found: Mapping[str, list[float]]) -> None:
        """Notes a part as done, with what the merge report says of its tensor."""
        written = writer.finish()
        with self._lock:
            self._journal.add_shard(Finished(written.file, written.size, written.sha256, measured=found))


def product_entries(left: Tensor, right: Tensor, first: int, count: int) -> Tensor:
    """Entries of left @ right, flat, in float32, without forming other rows."""
    columns = right.shape[1]
    top, bottom = first // columns, -(-(first + count) // columns)
    return (left[top:bottom] @ right).view(-1)[first - top * columns :][:count].float()


def _columns(output: OutputTensor) -> int:
    return max(1, prod(output.shape[1:]) if len(output.shape) > 1 else prod(output.shape))


def _distance(left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor) -> float:
    """Frobenius norm of left @ right - other_left @ other_right, without forming either."""
    lefts = torch.cat([left - other_left, other_left], dim=1)
    rights = torch.cat([right, right - other_right], dim=0)
    squared = float(((lefts.T @ lefts) * (rights @ rights.T)).sum())
    return sqrt(max(0.0, squared))
