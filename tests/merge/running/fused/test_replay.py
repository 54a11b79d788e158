"""Steps that are followed instead of traced anew: the same program with other numbers, or none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import Site, TensorGroup
from merge.contract.method import get
from merge.run import run
from merge.running import passes
from merge.running.chain import Block, Chain
from merge.running.fused import loops, memo
from merge.running.fused.notes import Notes
from merge.running.fused.replay import Recording, Script
from merge.running.fused.trace import Program, Tracer, Untraceable
from tests.merge import exact
from tests.merge.references import chains, planned, tensors_digest
from tests.merge.running.fused.test_run import COMMITTED, GIB
from tests.merge.whole import bound

SHAPE = (1, 8)
Steps = Callable[[Notes, float], Tensor]


def traced(steps: Steps, number: float) -> tuple[Program, Script]:
    tracer = Tracer(SHAPE)
    recording = Recording(tracer)
    with tracer, recording:
        made = recording.node_of(steps(recording, number), "f")
    assert not recording.lost
    return tracer.program, Script(None, recording, made)


def followed(script: Script, steps: Steps, number: float) -> Program | None:
    return script.followed(SHAPE, lambda notes: notes.node_of(steps(notes, number), "f"))


STEPS: dict[str, Steps] = {
    "shrunk": lambda notes, t: hardshrink(notes.input(0) - notes.input(1), t),
    "in place": lambda notes, t: (notes.input(0) * 2).clamp_(-t, 3 * t).add_(1.0),
    "two numbers": lambda notes, t: (notes.input(0) * t).add(t * t).ge(0.25 * t).float(),
    "divided": lambda notes, t: notes.input(0) / t,
    "a number in a tensor": lambda notes, t: notes.input(0) * torch.tensor(t),
    "columns": lambda notes, t: notes.input(0) * (torch.arange(8.0).view(1, 8) * t),
    "draws": lambda notes, t: notes.draws(int(t * 100)).bernoulli(t / 10) * notes.input(0),
    "out": lambda notes, t: torch.mul(notes.input(0), t, out=torch.empty_like(notes.input(1))),
}


@pytest.mark.parametrize("name", STEPS)
def test_following_gives_what_tracing_gives(name: str) -> None:
    steps = STEPS[name]
    _, script = traced(steps, 0.3)
    for number in (0.7, 0.123):
        program = followed(script, steps, number)
        assert program is not None
        assert program.equals(traced(steps, number)[0])
        assert not program.equals(traced(steps, 0.3)[0])


def test_other_steps_are_not_followed() -> None:
    def steps(notes: Notes, t: float) -> Tensor:
        return notes.input(0) * t if t < 0.5 else notes.input(0) + t

    _, script = traced(steps, 0.3)
    assert followed(script, steps, 0.4) is not None
    assert followed(script, steps, 0.6) is None


def test_fewer_and_more_steps_are_not_followed() -> None:
    def steps(notes: Notes, t: float) -> Tensor:
        found = notes.input(0) * t
        return found if t < 0.5 else found.abs()

    for first, second in ((0.3, 0.6), (0.6, 0.3)):
        assert followed(traced(steps, first)[1], steps, second) is None


def test_a_number_that_shapes_the_program_must_be_the_same() -> None:
    """Division by a power of two is written down as multiplication."""
    _, script = traced(STEPS["divided"], 0.25)
    assert followed(script, STEPS["divided"], 0.25) is not None
    assert followed(script, STEPS["divided"], 0.3) is None


def test_what_one_number_of_two_alike_it_was_cannot_be_told() -> None:
    tracer = Tracer(SHAPE)
    recording = Recording(tracer)
    with tracer, recording:
        recording.node_of(recording.input(0).clamp_(0.3, 0.3))
    assert recording.lost


def test_memory_made_in_passing_cannot_be_followed() -> None:
    tracer = Tracer(SHAPE)
    recording = Recording(tracer)
    with tracer, recording:
        recording.node_of(recording.input(0) + torch.ones(SHAPE))
    assert recording.lost
    with pytest.raises(Untraceable), tracer, recording:
        recording.input(0) + torch.ones(3)


def test_stand_ins_are_kept_as_long_as_there_is_room() -> None:
    """Settings that vary from layer to layer bring some for every layer."""
    site, made = Site("w", "linear", (8, 1 << 16), ("a",)), list[ref[Tensor]]()
    chains = [Chain(site, bound([("task_arithmetic", {})], 1), (1.0,), 7) for _ in range(40)]
    traces = memo.Traces()

    def block(notes: Notes) -> Block:
        source = notes.input(0)
        made.append(ref(source))
        return Block(0, notes.shape, None, [source])

    def doubled(notes: Notes, _: Chain, given: Block) -> int:
        return notes.node_of(given.sources[0] * 2.0)

    for chain in chains:
        vars(chain)["granularity"] = "row"
        traces.get("it", chain, block, doubled, fresh=True)
    held = [tensor.nbytes for each in made if (tensor := each()) is not None]
    assert 0 < sum(held) <= memo.MOST_HELD


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Path]:
    """Every tensor is large enough."""
    monkeypatch.setattr(loops, "LEAST_ENTRIES", 1)
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)
    monkeypatch.setattr(passes, "AT_ONCE", 0)
    return exact.family(tmp_path / "family", shards=2)


@pytest.mark.parametrize("chain", ["ties", "breadcrumbs_ties", "sce.defaults", "pcb.moved", "widen.defaults"])
def test_what_was_measured_is_filled_in(
    folders: Mapping[str, Path], tmp_path: Path, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tensors are traced, and the bytes are those of tracing each."""
    made: list[Tracer] = []

    def noted(shape: tuple[int, ...]) -> Tracer:
        made.append(Tracer(shape))
        return made[-1]

    monkeypatch.setattr(memo, "Tracer", noted)
    plan = planned(folders, *chains()[chain])
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert tensors_digest(tmp_path / "out") == COMMITTED[chain]
    first = len(made)
    monkeypatch.setattr(Script, "followed", lambda *_: None)
    run(plan, folders, tmp_path / "anew", budget_bytes=GIB, threads=2)
    assert tensors_digest(tmp_path / "anew") == COMMITTED[chain]
    assert first < len(made) - first


def test_a_method_that_turns_on_what_was_measured_is_merged_right(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, merge = planned(folders, "abc", [{"method": "model_stock"}]), get("model_stock").function

    def choosy(group: TensorGroup, p: Any) -> Tensor:
        merged: Tensor = merge(group, p)
        return merged * 0.5 if len(group.name) % 2 else merged - 0.25

    monkeypatch.setitem(vars(get("model_stock")), "function", choosy)
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=1)
    monkeypatch.setattr(loops.Loops, "writing", lambda *_: None)
    monkeypatch.setattr(loops.Loops, "measuring", lambda *_: None)
    run(plan, folders, tmp_path / "plain", budget_bytes=GIB, threads=1)
    assert tensors_digest(tmp_path / "out") == tensors_digest(tmp_path / "plain")
