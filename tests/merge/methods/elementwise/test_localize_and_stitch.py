"""Localize-and-Stitch: regions over the whole model, averaged where they meet."""

import torch

from tests.merge.whole import merge_all, merge_one


def test_the_worked_stitch() -> None:
    """The two largest of three each: .4 .2 0 and .6 -.3 0."""
    base = torch.zeros(3)
    first = merge_one([("localize_and_stitch", {"sparsity": 0.67})], base, [torch.tensor([0.4, 0.2, 0.1])])
    assert torch.equal(first, torch.tensor([0.4, 0.2, 0.0]))
    both = merge_one(
        [("localize_and_stitch", {"sparsity": 0.67})],
        base,
        [torch.tensor([0.4, 0.2, 0.1]), torch.tensor([0.6, -0.3, 0.1])],
    )
    assert torch.allclose(both, torch.tensor([0.5, -0.05, 0.0]))


def test_a_coordinate_of_one_region_is_not_thinned_by_the_others() -> None:
    sources = [torch.tensor([4.0, 2, 0, 0]), torch.tensor([6.0, 0, 0, 0]), torch.tensor([0.0, 0, 0, -1])]
    found = merge_one([("localize_and_stitch", {"sparsity": 0.5})], torch.zeros(4), sources)
    assert torch.equal(found, torch.tensor([5.0, 2, 0, -1]))


def test_three_full_regions_weigh_a_third_each() -> None:
    sources = [torch.randn(5, 4) for _ in range(3)]
    found = merge_one([("localize_and_stitch", {"sparsity": 1.0})], torch.zeros(5, 4), sources)
    assert torch.allclose(found, sum(sources) / 3)


def test_identical_sources_return_the_region_of_one() -> None:
    delta = torch.randn(6, 5)
    one = merge_one([("localize_and_stitch", {"sparsity": 0.2})], torch.zeros(6, 5), [delta])
    three = merge_one([("localize_and_stitch", {"sparsity": 0.2})], torch.zeros(6, 5), [delta] * 3)
    assert int(one.count_nonzero()) == 6 and torch.allclose(one, three)


def test_the_region_is_found_over_the_whole_model() -> None:
    zeros, loud, quiet = torch.zeros(10), torch.arange(1.0, 11.0), torch.arange(1.0, 11.0) / 100
    tensors = {"a": (zeros, [loud]), "b": (zeros, [quiet])}
    found = merge_all([("localize_and_stitch", {"sparsity": 0.5})], tensors)
    assert torch.equal(found["a"], loud) and not bool(found["b"].any())
    apart = merge_all([("localize_and_stitch", {"sparsity": 0.5, "scope": "tensor"})], tensors)
    assert int(apart["a"].count_nonzero()) == int(apart["b"].count_nonzero()) == 5


def test_scale_multiplies_the_stitched_change() -> None:
    base, source = torch.randn(8), torch.randn(8)
    found = merge_one([("localize_and_stitch", {"sparsity": 1.0, "scale": 0.5})], base, [source])
    assert torch.allclose(found, base + 0.5 * (source - base))


def test_the_entry_that_tells_the_threshold_is_in_the_region_in_float64_too() -> None:
    """A third is less than the float32 nearest to it, which is the threshold."""
    delta = torch.tensor([0.1, 1 / 3, -0.2], dtype=torch.float64)
    assert float(delta[1]) < float(delta[1].float())
    found = merge_one([("localize_and_stitch", {"sparsity": 0.4})], torch.zeros(3).double(), [delta])
    assert torch.equal(found, delta * torch.tensor([0, 1, 0]))
