import torch

from merge.kernels.row_ranks import row_ranks

ROWS = torch.tensor([[3.0, -1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]])


def test_equal_magnitudes_share_the_mean_of_their_places() -> None:
    assert row_ranks(ROWS).tolist() == [[3.0, 1.5, 1.5, 0.0], [1.5] * 4]


def test_or_rank_by_their_columns() -> None:
    assert row_ranks(ROWS, shared=False).tolist() == [[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
