from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.catalog import Granularity, coarsest
from merge.contract.groups import DeltaGroup, Site, TensorGroup
from merge.contract.method import Kind, Method, Needs, method
from merge.contract.params import NoParams, knob, params
from merge.contract.stats import Norm, Sum, Threshold, deltas_of
from merge.errors import MethodMalformed, ShapeBroken
from merge.running.chain import Block, Bound, Chain
from tests.merge.whole import merge_one


def made(
    function: Callable[..., Any],
    kind: Kind,
    needs: Needs,
    settings: type = NoParams,
    granularity: Granularity = "element",
) -> Method:
    """A method that is not registered."""
    return Method(
        name="x",
        title="X",
        kind=kind,
        family="f",
        about="About.",
        granularity=granularity,
        needs=needs,
        params=settings,
        function=function,
    )


def chain_of(method: Method, shape: tuple[int, ...], sources: int = 1, p: object = None) -> Chain:
    site = Site("w", "linear", shape, tuple(f"m{i}" for i in range(sources)))
    values = (p or method.params(),) * (sources if method.kind is Kind.PREPARE else 1)
    return Chain(site, (Bound(method, values, "x#0"),), (1.0,) * sources, 0)


def test_a_file_that_does_not_bear_the_methods_name_is_refused() -> None:
    def other(group: TensorGroup, p: NoParams) -> Tensor:
        """About."""
        return group.sources[0]

    with pytest.raises(MethodMalformed, match="must bear its name"):
        method(title="Other", kind=Kind.COMBINE)(other)


def test_a_method_without_words_for_its_users_is_refused() -> None:
    def test_method(group: TensorGroup, p: NoParams) -> Tensor:
        return group.sources[0]

    assert isinstance(test_method, FunctionType)
    with pytest.raises(MethodMalformed, match="no docstring"):
        method(title="Silent", kind=Kind.COMBINE)(test_method)


def test_the_coarsest_step_decides_what_must_be_together() -> None:
    assert coarsest(["element", "row", "element"]) == "row"
    assert coarsest(["element", "tensor", "row"]) == "tensor"


def test_rows_are_handed_over_whole() -> None:
    seen = []

    def combine(group: TensorGroup, p: NoParams) -> Tensor:
        seen.append(tuple(group.sources[0].shape))
        return group.sources[0]

    chain = chain_of(made(combine, Kind.COMBINE, Needs(), granularity="row"), (1000, 300))
    source = torch.randn(1000, 300)
    for first, count in chain.spans(1 << 16):
        part = source.view(-1)[first : first + count].view(chain.block_shape(count))
        assert torch.equal(chain.compute(Block(first, tuple(part.shape), None, [part])), part)
    assert {columns for _, columns in seen} == {300}
    assert sum(rows for rows, _ in seen) == 1000
    assert len(seen) > 1


def test_a_wrong_shape_is_refused_by_the_tensors_name() -> None:
    chain = chain_of(made(lambda group, p: group.sources[0][:1], Kind.COMBINE, Needs()), (4,))
    with pytest.raises(ShapeBroken, match=r"^w: "):
        chain.compute(Block(0, (4,), None, [torch.ones(4)]))


def test_a_stat_that_is_not_declared_is_refused() -> None:
    chain = chain_of(made(lambda group, p: group.stat(Norm), Kind.COMBINE, Needs()), (4,))
    with pytest.raises(MethodMalformed, match="not declared"):
        chain.compute(Block(0, (4,), None, [torch.ones(4)]))


def test_a_stat_waits_for_the_one_it_names() -> None:
    first = Sum(deltas_of)
    second = Norm(deltas_of, after=(first,))
    chain = chain_of(made(lambda group, p: group.base, Kind.COMBINE, Needs(base=True, stats=(second,))), (4,))
    assert [(task.stat, task.first_level) for task in chain.tasks] == [(first, 1), (second, 2)]
    assert chain.levels == 2


def test_stats_without_a_tie_between_them_share_a_pass() -> None:
    @params
    class Trim:
        density: float = knob(0.5, "Share.")

    needs = Needs(base=True, stats=(Threshold, Norm))
    chain = chain_of(made(lambda group, p: group.base, Kind.COMBINE, needs, Trim), (4,))
    assert [task.first_level for task in chain.tasks] == [1, 1]
    assert chain.levels == 2


def test_a_prepare_reads_a_stat_of_its_own_delta() -> None:
    def prepare(delta: Tensor, own: DeltaGroup, p: NoParams) -> Tensor:
        return delta / own.stat(Norm)[0]

    chain = chain_of(made(prepare, Kind.PREPARE, Needs(base=True, stats=(Norm,))), (2,), sources=2)
    block = Block(0, (2,), torch.zeros(2), [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])])
    found = chain.measure(block, chain.tasks)
    assert [round(float(added[0].sum()), 3) for added in found] == [25.0, 4.0]


def test_a_stat_of_a_combine_sees_prepared_deltas() -> None:
    base, source = torch.zeros(1000), torch.ones(1000)
    kept = merge_one(
        [("dare", {"density": 0.5, "rescale": "none"}), ("ties", {"density": 0.25})], base, [source]
    )
    assert 400 < int((kept != 0).sum()) < 600, "all survivors equal the threshold, dropped ones do not"
