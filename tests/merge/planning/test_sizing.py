import pytest

from merge.planning.sizing import PIECE_ELEMENTS, entry_bytes, needed_budget, sizes

MIB = 1 << 20


@pytest.mark.parametrize("models", [1, 4, 33])
@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("budget", [256 * MIB, 1024 * MIB, 65536 * MIB])
@pytest.mark.parametrize("whole", [1, 5_000_000])
def test_what_is_held_stays_under_the_budget(models: int, threads: int, budget: int, whole: int) -> None:
    fitted = sizes(models, 4, whole, threads, budget)
    if fitted is None:
        assert needed_budget(models, 4, whole) > budget
        return
    held = fitted.threads * fitted.block * entry_bytes(models, 4)
    assert held <= fitted.peak_bytes <= budget
    assert 1 <= fitted.threads <= threads
    assert fitted.block >= whole


def test_elementwise_blocks_are_whole_pieces() -> None:
    fitted = sizes(4, 4, 1, 2, 100 * MIB)
    assert fitted is not None
    assert fitted.block % PIECE_ELEMENTS == 0


def test_the_needed_budget_is_enough_and_nothing_less_is() -> None:
    needed = needed_budget(9, 8, 3_000_000)
    assert sizes(9, 8, 3_000_000, 4, needed) is not None
    assert sizes(9, 8, 3_000_000, 4, needed - 1) is None


@pytest.mark.parametrize("workspace", [0, 8, 400])
def test_a_declared_workspace_is_part_of_what_is_held(workspace: int) -> None:
    needed = needed_budget(4, 4, 3_000_000, workspace)
    fitted = sizes(4, 4, 3_000_000, 4, needed, workspace)
    assert fitted is not None
    assert fitted.peak_bytes >= 3_000_000 * (workspace + 4 * 4 * 2)
    assert sizes(4, 4, 3_000_000, 4, needed - 1, workspace) is None


def test_what_threads_hold_besides_leaves_room_for_fewer() -> None:
    budget = needed_budget(4, 4, 3_000_000) * 3
    alone, beside = (sizes(4, 4, 3_000_000, 4, budget, 0, held) for held in (0, 300 * MIB))
    assert alone is not None and beside is not None
    assert beside.threads < alone.threads
    assert beside.threads * 300 * MIB < beside.peak_bytes <= budget
