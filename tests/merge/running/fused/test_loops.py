"""Compiled loops give the bits of the eager code, and leave to it what they do not understand."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.checkpoint.dtype import safetensors_name
from merge.contract.groups import Site, TensorGroup
from merge.contract.method import Kind, Method
from merge.planning.outputs import Input, OutputTensor
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.blocks import Buffers
from merge.running.chain import Block, Chain
from merge.running.fused import compiler, loops
from merge.running.fused.loops import Loops
from merge.running.fused.trace import Tracer, Untraceable
from merge.running.fused.windows import Windows, counted, found_in
from merge.running.places import Place
from merge.running.statistics import NOTHING, OutputStatistics
from tests.merge.every import METHODS, count_of, moved, steps_of
from tests.merge.whole import bound, known_for

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(3, PIECE_ELEMENTS // 2 - 1000), (150_001,)]


@pytest.fixture(autouse=True)
def _small_jobs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LEAST_ENTRIES", 1)
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)


class Memory:
    """In place of files: entries that lie in memory."""

    adapters = ()

    def __init__(self, stored: Sequence[Tensor]) -> None:
        self.held = list(stored)

    def lying(self, inputs: Sequence[Input]) -> "Memory":
        return self

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(safetensors_name(each.dtype) for each in self.held)

    in_files = True

    @contextmanager
    def at(self, first: int, count: int) -> Iterator[list[Place]]:
        yield places(self.held, first)


def output_of(shape: tuple[int, ...], stored: Sequence[Tensor], based: bool, dtype: str) -> OutputTensor:
    inputs = tuple(Input(str(place), "w") for place in range(len(stored)))
    weights = (1.0, 0.5, 2.0)[: len(stored) - based]
    return OutputTensor("w", dtype, shape, "linear", 0, "method", (), weights, inputs)


def entries(shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """A base and sources near it, with zeros of both signs, denormals and entries that do not differ."""
    generator = torch.Generator().manual_seed(11)
    count = torch.Size(shape).numel()
    base = torch.randn(count, generator=generator)
    base[::13] = 0.0
    base[3::29] = 3e-40
    base[4::31] = -2e-6
    found = [base]
    for place in range(1, len(dtypes)):
        moved = torch.randn(count, generator=generator) * 0.05
        moved[place :: len(dtypes) + 1] = 0.0
        found.append(base + moved)
    return [values.to(dtype) for values, dtype in zip(found, dtypes, strict=True)]


def chain_of(steps: Any, shape: tuple[int, ...], count: int) -> Chain:
    site = Site("w", "linear", shape, tuple("abc"[:count]))
    return Chain(site, bound(steps, count), (1.0, 0.5, 2.0)[:count], 7)


def places(stored: Sequence[Tensor], first: int) -> list[Place]:
    return [Place(-1, 0, values[first:].data_ptr(), values) for values in stored]


def block_of(
    chain: Chain,
    stored: Sequence[Tensor],
    based: bool,
    first: int,
    count: int,
    known: OutputStatistics = NOTHING,
) -> Block:
    shape = chain.block_shape(count)
    wide = [values[first : first + count].to(F32).view(shape) for values in stored]
    base, sources = (wide[0], wide[1:]) if based else (None, wide)
    return Block(first, shape, base, sources, statistics=known.at(first, shape, wide[0]))


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


BLOCKWISE = [method for method in METHODS if method.granularity != "tensor"]


def uses_base(method: Method) -> bool:
    return bool(method.needs.base) or method.kind is not Kind.COMBINE


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other settings"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", BLOCKWISE, ids=lambda method: method.name)
def test_every_method_gives_the_same_bits_compiled(
    method: Method, shape: tuple[int, ...], changed: bool
) -> None:
    count, based = count_of(method), uses_base(method)
    steps = steps_of(method, moved(method) if changed else {})
    stored = entries(shape, [BF16] * (count + based))
    chain = chain_of(steps, shape, count)
    output = output_of(shape, stored, based, "BF16")
    known = known_for(chain, based, steps)
    made = Loops(Memory(stored), Buffers(), chain.entries, True, informed={"w": known})  # type: ignore[arg-type]
    for level in range(1, chain.levels + 1):
        measure_both(made, chain, output, stored, based, level, known)
    writing = made.writing(chain, output)
    if writing is None:
        by_column = method.name == "widen" and len(shape) == 2
        by_row = method.name in ("della", "arcee_fusion") and chain.columns <= PIECE_ELEMENTS
        assert method.granularity == "row" and not by_row and not by_column, made.reasons
        return
    for first, size in chain.spans(chain.piece):
        ours = writing._made(lying(stored, known, first), first, size)
        theirs = chain.compute(block_of(chain, stored, based, first, size, known)).reshape(-1).to(BF16)
        assert ours is not None
        assert torch.equal(bits(ours), bits(theirs))


def lying(stored: Sequence[Tensor], known: OutputStatistics, first: int) -> list[Place]:
    """Where the entries of the models lie, and of what was measured on data."""
    return places([*stored, *(part.flat(0, stored[0].numel()).contiguous() for part in known.parts())], first)


def measure_both(
    made: Loops,
    chain: Chain,
    output: OutputTensor,
    stored: list[Tensor],
    based: bool,
    level: int,
    known: OutputStatistics = NOTHING,
) -> None:
    """One round of every stat that is due, by both ways; leaves their values behind."""
    tasks = [task for task in chain.tasks if task.due(level)]
    if not tasks:
        return
    measuring = made.measuring(chain, output, tasks)
    assert measuring is not None or chain.granularity == "row", made.reasons
    parts = [task.stat.part() for task in tasks]
    for first, size in chain.spans(chain.piece):
        theirs = chain.measure(block_of(chain, stored, based, first, size, known), tasks)
        if measuring is not None:
            ours = measuring._measured(lying(stored, known, first), first, size)
            assert ours is not None
            for mine, yours in zip(ours, theirs, strict=True):
                assert all(torch.equal(bits(a), bits(b)) for a, b in zip(mine, yours, strict=True))
        for part, added in zip(parts, theirs, strict=True):
            part.add(first // chain.piece, added)
    for task, part in zip(tasks, parts, strict=True):
        task.so_far = task.stat.close(part, task.params, chain.entries, task.so_far)
        task.rounds_done += 1


@pytest.mark.parametrize("dtypes", [(F16, F16, F32), (F32, BF16, F16)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_stored_dtypes_may_differ(dtypes: tuple[torch.dtype, ...], dtype: torch.dtype) -> None:
    stored = entries((70_001,), dtypes)
    chain = chain_of([("task_arithmetic", {"scale": 0.3})], (70_001,), 2)
    output = output_of((70_001,), stored, True, safetensors_name(dtype))
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    writing = made.writing(chain, output)
    assert writing is not None, made.reasons
    ours = writing._made(places(stored, 0), 0, 70_001)
    theirs = chain.compute(block_of(chain, stored, True, 0, 70_001)).to(dtype)
    assert ours is not None
    assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 64, 65, 127, 1000, 4095, 33_333, 61_952, 65_535])
def test_pieces_of_any_length_are_folded_as_torch_folds_them(length: int) -> None:
    stored = entries((length,), [F32, BF16])
    chain = chain_of([("slerp", {"t": 0.3})], (length,), 2)
    made = Loops(Memory(stored), Buffers(), length, True)  # type: ignore[arg-type]
    measure_both(made, chain, output_of((length,), stored, False, "F32"), stored, False, 1)
    assert made.made == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 32])
@pytest.mark.parametrize("columns", [64, 70, 2049])
def test_columns_of_any_length_are_summed_as_torch_sums_them(rows: int, columns: int) -> None:
    """In pieces of as many rows as there are, or as a piece has, and what is left."""
    shape = (rows if columns > 1000 else 1000 + rows, columns)
    stored = entries(shape, [BF16, BF16])
    chain = chain_of([("widen", {})], shape, 1)
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    measure_both(made, chain, output_of(shape, stored, True, "BF16"), stored, True, 1)
    assert made.made == 1, made.reasons


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Builds for the oldest processors of this family."""
    flags = tuple(flag for flag in compiler._FLAGS if not flag.startswith("-march"))
    monkeypatch.setattr(compiler, "_FLAGS", flags)
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(loops, "_COMPILER", compiler.Compiler())


