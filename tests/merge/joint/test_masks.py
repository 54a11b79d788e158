"""Trained regions: worked numbers, the gradient of the objective, and what the result is made of."""

import contextlib
import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.joint.masks import Training, largest_share, start, step
from merge.joint.weights import Made, OnDisk, Scores
from merge.learn import backward
from merge.learn.partial import Partial
from merge.learn.statistics import read_statistics
from tests.merge.informed import Held
from tests.merge.joint import references
from tests.merge.test_gather import family, folders, merge, tensors
from tests.merge.whole import merge_one

RATE, SPARSIFY, BIAS, SHARE = 3e5, 40.0, 2.0, 0.3
STEP = {
    "method": "localize_and_stitch", "region": "trained", "epochs": 2,
    "rate": RATE, "sparsify": SPARSIFY, "bias": BIAS, "sparsity": SHARE,
}  # fmt: skip


def test_the_worked_stitch() -> None:
    masks = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])]
    known = {f"m{i}+joint": Held({"mask/w": mask}) for i, mask in enumerate(masks)}
    changes = [torch.tensor([0.4, 0.2, 0.1]), torch.tensor([0.6, -0.3, 0.9])]
    found = merge_one(
        [("localize_and_stitch", {"region": "trained"})], torch.zeros(3), changes, statistics=known
    )
    assert torch.allclose(found, torch.tensor([0.5, 0.2, 0.0]))


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Scores(tmp_path / "scores.bin", {"a": (2, 3)})["a"]
    with pytest.raises(OSError, match="No space left"):
        OnDisk(Made({"a": lambda: torch.zeros(2, 3)}, None), tmp_path).rows("a", [1])  # type: ignore[arg-type]


def test_a_tensor_that_training_never_reached_stays_the_base() -> None:
    known = {f"m{i}+joint": Held({"mask/other": torch.ones(1)}) for i in range(2)}
    base = torch.tensor([1.0, 2.0])
    steps: Any = [("localize_and_stitch", {"region": "trained"})]
    assert torch.equal(merge_one(steps, base, [base + 1, base - 1], statistics=known), base)


def test_a_step_by_hand() -> None:
    p = Training(sparsity=0.1, epochs=1, rate=2.0, sparsify=0.5, bias=5.0)
    before, gradient, change = (
        torch.tensor([0.0, math.log(3)]),
        torch.tensor([3.0, -1.0]),
        torch.tensor([0.5, 2.0]),
    )
    wanted = torch.tensor([0 - (2 * 1.5 + 0.5) * 0.25, math.log(3) - (2 * -2 + 0.5) * 3 / 16])
    assert torch.allclose(step(before, gradient, change, p), wanted)


def test_training_begins_inside_the_largest_changes(tmp_path: Path) -> None:
    changes = {"a": torch.randn(40, 7), "b": torch.randn(33)}
    of = {name: Training(0.25, 1, 1.0, 1.0, 4.0) for name in changes}
    scores = Scores(tmp_path / "s", {name: tuple(each.shape) for name, each in changes.items()})
    start(scores, lambda name: (torch.zeros_like(changes[name]), changes[name]), of)
    sizes = torch.cat([each.abs().flatten() for each in changes.values()])
    least = sizes.sort(descending=True).values[math.ceil(0.25 * 313) - 1]
    assert largest_share(lambda: iter(changes.values()), 0.25) == float(least)
    for name, each in changes.items():
        assert torch.equal(scores[name], torch.where(each.abs() >= least, 4.0, -4.0))


def trained(root: Path, expert: str, epochs: int) -> dict[str, Tensor]:
    """The scores by plain gradients of the objective, with all weights at once, in float64."""
    base, source = tensors(root / "base"), tensors(root / expert)
    model, texts = references.load(root, expert), references.sequences(root, expert)
    change = {name: source[name] - base[name] for name in base}
    sizes = torch.cat([each.abs().flatten() for each in change.values()]).sort(descending=True).values
    least = sizes[math.ceil(SHARE * len(sizes)) - 1]
    scores = {name: torch.where(each.abs() >= least, BIAS, -BIAS).double() for name, each in change.items()}
    for _ in range(epochs):
        leaves = {name: each.clone().requires_grad_(True) for name, each in scores.items()}
        weights = {name: base[name] + torch.sigmoid(leaves[name]) * change[name] for name in base}
        objective = RATE * torch.stack([references.loss(model, weights, each) for each in texts]).mean()
        objective = objective + SPARSIFY * torch.stack([s.sigmoid().sum() for s in leaves.values()]).sum()
        found = torch.autograd.grad(objective, list(leaves.values()))
        scores = {name: scores[name] - g for (name, g) in zip(leaves, found, strict=True)}
    return scores


