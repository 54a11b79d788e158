"""RegMean++ by what it is handed: RegMean's arithmetic on other Gram matrices."""

import torch

from tests.merge.informed import Held
from tests.merge.methods.calibrated.test_regmean import layers
from tests.merge.whole import merge_one


def test_the_worked_example() -> None:
    sources = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    known = {
        "m0+joint": Held({"gram_merged/w": torch.diag(torch.tensor([0.5, 2.0]))}, {"w": 1}),
        "m1+joint": Held({"gram_merged/w": torch.diag(torch.tensor([2.0, 0.5]))}, {"w": 1}),
    }
    found = merge_one([("regmean_pp", {"alpha": 1.0})], None, sources, statistics=known)
    assert torch.allclose(found, torch.tensor([[0.2, 0.2]]), atol=1e-5)


def test_it_is_regmean_on_what_comes_through_the_merged_layers() -> None:
    sources, inputs = layers(3)
    grams = [x.T @ x / len(x) for x in inputs]
    plain = {f"m{i}": Held({"gram/w": gram}, {"w": 1}) for i, gram in enumerate(grams)}
    through = {f"m{i}+joint": Held({"gram_merged/w": gram}, {"w": 1}) for i, gram in enumerate(grams)}
    settings = {"alpha": 0.7, "ridge": 1e-5}
    one = merge_one([("regmean", settings)], None, sources, statistics=plain)
    assert torch.equal(one, merge_one([("regmean_pp", settings)], None, sources, statistics=through))


def test_tensors_without_data_are_averaged() -> None:
    sources, _ = layers(2)
    known = {f"m{i}+joint": Held({"gram_merged/other": torch.ones(1, 1)}) for i in range(2)}
    found = merge_one([("regmean_pp", {})], None, sources, statistics=known, weights=[1.0, 3.0])
    assert torch.allclose(found, (sources[0] + 3 * sources[1]) / 4)
