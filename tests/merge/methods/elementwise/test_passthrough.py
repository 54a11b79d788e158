import torch

from tests.merge.whole import merge_one


def test_the_source_is_copied_bit_for_bit() -> None:
    source = torch.randn(3, 5)
    assert torch.equal(merge_one([("passthrough", {})], None, [source]), source)


def test_scale_multiplies() -> None:
    merged = merge_one([("passthrough", {"scale": -0.5})], None, [torch.tensor([2.0, 4.0])])
    assert torch.equal(merged, torch.tensor([-1.0, -2.0]))


def test_a_prepared_model_is_given_back() -> None:
    base, source = torch.ones(1000), torch.zeros(1000)
    merged = merge_one([("dare", {"density": 0.5, "rescale": "none"}), ("passthrough", {})], base, [source])
    assert set(merged.unique().tolist()) == {0.0, 1.0}