@pytest.mark.parametrize("group_bytes", [1 << 28, 1], ids=["in one group", "text by text"])
def test_regions_are_those_of_plain_gradients_of_the_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    monkeypatch.setattr(backward, "GROUP_BYTES", group_bytes)
    root = family(tmp_path, layers=2)
    assert merge(root, "out", [STEP], dtype={"output": "float32"}) == 0
    masks = [read_statistics(folder) for folder in folders(root)]
    assert len(masks) == 2
    made, base = tensors(root / "out"), tensors(root / "base")
    experts = {name: tensors(root / name) for name in ("expert1", "expert2")}
    regions: dict[str, dict[str, Tensor]] = {}
    for expert, source in experts.items():
        scores = trained(root, expert, 2)
        at_start = trained(root, expert, 0)
        moved = sum(int(((scores[n] > 0) != (at_start[n] > 0)).sum()) for n in scores)
        assert moved > 100, "training matters"
        fits = [all(alike(each.get("mask", n), scores[n]) for n in scores) for each in masks]
        assert sorted(fits) == [False, True], expert
        regions[expert] = {n: masks[fits.index(True)].get("mask", n).double() for n in scores}  # type: ignore[union-attr]
        assert set(source) == set(scores)
    for name, start_ in base.items():
        change = sum(regions[e][name] * (experts[e][name] - start_) for e in experts)
        count = sum(regions[e][name] for e in experts)
        assert isinstance(count, Tensor)
        assert torch.allclose(made[name], start_ + change / count.clamp(min=1), atol=1e-6), name


def alike(mask: Tensor | None, scores: Tensor) -> bool:
    """The same region, but where a score is too near zero for float32 to tell."""
    assert mask is not None
    sure = scores.abs() > 1e-3
    return float(sure.double().mean()) > 0.99 and torch.equal(mask[sure] > 0, scores[sure] > 0)


def test_a_training_that_is_cut_off_anywhere_gives_the_same_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = family(tmp_path, layers=1)
    assert merge(root, "once", [STEP]) == 0
    shutil.rmtree(root / "statistics")
    group, done = backward.Backward._group, [0]

    class Cut(BaseException):
        pass

    def counted(self: backward.Backward, *arguments: Any) -> None:
        done[0] += 1
        if done[0] % 3 == 0:
            raise Cut
        group(self, *arguments)

    monkeypatch.setattr(backward.Backward, "_group", counted)
    for _ in range(20):
        try:
            assert merge(root, "often", [STEP]) == 0
            break
        except Cut:
            assert not (root / "often").exists()
    assert done[0] > 6
    assert (root / "once" / "model.safetensors").read_bytes() == (
        root / "often" / "model.safetensors"
    ).read_bytes()


def test_a_training_that_is_cut_off_at_the_end_of_an_epoch_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "GROUPS", 1)
    root = family(tmp_path, layers=1)
    assert merge(root, "once", [STEP]) == 0
    shutil.rmtree(root / "statistics")
    note, noted = Partial.note, []  # type: Any, list[Path]

    class Cut(BaseException):
        pass

    def cut(self: Partial, **facts: Any) -> None:
        note(self, **facts)
        if "mask-0000" in facts and self.folder not in noted:
            noted.append(self.folder)
            raise Cut

    monkeypatch.setattr(Partial, "note", cut)
    while not (root / "often").exists():
        with contextlib.suppress(Cut):
            assert merge(root, "often", [STEP]) == 0
    assert len(noted) == 2
    assert (root / "once" / "model.safetensors").read_bytes() == (
        root / "often" / "model.safetensors"
    ).read_bytes()


def test_settings_of_the_training_are_the_same_for_all_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = family(tmp_path, layers=1)
    change = {"match": "class:norm", "settings": {"localize_and_stitch.epochs": 3}}
    assert merge(root, "out", [STEP], overrides=[change]) == 2
    assert "epochs must be the same" in capsys.readouterr().err
