import pytest
import torch

from tests.merge.whole import merge_one

COUNT = 200_000
BASE = torch.zeros(COUNT)
DELTA = torch.full((COUNT,), 0.01)


def dare(
    delta: torch.Tensor = DELTA, then: str = "task_arithmetic", seed: int = 0, **settings: object
) -> torch.Tensor:
    return merge_one([("dare", settings), (then, {})], BASE, [BASE + delta], seed=seed)


def test_share_of_kept_entries_is_the_density() -> None:
    kept = float((dare(density=0.3) != 0).float().mean())
    assert abs(kept - 0.3) < 5 * (0.3 * 0.7 / COUNT) ** 0.5


def test_mean_is_kept_and_variance_is_the_cards() -> None:
    merged = dare(density=0.1).double()
    assert abs(float(merged.mean()) - 0.01) < 5 * (9.0e-4 / COUNT) ** 0.5
    assert float(merged.var()) == pytest.approx(9.0e-4, rel=0.03)


@pytest.mark.parametrize(("rescale", "power"), [("l1", 1), ("l2", 2)])
def test_norm_of_the_whole_tensor_is_restored(rescale: str, power: int) -> None:
    delta = torch.randn(COUNT)
    merged = dare(delta, density=0.25, rescale=rescale)
    assert float(merged.norm(power)) == pytest.approx(float(delta.norm(power)), rel=1e-4)


def test_without_rescaling_survivors_are_untouched() -> None:
    merged = dare(density=0.5, rescale="none")
    assert set(merged.unique().tolist()) == {0.0, float(DELTA[0])}


def test_density_one_is_the_inner_method_bit_for_bit() -> None:
    delta = torch.randn(COUNT)
    plain = merge_one([("task_arithmetic", {})], BASE, [BASE + delta])
    assert torch.equal(dare(delta, density=1.0), plain)


def test_draws_do_not_depend_on_blocks_or_threads() -> None:
    steps = [("dare", {"density": 0.5, "rescale": "l2"}), ("ties", {"density": 0.5})]
    sources = [torch.randn(COUNT) for _ in range(2)]
    made = [
        merge_one(steps, BASE, sources, block=b, threads=t)
        for b, t in ((1 << 16, 1), (1 << 17, 2), (1 << 20, 1))
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_seeds_and_sources_draw_differently() -> None:
    first, second = dare(density=0.5, seed=1) != 0, dare(density=0.5, seed=2) != 0
    assert 0.2 < float((first & second).float().mean()) < 0.3
    both = merge_one([("dare", {"density": 0.5}), ("task_arithmetic", {})], BASE, [DELTA, DELTA])
    assert 0.45 < float((both == 0.02).float().mean()) < 0.55


def test_draws_follow_the_id_of_a_source_and_not_its_place() -> None:
    steps = [("dare", {"density": 0.5}), ("task_arithmetic", {})]
    a, b = torch.randn(COUNT), torch.randn(COUNT)
    forth = merge_one(steps, BASE, [a, b], models=("a", "b"))
    back = merge_one(steps, BASE, [b, a], models=("b", "a"))
    assert torch.allclose(forth, back, atol=1e-6)