@pytest.mark.parametrize("name", ["dare", "slerp", "ties", "pcb"])
@pytest.mark.usefixtures("old_processor")
def test_bits_do_not_depend_on_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LEAST_SAMPLED", 1)
    method = next(method for method in METHODS if method.name == name)
    test_every_method_gives_the_same_bits_compiled(method, (150_001,), False)
    if name == "ties":
        test_a_guess_finds_the_value_that_counting_finds("ties", {"density": 0.3}, monkeypatch)


RANKING: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "trim": {"density": 0.05},
    "breadcrumbs": {"density": 0.7, "gamma": 0.05},
    "sce": {"density": 0.1},
    "pcb": {"scope": "tensor"},
}


@pytest.mark.parametrize(("name", "settings"), RANKING.items())
def test_a_guess_finds_the_value_that_counting_finds(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "LEAST_SAMPLED", 1)
    shape = (300_001,)
    stored = entries(shape, [BF16] * 4)
    method = next(method for method in METHODS if method.name == name)
    chain = chain_of(steps_of(method, settings), shape, 3)
    output = output_of(shape, stored, True, "BF16")
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    tasks = [task for task in chain.tasks if task.due(1)]
    windows = made.measuring(chain, output, tasks, guess=True)
    assert isinstance(windows, Windows), made.reasons
    for first, size in ((0, 100_000), (100_000, 200_001)):
        rooms = windows._rooms(places(stored, first), first, size)
        assert rooms is not None
        left = iter(rooms)
        block = block_of(chain, stored, True, first, size)
        for (_, values), sought in zip(chain.quantities(block, tasks), windows.sought, strict=True):
            for value, each in zip(values, sought.windows, strict=True):
                for window in dict.fromkeys(each):
                    assert counted(next(left))[0] == found_in(value, window)[0]
            for value in values if sought.nonzero else ():
                assert int(next(left)[0]) == int(value.count_nonzero())
        left = iter(rooms)
        for sought in windows.sought:
            sought.take(left)
    settled = windows.settle()
    assert settled is not None
    for level in (1, 2):
        measure_both(made, chain, output, stored, True, level)
    assert settled == [task.value for task in tasks]


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.25, 1e-39, -1e-45, 3.3e38, -3.3e38, 7.0, 1e-20, -5e-8, 2.0**-126]
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "by a number": lambda a, b: (a * 0.1 + b / 3) - 0.7,
    "by powers of two": lambda a, b: a / 0.5 + b / -4096.0 + (a / 2.0**60 + b / 2.0**-90) / 2.0**-130,
    "far from a power of two": lambda a, b: a / (1 + 2.0**-23) + b / 3.0e38,
    "by powers of two, float64": lambda a, b: (a.double() / 0.125 + b.double() / 2.0**80).float(),
    "from a number": lambda a, b: 1.5 - a / (b * b + 1),
    "minimum": lambda a, b: torch.minimum(a + 1, b + 1),
    "maximum": lambda a, b: torch.maximum(a + 1, b + 1),
    "abs, neg": lambda a, b: a.abs() - b.neg(),
    "sign": lambda a, b: a.sign() + 2 * (a * b).sign(),
    "square": lambda a, b: a.square() - b**2,
    "reciprocal": lambda a, b: a.reciprocal() + b,
    "clamp": lambda a, b: a.clamp(-0.3, 0.6) + b.clamp(min=-1) + b.clamp(max=2),
    "hardshrink": lambda a, b: torch.nn.functional.hardshrink(a, 0.3) + b,
    "comparisons": lambda a, b: (
        (a > b).float() + 2.0 * (a >= 0.5) + 4.0 * (a <= b) + (a != b) * a + (b < 0) * b
    ),
    "logic": lambda a, b: ((a > 0) & (b > 0)).float() + ((a > 0) | ~(b > 1)).logical_xor(a == b) * a,
    "where": lambda a, b: torch.where(a > b, a, b * 2) + torch.where(a == 0, 1.0, b),
    "filled": lambda a, b: a.masked_fill(b > 0, 3.0) + torch.full_like(a, 2.0) * torch.zeros_like(b),
    "in place": lambda a, b: a.clone().mul_(b).add_(1).div_(b.abs() + 1).clamp_(min=0),
    "into": lambda a, b: torch.mul(a, b, out=torch.empty_like(a)) + torch.gt(a, b, out=torch.empty_like(a)),
    "float64": lambda a, b: (a.double() * b.double() + a.double().square()).float(),
    "float64 choice": lambda a, b: torch.where(a.double() > b, a.double(), 0.1).float() + (a.double() < 1),
    "constants": lambda a, b: a * torch.tensor(0.3, dtype=torch.float64) + b * torch.tensor(0.7),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_rounds_as_torch_does(name: str) -> None:
    """Also on what overflows or is no number on the way."""
    grid = torch.tensor(SPECIAL).repeat(len(SPECIAL), 8)
    a = grid.reshape(-1).clone()
    b = grid.T.reshape(-1).clone()

    def seen(group: TensorGroup) -> Tensor:
        found = OPERATIONS[name](group.sources[0], group.sources[1])
        return torch.where(found == found, found.clamp(-1e30, 1e30), 7.0)

    chain = chain_of([("linear", {})], (a.numel(),), 2)
    stand_in = chain_calling(chain, seen)
    output = output_of((a.numel(),), [a, b], False, "F32")
    made = Loops(Memory([a, b]), Buffers(), a.numel(), True)  # type: ignore[arg-type]
    writing = made.writing(stand_in, output)
    assert writing is not None, made.reasons
    ours = writing._made(places([a, b], 0), 0, a.numel())
    theirs = stand_in.compute(block_of(chain, [a, b], False, 0, a.numel()))
    assert ours is not None
    assert torch.equal(bits(ours), bits(theirs))


