"""Squared gradients taken block by block are those of autograd on the whole model."""

from pathlib import Path

import pytest
import torch

from merge.checkpoint.index import index_folder
from merge.learn.collect import collect, read_statistics
from merge.learn.gradients import Gradients
from merge.learn.skeleton import Skeleton
from merge.learn.walk import Trace
from tests.merge.learn import models


def plain(kind: str, folder: Path, tokens: int) -> tuple[dict[str, torch.Tensor], Skeleton]:
    """Mean over sequences of the squares, by parameter, with the whole model and its own backward."""
    skeleton = Skeleton(index_folder(folder))
    model = (
        models.whole(folder, experts_implementation="eager")
        if "Moe" in type(skeleton.module).__name__
        else models.whole(folder)
    )
    every = [
        batch.one(at)
        for batch in models.batches(folder, models.samples(tokens))
        for at in range(batch.sequences)
    ]

    class Whole:
        batches = every

    Whole.skeleton = skeleton  # type: ignore[attr-defined]
    losses = Gradients(Whole, kind, models.samples().seed, 0, lambda *_: None)  # type: ignore[arg-type]
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(every):
        model.zero_grad()
        losses._loss(Trace(result=model(**batch.inputs)), number).backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                part = value.grad * value.detach() if kind == "grad_weight" else value.grad
                sums[name] = sums.get(name, 0) + part.double().square() / len(every)
    return sums, skeleton


@pytest.mark.parametrize("kind", ["fisher", "grad_weight"])
@pytest.mark.parametrize(
    "model", ["llama", "tied", "gpt2", "bert", "t5", "bart", "vit", "mixtral", "gemma2", "albert"]
)
def test_gradients_are_those_of_the_whole_model(model: str, kind: str, tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", model)
    collect(folder, index_folder(folder), models.samples(16), [kind], tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    wanted, skeleton = plain(kind, folder, 16)
    by_tensor = skeleton.unconverted(
        {name: value for name, value in wanted.items() if name in skeleton.makers}
    )
    assert len(by_tensor) > 5
    assert set(found.names(kind)) == set(by_tensor)
    noise = 1e-9 * max(
        float(value.max()) for value in by_tensor.values()
    )  # a key's bias has none but rounding
    for name, value in by_tensor.items():
        measured = found.get(kind, name)
        assert measured is not None
        scale = max(float(value.max()), noise)
        torch.testing.assert_close(measured.double() / scale, value / scale, rtol=1e-3, atol=1e-5)


def test_labels_are_drawn_again_alike_and_differ_between_seeds(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index = index_folder(folder)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        collect(folder, index, models.samples(16, seed=seed), ["fisher"], tmp_path / name)
    a, b, c = ((tmp_path / name / "statistics.safetensors").read_bytes() for name in "abc")
    assert a == b != c
