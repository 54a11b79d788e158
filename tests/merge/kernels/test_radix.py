import pytest
import torch

from merge.kernels.radix import find_bin


@pytest.mark.parametrize("bins", [1, 7, 256, 1000, 1 << 15, 3 << 16])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_the_bin_of_a_rank_is_the_one_that_counting_down_from_the_top_finds(
    bins: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(bins)
    counts = torch.randint(0, 4, (bins,), generator=generator).to(dtype)
    counts[-1] = 1
    from_top = [(place, int(counts[place])) for place in range(bins - 1, -1, -1) if counts[place]]
    total, wanted = 0, {}
    for place, many in from_top:
        wanted[total + 1], wanted[total + many] = (place, 1), (place, many)
        total += many
    for rank in sorted(wanted)[:: max(1, len(wanted) // 50)]:
        assert find_bin(counts, rank) == wanted[rank]
    assert find_bin(counts, total) == wanted[total]
    assert find_bin(counts, total + 1)[0] == -1
