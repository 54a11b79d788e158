import pytest

from merge.planning.sizing import MEASURED_BYTES, PIECE_ELEMENTS, entry_bytes, needed_budget, seconds, sizes

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


@pytest.mark.parametrize("lines", [1 << 10, 10 * MIB, 200 * MIB])
def test_what_is_measured_of_rows_is_held_for_every_tensor_at_hand_and_every_thread(lines: int) -> None:
    fitted = sizes(4, 4, 3_000_000, 2, 8192 * MIB, lines=lines)
    assert fitted is not None
    assert fitted.batch == 1 or fitted.batch * lines <= MEASURED_BYTES
    assert fitted.peak_bytes >= 2 * 3_000_000 * entry_bytes(4, 4) + (fitted.batch + fitted.threads) * lines
    needed = needed_budget(4, 4, 3_000_000, 0, lines)
    assert sizes(4, 4, 3_000_000, 4, needed, lines=lines) is not None
    assert sizes(4, 4, 3_000_000, 4, needed - 1, lines=lines) is None


def test_many_tensors_and_large_products_take_time_whatever_their_bytes() -> None:
    """20,000 small tensors, and eight matrices of 4,096 rows and columns with three sources."""
    assert seconds(0, 1, 0, 20_000) > 5 * seconds(0, 1, 0)
    assert seconds(0, 1, 0, 8, 8 * 4 * 4096**3) > 50