def chain_calling(chain: Chain, function: Callable[[TensorGroup], Tensor]) -> Chain:
    """The chain with another function for its only step."""
    step = chain.steps[0]
    method = replace(step.method, function=lambda group, p: function(group))
    return replace(chain, steps=(replace(step, method=method),), tasks=[])


REFUSED: dict[str, Callable[[TensorGroup], Tensor]] = {
    "a sum": lambda group: group.sources[0] * group.sources[1].sum(),
    "a choice by value": lambda group: group.sources[0] if group.sources[1].max() > 0 else group.sources[1],
    "a place": lambda group: group.sources[0] * torch.arange(group.sources[0].numel()),
    "a flip": lambda group: group.sources[0].flip(0),
    "a row": lambda group: group.sources[0] * group.sources[0].shape[1],
    "an operation with no equal": lambda group: group.sources[0].exp(),
    "a root, which torch leaves to a library": lambda group: group.sources[0].abs().sqrt(),
    "a fused product": lambda group: torch.add(group.sources[0], group.sources[1], alpha=0.5),
    "stacking": lambda group: torch.stack(list(group.sources)).amax(dim=0),
    "bits": lambda group: group.sources[0].view(torch.int32).view(torch.float32),
    "unwritten memory": lambda group: torch.empty_like(group.sources[0]) + group.sources[1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plainly_elementwise_is_left_to_the_eager_code(name: str) -> None:
    stored = entries((5000,), [F32, F32])
    chain = chain_calling(chain_of([("linear", {})], (5000,), 2), REFUSED[name])
    made = Loops(Memory(stored), Buffers(), 5000, True)  # type: ignore[arg-type]
    assert made.writing(chain, output_of((5000,), stored, False, "F32")) is None
    assert sum(made.reasons.values()) == 1


def test_a_loop_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = loops.text

    def wrong(*facts: Any) -> str:
        return re.sub(r"(= x\d+) \* (x\d+;)", r"\1 + \2", right(*facts))

    monkeypatch.setattr(loops, "text", wrong)
    stored = entries((5000,), [F32, F32])
    chain = chain_of([("linear", {})], (5000,), 2)
    made = Loops(Memory(stored), Buffers(), 5000, True)  # type: ignore[arg-type]
    assert made.writing(chain, output_of((5000,), stored, False, "F32")) is None
    assert made.made == 0


def test_numbers_of_another_tensor_need_no_other_loop() -> None:
    stored = entries((5000,), [F32, F32, F32])
    output = output_of((5000,), stored, True, "F32")
    made = Loops(Memory(stored), Buffers(), 5000, True)  # type: ignore[arg-type]
    found = [
        made.writing(chain_of([("task_arithmetic", {"scale": s})], (5000,), 2), output) for s in (0.1, 0.9)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].loop.built is found[1].loop.built
    assert list(found[0].loop.numbers) != list(found[1].loop.numbers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_entry_that_is_not_finite_is_left_to_the_eager_code(bad: float) -> None:
    stored = entries((5000,), [BF16, BF16])
    stored[1][4321] = bad
    chain = chain_of([("linear", {})], (5000,), 2)
    made = Loops(Memory(stored), Buffers(), 5000, True)  # type: ignore[arg-type]
    writing = made.writing(chain, output_of((5000,), stored, False, "BF16"))
    assert writing is not None
    assert writing._made(places(stored, 0), 0, 5000) is None
    assert writing._made(places(stored, 0), 0, 4321) is not None


def test_what_plays_no_part_is_not_read() -> None:
    """It may lie in a file that cannot be read."""
    stored, nowhere = entries((5000,), [BF16, BF16]), Place(1 << 20, 0, 0)
    chain = chain_calling(chain_of([("linear", {})], (5000,), 2), lambda group: group.sources[1].clone())
    made = Loops(Memory(stored), Buffers(), 5000, True)  # type: ignore[arg-type]
    writing = made.writing(chain, output_of((5000,), stored, False, "BF16"))
    assert writing is not None
    lying = places(stored, 0)
    found = writing._made([nowhere, lying[1]], 0, 5000)
    assert found is not None
    assert torch.equal(bits(found), bits(stored[1]))
    assert writing._made([lying[0], nowhere], 0, 5000) is None


def test_following_ends_with_the_block() -> None:
    tracer = Tracer()
    with tracer:
        value = tracer.input(0) * 2
    program = list(tracer.program.nodes)
    assert float((value + 1).sum()) == 24.0
    assert tracer.program.nodes == program
    with pytest.raises(Untraceable):
        tracer.node_of(torch.ones(8))


@pytest.mark.parametrize(("columns", "made"), [(PIECE_ELEMENTS, 1), (PIECE_ELEMENTS + 1, 0)])
def test_rows_too_long_for_stand_ins_are_left_to_the_eager_code(columns: int, made: int) -> None:
    stored = entries((1, columns), [BF16, BF16])
    chain = chain_of([("arcee_fusion", {})], (1, columns), 1)
    tried = Loops(Memory(stored), Buffers(), columns, True)  # type: ignore[arg-type]
    found = tried.measuring(chain, output_of((1, columns), stored, True, "BF16"), chain.tasks[:1])
    assert (found is not None) == bool(made)


def test_sums_of_columns_are_taken_a_block_at_a_time() -> None:
    """A long span has as many sums as there are columns, for every few rows."""
    shape = (64, 2049)
    stored = entries(shape, [BF16, BF16])
    chain = chain_of([("widen", {})], shape, 1)
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    found = made.measuring(chain, output_of(shape, stored, True, "BF16"), chain.tasks)
    assert found is not None, made.reasons
    assert found.span(PIECE_ELEMENTS) == PIECE_ELEMENTS
