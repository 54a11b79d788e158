"""Every operation of a compiled loop rounds as torch does; what is none is left to the eager code."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.running.blocks import Buffers
from merge.running.chain import Chain
from merge.running.fused import proven
from merge.running.fused.loops import Loops
from merge.running.fused.trace import Tracer, Untraceable
from merge.running.places import Place
from tests.merge.running.fused.stand_ins import (
    BF16,
    F32,
    Memory,
    bits,
    block_of,
    chain_of,
    entries,
    output_of,
    places,
)

pytestmark = pytest.mark.usefixtures("small_jobs_too")

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
    right = proven.text

    def wrong(*facts: Any) -> str:
        return re.sub(r"(= x\d+) \* (x\d+;)", r"\1 + \2", right(*facts))

    monkeypatch.setattr(proven, "text", wrong)
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
