import numpy as np
import pytest
import torch

from merge.errors import SettingInvalid
from merge.kernels.row_ranks import row_ranks
from tests.merge.whole import merge_one

ROWS, COLUMNS = 1500, 128
RAMP = (torch.arange(1.0, COLUMNS + 1) / 1024).repeat(ROWS, 1)


def della(delta: torch.Tensor = RAMP, seed: int = 0, **settings: object) -> torch.Tensor:
    steps = [("della", settings), ("task_arithmetic", {})]
    return merge_one(steps, torch.zeros_like(delta), [delta], seed=seed)


def test_ranks_by_hand() -> None:
    values = torch.tensor([[0.5, -2.0, 0.0, 1.0], [3.0, 3.0, -3.0, 3.0], [-0.0, 0.0, 1e-45, 5.0]])
    assert row_ranks(values).tolist() == [[1, 3, 0, 2], [1.5, 1.5, 1.5, 1.5], [0.5, 0.5, 2, 3]]


def test_ranks_are_those_of_a_full_sort_with_ties_shared() -> None:
    values = torch.randint(-40, 41, (50, 333), generator=torch.Generator().manual_seed(1)).float()
    sizes = values.abs().numpy()
    below = (sizes[:, None, :] < sizes[:, :, None]).sum(2)
    equal = (sizes[:, None, :] == sizes[:, :, None]).sum(2)
    assert np.array_equal(row_ranks(values).numpy(), below + (equal - 1) / 2)


def test_share_of_kept_entries_is_the_density() -> None:
    share = float((della(density=0.4, epsilon=0.3, rescale="none") != 0).float().mean())
    assert abs(share - 0.4) < 5 * (0.25 / (ROWS * COLUMNS)) ** 0.5


def test_the_chance_grows_evenly_with_the_rank() -> None:
    kept = (della(density=0.5, epsilon=0.3, rescale="none") != 0).double().mean(0)
    wanted = 0.2 + 0.6 * torch.arange(COLUMNS, dtype=torch.float64) / (COLUMNS - 1)
    assert float((kept - wanted).abs().max()) < 4.5 * (0.25 / ROWS) ** 0.5
    assert abs(float((kept - wanted).mean())) < 5 * (0.25 / ROWS / COLUMNS) ** 0.5


def test_expected_value_of_every_entry_is_the_entry() -> None:
    mean = della(density=0.5, epsilon=0.3).double().mean(0)
    chances = 0.2 + 0.6 * torch.arange(COLUMNS, dtype=torch.float64) / (COLUMNS - 1)
    spread = RAMP[0].double() * ((1 - chances) / chances / ROWS) ** 0.5
    assert float(((mean - RAMP[0]) / spread).abs().max()) < 4.5


def test_survivors_are_divided_by_their_own_chance() -> None:
    made = della(torch.tensor([[1.0, 2.0, 3.0]]).repeat(400, 1), density=0.5, epsilon=0.25)
    for column, survivor in enumerate((1 / 0.25, 2 / 0.5, 3 / 0.75)):
        assert set(made[:, column].unique().tolist()) == {0.0, survivor}


def test_equal_magnitudes_all_have_the_chance_density() -> None:
    made = della(torch.full((ROWS, COLUMNS), 0.5), density=0.25, epsilon=0.2)
    assert set(made.unique().tolist()) == {0.0, 2.0}
    assert abs(float((made != 0).float().mean()) - 0.25) < 5 * (0.19 / ROWS / COLUMNS) ** 0.5


def test_with_epsilon_zero_every_entry_has_the_chance_density() -> None:
    kept = (della(density=0.3, epsilon=0.0, rescale="none") != 0).double()
    assert float((kept.mean(0) - 0.3).abs().max()) < 4.5 * (0.21 / ROWS) ** 0.5


@pytest.mark.parametrize(("rescale", "power"), [("l1", 1), ("l2", 2)])
def test_norm_of_the_whole_tensor_is_restored(rescale: str, power: int) -> None:
    made = della(density=0.4, epsilon=0.15, rescale=rescale)
    assert float(made.norm(power)) == pytest.approx(float(RAMP.norm(power)), rel=1e-4)


