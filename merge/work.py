"""The arithmetic of one run: from the blocks of the inputs to the entries that are written."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint.digests import Digests
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.writer import ShardWriter
from merge.contract.factors import Factors
from merge.contract.method import get
from merge.plan import Plan
from merge.planning.forms.moe import MADE
from merge.planning.outputs import INTEGERS, Input, OutputTensor
from merge.planning.sizing import Sizes
from merge.results.moe import changed_expert
from merge.running import guesses, passes
from merge.running.binding import Binder
from merge.running.blocks import Buffers, Inputs, Rooms, cast_out
from merge.running.chain import Block, Chain, LoadBlock
from merge.running.crew import Crew
from merge.running.factored import Factored
from merge.running.fused.loop import NOWHERE, Target
from merge.running.fused.loops import Loops
from merge.running.fused.spans import Measuring, Writing
from merge.running.fused.windows import Windows
from merge.running.items import Item, even_spans, in_handfuls, in_shares
from merge.running.meter import Meter
from merge.running.places import all_read_again
from merge.running.statistics import NOTHING, Informed, OutputStatistics
from merge.running.survey.measure import Eager, Surveyor
from merge.running.survey.watch import Watch
from merge.running.tasks import Task
from merge.stage_reader import StageReader, forget_given, prepare_given
from merge.tokenizer.rows import TableReader

Outputs = Sequence[OutputTensor]
BATCH_ENTRIES, BATCH_BYTES = 1 << 25, 1 << 28
MOST_AT_ONCE = 4


class Work:
    """The arithmetic of one run: which models a tensor is read from, and the passes over its blocks."""

    def __init__(
        self,
        plan: Plan,
        readers: Mapping[str, TensorReader],
        crew: Crew,
        fitted: Sizes,
        meter: Meter,
        device: torch.device,
        surveyor: Surveyor,
        tables: TableReader | None,
        informed: Informed,
        digests: bool = True,
    ) -> None:
        self._plan = plan
        self._digests = digests
        self._surveyor = surveyor
        self.crew = crew
        self.sizes = fitted
        self.meter = meter
        self._device = device
        self._small = threading.Lock()
        self.buffers = Buffers()
        self._rooms = Rooms()
        self.readers = readers
        dtype = torch.float64 if plan.recipe.dtype.compute == "float64" else torch.float32
        self._inputs = Inputs(readers, self.buffers, dtype, tables)
        self._factored = Factored(readers)
        plainly = dtype == torch.float32 and device.type == "cpu"
        entries = sum(prod(output.shape) for output in plan.outputs)
        self._informed: dict[str, OutputStatistics] = {}
        self.inform(informed, plan.outputs)
        self._loops = Loops(self._inputs, self.buffers, entries, plainly, self._note_read, self._informed)
        for reader in readers.values():
            reader.take(self._loops.changing, self._loops.multiplying)
        self._outputs = {output.name: output for output in plan.outputs}
        self._surveyed = {
            output.name
            for place, output in enumerate(plan.outputs)
            if output.policy == "method" and surveyor.wants(place)
        }
        self._writing: dict[str, Writing | None] = {}
        self._entry: dict[str, int] = {}
        self._staged = any(isinstance(reader, StageReader) for reader in readers.values())
        bind = Binder(plan, self._outputs).chain
        self._chains = {output.name: bind(output) for output in plan.outputs if not copied(output)}
        meter.bytes_total = sum(self._bytes(output) * self._passes(output) for output in plan.outputs)

    def inform(self, informed: Informed, outputs: Iterable[OutputTensor]) -> None:
        """Lays down the statistics on data of these outputs."""
        methods = [get(step.name) for step in self._plan.steps]
        for output in outputs:
            if output.policy == "method":
                steps = zip(methods, output.settings, strict=True)
                self._informed[output.name] = informed.of(output, steps)

    def measure_global(self, journal: passes.Keeper) -> None:
        """The passes over all tensors that global statistics need, unless the journal has their values."""
        chains = list(self._chains.values())
        shared = passes.share_global(chains)
        if not shared:
            return
        if journal.shared is not None:
            passes.take_over(chains, shared, journal.shared)
            return
        tools = guesses.Tools(self._outputs, self._loops, self._load, self.crew, self.sizes.block)
        for level in range(1, passes.global_levels(chains) + 1):
            if not self._staged and guesses.found(chains, level, tools):
                continue
            for batch in passes.batches(chains, self.sizes.batch, BATCH_ENTRIES):
                made = [self._outputs[chain.site.name] for chain in batch]
                prepare_given(self.readers, made, self.crew)
                passes.measure(batch, level, self._load, self.crew, self.sizes.block, self._quick)
                forget_given(self.readers, made)
            passes.close_shared(chains, level)
        journal.add_shared([held.so_far for held in shared.values()])

    def state(self) -> Mapping[str, float]:
        """What a later run goes on from this result with; nothing where tensors have nothing or differ."""
        found = [
            step.method.state(chain.stats(0, None), step.params[0], chain.site)
            for chain in self._chains.values()
            for step in chain.steps[:1]
            if step.method.state is not None and chain.entries  # of no entries nothing was measured
        ]
        return found[0] if found and found[0] and all(each == found[0] for each in found) else {}

    @property
    def side_by_side(self) -> int:
        """How many shards are best written at the same time: as many as are hashed together, else one for
        each thread (a file takes in one write at a time), but few: a stop loses what is not finished.
        """
        return self._loops.hashing.lanes if self._digests else min(self.sizes.threads, MOST_AT_ONCE)

    def write(self, layouts: Sequence[ShardLayout], folder: Path) -> list[ShardWriter]:
        """Computes and writes the tensors of some shards, all of them; the caller must finish those."""
        beside, writers = Digests(self._loops.hashing), list[ShardWriter]()
        own: dict[str, ShardWriter] = {}
        with ExitStack() as stack:
            for layout in layouts:
                path = folder / layout.file
                writers.append(stack.enter_context(ShardWriter(path, layout, self._digests, beside)))
                own |= dict.fromkeys(layout.entries, writers[-1])
            outputs = [[self._outputs[name] for name in layout.entries] for layout in layouts]
            for batch in self._ready(outputs, self.crew):
                files = [in_handfuls(self._items(batch, layout)) for layout in layouts]
                self.crew.each_of(files, lambda some: self._write_items(own, some))
                self.forget(batch)
            stack.pop_all()
            return writers

    def take(self, made: Mapping[str, Tensor]) -> None:
        """Tensors that no input holds, by name."""
        self._inputs.made = made

    def ready(self, outputs: Outputs, crew: Crew | None = None) -> Iterator[Outputs]:
        """Some of the outputs after others, each when its statistics are there, by this crew or the run's."""
        return self._ready([outputs], crew or self.crew)

    def _ready(self, files: Sequence[Outputs], crew: Crew) -> Iterator[Outputs]:
        for batch in self._batches(files):
            prepare_given(self.readers, batch, crew)
            chains = [self._chains[o.name] for o in batch if o.name in self._chains]
            chains = [chain for chain in chains if chain.levels and not passes.alone(chain)]
            with all_read_again(self._loops.lying(self._outputs[chain.site.name]) for chain in chains):
                for level in range(1, max((chain.levels for chain in chains), default=0) + 1):
                    passes.measure(chains, level, self._load, crew, self.sizes.block, self._quick)
                yield batch

    def forget(self, outputs: Outputs) -> None:
        """Lets go of what was measured of these alone, which are made, and of what stages gave to them."""
        for output in outputs:
            self._writing.pop(output.name, None)
            for part in self._informed.get(output.name, NOTHING).parts():
                part.forget()
        for chain in filter(None, map(self.chain_of, outputs)):
            chain.forget()
        forget_given(self.readers, outputs)

    def chain_of(self, output: OutputTensor) -> Chain | None:
        """The steps bound to this tensor; ``None`` where it is taken over."""
        return self._chains.get(output.name)

    def entries(self, output: OutputTensor, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """Entries as they are written, part by part, each with its first."""
        chain = self._chains.get(output.name)
        if output.name not in self._writing:
            self._writing[output.name] = self._loop(chain, output)
        loop = self._writing[output.name]
        if chain is None:
            spans = ((first + at, size) for at, size in even_spans(count, self.sizes.block))
        else:
            spans = (span for span in chain.spans(self.sizes.block, first, count))
        for at, size in spans:
            self.meter.check()
            yield from self._made(Item(output, chain, loop, at, size, False))

    def merged(self, output: OutputTensor, first: int, count: int) -> Tensor:
        """Entries of a merged tensor, flat, on the CPU; valid until the next call on the same thread."""
        if copied(output):
            return self._inputs.equal(output, first, count)
        return self._computed(self._chains[output.name], first, count).reshape(-1).cpu()

    def finished(self, output: OutputTensor) -> None:
        """Counts a tensor that was made from ``merged``."""
        self.meter.add(self._bytes(output), 1)

    def read(self, source: Input, first: int, count: int) -> Tensor:
        """The same entries of one input, in the dtype of the arithmetic."""
        return self._inputs.load((source,), first, count)[0]

    def merged_factors(self, output: OutputTensor) -> Factors | None:
        """The merged change as factors, where the combine takes and gives those and nothing comes after."""
        chain = self._chains[output.name]
        return None if chain.on_factors is None or chain.adjusts else self._factored.made(chain, output)

    def chain(self, output: OutputTensor) -> Chain:
        """The steps bound to this tensor."""
        return self._chains[output.name]

    def measured(self, layout: ShardLayout) -> dict[str, list[float]]:
        """What the survey found in the tensors of a shard that was written."""
        found = {name: self._surveyor.measured(name) for name in layout.entries}
        return {name: each.as_list() for name, each in found.items() if each is not None}

    def watch(self, output: OutputTensor, load: LoadBlock | None = None) -> Watch:
        """As ``measured``, of a tensor that is merged for something other than a checkpoint, held against the
        base; ``load`` gives what entries are made from, where that is not to be read.
        """
        chain = self._chains.get(output.name)
        if chain is None or output.name not in self._surveyed:
            return Watch((), lambda *_: None, dict)
        base = Input("base", output.name)
        held = output if output.base is not None else replace(output, inputs=(base, *output.inputs))

        def read(chain: Chain, first: int, count: int) -> Block:
            start = self.read(base, first, count).to(self._device, copy=True)
            block = self._block(chain, first, count)
            return replace(block, base=start.view(block.shape)) if block.base is None else block

        def look(first: int, made: Tensor) -> None:
            loops = self._loops if load is None else Eager()
            self._surveyor.look(chain, held, first, made, load or read, loops)

        def told() -> dict[str, list[float]]:
            found = self._surveyor.measured(output.name)
            return {} if found is None else {output.name: found.as_list()}

        return Watch(self._surveyor.pieces(chain, 0, chain.entries), look, told)

    def facts(self, layout: ShardLayout) -> dict[str, list[float]]:  # noqa: ARG002
        """What a checkpoint needs to know of its shards in the end: nothing."""
        return {}

    def skip(self, layout: ShardLayout) -> None:
        """Counts a shard that need not be made."""
        self.skip_outputs([self._outputs[name] for name in layout.entries])

    def skip_outputs(self, outputs: Outputs) -> None:
        """Counts tensors that need not be made."""
        read = sum(self._bytes(output) * self._passes(output) for output in outputs)
        self.meter.add(read, len(outputs))

    def _batches(self, files: Sequence[Outputs]) -> Iterable[Outputs]:
        """Tensors without stats in one stream; with stats, some at a time, whose pages stay cached."""
        outputs = [output for own in files for output in own]
        if not self._staged and all(self._passes(output) == 1 for output in outputs):
            return [outputs]
        return in_shares(files, self._bytes, BATCH_BYTES, self.sizes.batch)

    def _items(self, outputs: Outputs, layout: ShardLayout) -> Iterator[Item]:
        for output in outputs:
            if output.name not in layout.entries:
                continue
            chain, total = self._chains.get(output.name), prod(output.shape)
            loop = self._loop(chain, output)
            size = self.sizes.block if loop is None else loop.span(self.sizes.block)
            spans = chain.spans(size) if chain else even_spans(total, size)
            for first, count in spans:
                yield Item(output, chain, loop, first, count, first + count == total)
            if total == 0:
                self.meter.add(0, 1)

    def _write_items(self, own: Mapping[str, ShardWriter], items: Sequence[Item]) -> None:
        with self._small if items[0].small else nullcontext():
            for item in items:
                self._write_item(own[item.output.name], item)

    def _write_item(self, writer: ShardWriter, item: Item) -> None:
        self.meter.check()
        name = item.output.name
        room, target = None, NOWHERE
        if item.loop is not None:
            room = self._rooms.take(item.loop.room(item.count))
            target = Target(*writer.place_of(name, item.first))
        for first, made in self._made(item, room, target):
            if item.chain is not None and name in self._surveyed:
                self._surveyor.look(item.chain, item.output, first, made, self._block, self._loops)
            if room is not None and made.data_ptr() == room.data_ptr():
                writer.write_at(name, first, made, partial(self._rooms.give, room), there=True)
            else:
                writer.write_at(name, first, made)
        if item.last and item.loop is not None:
            self._loops.lying(item.output).let_go()
        self.meter.add(self._entry_bytes(item.output) * item.count, int(item.last))

    def _made(
        self, item: Item, room: Tensor | None = None, target: Target = NOWHERE
    ) -> Iterator[tuple[int, Tensor]]:
        """The item's entries as they are written, flat, each part with its first: by the compiled loop in one
        go (into ``room``, and to the ``target``), else in blocks.
        """
        output, chain = item.output, item.chain
        found = None if item.loop is None else item.loop.made(item.first, item.count, room, target)
        if found is not None:
            yield item.first, found
            return
        dtype = torch_dtype(output.dtype, output.name)
        whole = [(item.first, item.count)]
        for first, count in chain.spans(self.sizes.block, item.first, item.count) if chain else whole:
            if chain is None:
                merged = self._inputs.equal(output, first, count)
            else:
                merged = self._computed(chain, first, count)
                merged = changed_expert(self._plan, output, merged, first)
            yield first, cast_out(output.name, merged, dtype, self.buffers)

    def _computed(self, chain: Chain, first: int, count: int) -> Tensor:
        if passes.alone(chain) and not all(task.measured for task in chain.tasks):
            whole = self._block(chain, 0, chain.entries)
            passes.settle(chain, whole)
            if count == chain.entries:
                return chain.compute(whole)
        alone = chain.on_factors is not None and not chain.adjusts
        return chain.compute(self._block(chain, first, count, base_alone=alone))

    def _loop(self, chain: Chain | None, output: OutputTensor) -> Writing | None:
        """The compiled loop of a tensor, unless more is done to it than its chain says."""
        more = self._plan.moe is not None and output.name in self._plan.moe.changed
        if chain is None or more or passes.alone(chain):
            return None
        return self._loops.writing(chain, output)

    def _load(self, chain: Chain, first: int, count: int) -> Block:
        block = self._block(chain, first, count)
        self._note_read(self._outputs[chain.site.name], count)
        return block

    def _note_read(self, output: OutputTensor, count: int) -> None:
        self.meter.check()
        self.meter.add(self._entry_bytes(output) * count)

    def _quick(self, chain: Chain, tasks: Sequence[Task], guess: bool) -> Measuring | Windows | None:
        return self._loops.measuring(chain, self._outputs[chain.site.name], tasks, guess)

    def _block(self, chain: Chain, first: int, count: int, base_alone: bool = False) -> Block:
        """These entries of all inputs; ``base_alone`` where the steps look at factors and the base only."""
        output = self._outputs[chain.site.name]
        shape = chain.block_shape(count)
        read = self._inputs.load(output.inputs[:1] if base_alone else output.inputs, first, count)
        tensors = [tensor.view(shape).to(self._device) for tensor in read]
        base, sources = (tensors[0], tensors[1:]) if output.base is not None else (None, tensors)
        known = self._informed.get(output.name, NOTHING).at(first, shape, tensors[0])
        change = None
        if chain.on_factors is not None:
            change = self._factored.change(chain, output, first, count, self._inputs.dtype)
            change = change.view(shape).to(self._device)
        return Block(first, shape, base, sources, statistics=known, change=change)

    def _bytes(self, output: OutputTensor) -> int:
        """Of all its inputs, read once."""
        return self._entry_bytes(output) * prod(output.shape)

    def _entry_bytes(self, output: OutputTensor) -> int:
        if output.name not in self._entry:
            models = self._plan.models
            infos = [models[source.model].tensors[source.tensor] for source in output.inputs]
            self._entry[output.name] = sum(-(-info.nbytes // max(info.numel, 1)) for info in infos)
        return self._entry[output.name]

    def _passes(self, output: OutputTensor) -> int:
        chain = self._chains.get(output.name)
        return 1 + (0 if chain is None else passes.count(chain))


def copied(output: OutputTensor) -> bool:
    """Whether a tensor is taken over as it is: no arithmetic is done on whole numbers."""
    return output.policy in ("equal", MADE) or output.dtype in INTEGERS
