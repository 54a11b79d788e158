"""The walk itself: other weights in its blocks, and models that it must not be used on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.checkpoint.index import index_folder
from merge.checkpoint.reader import TensorReader
from merge.learn import walk
from merge.learn.calling import NotByBlocks
from merge.learn.observe import Observers
from merge.learn.skeleton import Skeleton, Stored
from merge.learn.towers import block_lists
from merge.learn.walk import REST, Walk
from tests import tiny
from tests.merge.learn import models


class Given:
    """Weights handed over, as a merged block's are."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].clone()

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        return self.tensors[name][list(rows)]


@pytest.mark.parametrize("kind", ["llama", "t5", "mixtral"])
def test_a_blocks_own_inputs_can_be_measured_behind_other_blocks(kind: str, tmp_path: Path) -> None:
    """As regression means need it layer by layer: hooks on a source's block, which is then replaced by the
    merged one, whose outputs go on.
    """
    folder = models.make(tmp_path / "model", kind)
    index, given = index_folder(folder), models.samples(16)
    skeleton = Skeleton(index)
    every = models.batches(folder, given)
    found: dict[str, Tensor] = {}
    with TensorReader(folder, index) as reader:
        own = Stored(reader)
        merged = Given({name: own.tensor(name) * 1.25 for name in index.tensors})
        with Walk(skeleton, own, every, tmp_path / "scratch") as steps:
            for stage in steps.stages():
                if stage.path == REST:
                    break
                stage.fill()
                kinds = frozenset({"mean_abs_input"})
                with Observers(skeleton, stage.modules, kinds, device=torch.device("cpu")) as seen:
                    stage.run(keep=False, after=lambda _, output: seen.after_batch(output))
                found |= seen.findings(stage.tensors, stage.path).tensors
                stage.fill(merged)
                stage.run()
    model = models.whole(folder)
    blocks = [(path, number, block) for path, each in block_lists(model) for number, block in enumerate(each)]
    with torch.no_grad():
        for path, number, block in blocks:
            inputs = models.inputs_of_linears(model, every)
            for name, target in skeleton.targets.items():
                module = target.parameter.removesuffix(".weight")
                inside = target.parameter.startswith(f"{path}.{number}.") and target.expert is None
                if inside and f"mean_abs_input/{name}" in found and module in inputs:
                    wanted = inputs[module].abs().mean(0).float()
                    torch.testing.assert_close(found[f"mean_abs_input/{name}"], wanted, rtol=1e-4, atol=1e-5)
            for parameter in block.parameters():
                parameter.mul_(1.25)


def test_a_model_that_uses_an_earlier_blocks_output_again_is_not_walked(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index = index_folder(folder)
    skeleton = Skeleton(index)
    body: Any = skeleton.module.model
    first: list[Tensor] = []

    def remember(_: Any, __: Any, output: Any) -> None:
        first.append(output)

    def again(_: Any, args: Any) -> Any:
        return (args[0] + first[-1], *args[1:])

    body.layers[0].register_forward_hook(remember)
    body.norm.register_forward_pre_hook(again)
    with (
        TensorReader(folder, index) as reader,
        Walk(
            skeleton, Stored(reader), models.batches(folder, models.samples(16)), tmp_path / "scratch"
        ) as steps,
        pytest.raises(NotByBlocks, match=r"model\.layers\.0 is used again"),
    ):
        for stage in steps.stages():
            stage.fill()
            stage.run()


def test_the_model_is_given_back_empty_and_unchanged(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "gpt2")
    index = index_folder(folder)
    skeleton = Skeleton(index)
    before = {path: type(module).forward for path, module in skeleton.module.named_modules()}
    with (
        TensorReader(folder, index) as reader,
        Walk(
            skeleton, Stored(reader), models.batches(folder, models.samples(16)), tmp_path / "scratch"
        ) as steps,
    ):
        for stage in steps.stages():
            stage.fill()
            filled = [name for name in skeleton.parameters_under("") if skeleton.is_filled(name)]
            inside = [name for name in filled if name.startswith("transformer.h.")]
            assert all(name.startswith(f"{stage.path}.") for name in inside)
            stage.run()
    assert not any(skeleton.is_filled(name) for name in skeleton.parameters_under(""))
    for path, module in skeleton.module.named_modules():
        assert "forward" not in module.__dict__
        assert type(module).forward is before[path]
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert walk.REST == ""


def test_what_stands_for_done_blocks_does_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.llama(tmp_path / "model", layers=6)
    index = index_folder(folder)
    skeleton, every = Skeleton(index), models.batches(folder, models.samples(16))
    kept: list[int] = []
    with (
        TensorReader(folder, index) as reader,
        Walk(skeleton, Stored(reader), every, tmp_path / "scratch") as steps,
    ):
        marked = steps._marked

        def counted(path: str, tensor: Tensor) -> Tensor:
            made = marked(path, tensor)
            kept.append(len({leaf.data_ptr() for _, leaf in steps._call.leaves.values()}))
            return made

        monkeypatch.setattr(steps, "_marked", counted)
        for stage in steps.stages():
            stage.fill()
            stage.run()
    assert len(kept) == 1 + 2 + 3 + 4 + 5 + 6 and max(kept) == 2, kept