def test_without_rescaling_survivors_are_untouched() -> None:
    made = della(density=0.5, rescale="none")
    assert torch.equal(made, RAMP * (made != 0))


def test_density_one_is_the_inner_method_bit_for_bit() -> None:
    for rescale in ("expectation", "l1", "l2", "none"):
        assert torch.equal(della(density=1.0, rescale=rescale), RAMP)


@pytest.mark.parametrize("shape", [(1,), (7,), (), (5, 1), (1, 1), (3, 2, 2, 2)])
def test_rows_of_any_length_and_tensors_of_any_rank_work(shape: tuple[int, ...]) -> None:
    for rescale in ("expectation", "l1"):
        made = della(torch.ones(shape), density=0.5, epsilon=0.4, rescale=rescale)
        assert made.shape == shape
        assert bool(torch.isfinite(made).all())


def test_chances_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(SettingInvalid, match=r"density \+ epsilon must be at most 1"):
        della(density=0.95, epsilon=0.1)
    with pytest.raises(SettingInvalid, match=r"epsilon - density must be at most 0"):
        della(density=0.1, epsilon=0.15)


def test_an_entry_without_a_chance_is_never_kept_and_one_with_all_always() -> None:
    made = della(density=0.5, epsilon=0.5)
    assert torch.equal(made[:, 0], torch.zeros(ROWS))
    assert torch.equal(made[:, -1], RAMP[:, -1])


def test_draws_do_not_depend_on_blocks_or_threads() -> None:
    sources = [torch.randn(1300, 100) for _ in range(2)]
    steps = [("della", {"density": 0.5, "rescale": "l1"}), ("ties", {"density": 1.0})]
    made = [
        merge_one(steps, torch.zeros(1300, 100), sources, block=b, threads=t)
        for b, t in ((1 << 16, 1), (1 << 20, 2))
    ]
    assert torch.equal(made[0], made[1])


def test_seeds_and_sources_draw_differently() -> None:
    first, second = (della(density=0.5, epsilon=0.0, seed=seed) != 0 for seed in (1, 2))
    assert 0.24 < float((first & second).float().mean()) < 0.26
    steps = [("della", {"density": 0.5, "epsilon": 0.0}), ("task_arithmetic", {})]
    both = merge_one(steps, torch.zeros_like(RAMP), [RAMP] * 8)
    counts = torch.bincount((both / RAMP / 2).round().int().view(-1), minlength=9).double()
    assert float(counts[4] / counts.sum()) == pytest.approx(70 / 256, abs=0.01), "eight independent coins"


@pytest.mark.parametrize("shape", [(6,), (8, 6), (5, 4, 2, 4), (1,)])
@pytest.mark.parametrize("rescale", ["expectation", "l1"])
def test_rows_are_rows_before_a_method_that_takes_whole_tensors(shape: tuple[int, ...], rescale: str) -> None:
    base, deltas = torch.zeros(shape), [torch.randn(shape) for _ in range(2)]
    della: tuple[str, dict[str, object]] = ("della", {"density": 0.5, "epsilon": 0.3, "rescale": rescale})
    tsv_m: tuple[str, dict[str, object]] = ("tsv_m", {})
    alone = [
        merge_one([della, ("task_arithmetic", {})], base, [delta], models=[f"m{place}"])
        for place, delta in enumerate(deltas)
    ]
    assert torch.equal(merge_one([della, tsv_m], base, deltas), merge_one([tsv_m], base, alone))


def test_a_stack_of_experts_is_ranked_row_by_row() -> None:
    """With epsilon 1/2 the smallest of a row is never kept, the largest always."""
    delta, settings = RAMP[:1200].clone(), {"density": 0.5, "epsilon": 0.5, "rescale": "none"}
    delta *= torch.arange(1, 1201).unsqueeze(1)
    steps, stack = [("della", settings), ("task_arithmetic", {})], delta.view(12, 100, COLUMNS)
    kept = merge_one(steps, torch.zeros_like(stack), [stack], role="expert").view(-1, COLUMNS) != 0
    assert not kept[:, 0].any()
    assert kept[:, -1].all()
